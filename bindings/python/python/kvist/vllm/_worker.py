"""The worker's half: owns the store, and moves blocks between it and the engine's memory.

Loads go on in the background, on a thread of the store; the request waits, the engine does not. Blocks are
stored at the end of the step that filled them, before anything can overwrite them: a copy into the
store's memory, from where they go to disk behind. No failure here leaves as an exception: what cannot be
loaded is said to be so, what cannot be stored is counted.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._errors import KvistError
from .._kvist import Prefix, PrefixStore, Space, Ticket
from .._prefix import Restored
from ._config import Config
from ._meta import Blocks, Hello, Hint, Loaded, Part, StepMeta, Tried, WorkerMeta

log = logging.getLogger("vllm.kvist")

DAMAGE = (
    "checksum", "codec", "decrypt", "gone", "io", "key_mismatch", "layout_mismatch",
    "model_mismatch", "torn", "version",
)  # fmt: skip
"""Why a block that is there cannot be read, now or later."""
STUCK = ("busy", "degraded", "timeout")
"""Why a block does not come in time."""
PROBE_SECONDS = 0.2
"""What the probe at the start may take."""
PROBE_BLOCKS = 4
LINGER_SECONDS = 0.002
"""What a step that computes nothing may wait for a load: as long as a request that comes then may wait."""


@dataclass(frozen=True)
class Place:
    """Where this worker stands."""

    rank: int = 0
    world: int = 1
    folder: str = ""
    """Inside `disk_dir`, if several engines or workers share it: a directory has one user."""


@dataclass(frozen=True)
class Engine:
    """The engine's blocks, as this worker's store sees them."""

    space: dict[str, Any]
    """Keywords of `PrefixStore.space` that keys depend on: the whole model's."""
    own: dict[str, Any]
    """Those in which this worker's part of it differs."""
    block_bytes: int
    """Of the whole model's blocks."""
    layout: str
    tensors: dict[str, Any]
    """Keywords of `put` and `get_behind` for the engine's tensors."""


class Worker:
    """One worker's store, between the engine's steps."""

    def __init__(self, config: Config, place: Place) -> None:
        self._config = config
        self._place = place
        self._store: PrefixStore | None = None
        self._engine: Engine | None = None
        self._spaces: dict[bytes, Space] = {}
        self._loading: dict[str, tuple[Ticket[Restored] | None, Blocks, float]] = {}
        self._own_bytes = 0
        self._hello: Hello | None = None
        self._said_hello = False
        self._failed: dict[str, int] = {}
        self._present: list[bytes] = []
        self._began, self._idle = 0.0, False
        self._computed: tuple[int, float] | None = None
        self._loaded: list[Loaded] = []
        self._trials: list[Ticket[Restored]] = []
        self._tried: list[Tried] = []
        self._said_waiting = False
        self._off: str | None = None
        self._said_off = False
        # For what is no tenant's: a store of several tenants wants a salt for every space.
        self._no_tenant = b"kvist" if config.multi_tenant else b""
        self.counts: defaultdict[str, float] = defaultdict(float)
        """What was done since the last `take_counts`: see `_stats.TOTALS` and `_stats.REASONS`."""

    # --- Start and end ---------------------------------------------------------------------

    def open(self) -> None:
        """Opens the store. Raises `StoreError` or `OptionError` if it cannot be used."""
        c = self._config
        disk = None
        if c.disk_dir is not None:
            path = c.disk_dir / self._place.folder
            path.parent.mkdir(parents=True, exist_ok=True)
            disk = (path, c.disk_bytes)
        self._store = PrefixStore(
            c.host_bytes,
            disk,
            multi_tenant=c.multi_tenant,
            verify_host=c.verify == "always",
            key_secret=c.key_secret_file,
            deadline=c.disk_deadline,
            required=c.disk_required,
            prefault=c.prefault,
            replace=c.policy_evict,
            admit=c.admit_sightings if disk else 1,
        )

    def register(self, engine: Engine) -> None:
        """The engine's tensors are there."""
        assert self._store is not None
        self._engine = engine
        self._own_bytes = self._space(self._no_tenant).block_bytes
        self._hello = self._greeting(engine.space, engine.block_bytes, engine.layout)
        self._hello.tried = self._probe(self._hello)

    def refuse(self, why: str) -> None:
        """Nothing will be stored or loaded: said before the first step."""
        self._off = why
        self._said_off = True
        self._hello = self._greeting({}, 0, "none")

    def switch_off(self, why: str) -> None:
        """From now on nothing is stored or loaded: said after this step."""
        self._off = self._off or why

    def _greeting(self, space: dict[str, Any], block_bytes: int, layout: str) -> Hello:
        assert self._store is not None
        secret = self._store.key_secret
        place = self._place
        changes = [] if self._off is not None else self._store.changes()[1]
        return Hello(
            place.rank, place.world, space, block_bytes, secret, layout, changes, self._off
        )

    @property
    def hello(self) -> Hello | None:
        """What the scheduler has to know; none before the engine's tensors are there."""
        return self._hello

    def _probe(self, hello: Hello) -> list[Tried]:
        """Reads some blocks from disk, if there are any: what the disk takes, before a request asks. Memory
        is known from the first load, and not slow."""
        space = self._space(self._no_tenant)
        keys = [key for key, tier, _ in hello.changes if tier == "disk"][:PROBE_BLOCKS]
        until, blocks, seconds = time.monotonic() + PROBE_SECONDS, 0, 0.0
        for key in keys:
            room = [np.empty(space.block_bytes, np.uint8)]
            ticket = space.get_behind(space.prefix_of_keys([key]), 0, room)
            restored = ticket.wait(max(0.0, until - time.monotonic()))
            if restored is None:
                break
            # Blocks of other models or tenants are none.
            blocks += restored.from_disk
            seconds += (ticket.seconds or 0.0) * restored.from_disk
        return [(True, blocks, seconds)] if blocks else []

    def close(self) -> None:
        """Writes what waits to be written, and closes the store."""
        self._loading.clear()
        if self._store is not None:
            self._store.close()

    # --- A step ------------------------------------------------------------------------------

    def begin(self, idle: bool = False) -> None:
        """A step begins, perhaps one that computes nothing."""
        self._began, self._idle = time.monotonic(), idle

    def load(self, meta: StepMeta) -> None:
        """Starts the step's loads and trials."""
        for blocks in meta.trials:
            self._try(blocks)
        for blocks in meta.loads:
            started = time.monotonic()
            self._loading[blocks.request] = self._start(blocks), blocks, started

    def _start(self, blocks: Blocks) -> Ticket[Restored] | None:
        try:
            if self._off is not None or self._engine is None or 0 in blocks.ids:
                return None
            return self._get(blocks, block_ids=blocks.ids, **self._engine.tensors)
        except Exception as e:
            self._trouble("load", e)
            return None

    def _get(self, wanted: Blocks, **to: Any) -> Ticket[Restored]:
        space, prefix = self._prefix(wanted)
        return space.get_behind(prefix, 0, **to)

    def _try(self, blocks: Blocks) -> None:
        """Reads blocks for the time it takes; the scheduler is told even if it cannot."""
        try:
            room = [np.empty(self._own_bytes, np.uint8) for _ in blocks.keys]
            self._trials.append(self._get(blocks, blocks=room))
        except Exception as e:
            self._trouble("try", e)
            self._tried.append((True, 0, 0.0))

    def save(self, meta: StepMeta) -> None:
        """Stores what the step filled, and forgets what is to be forgotten."""
        if meta.computed:
            self._computed = meta.computed, time.monotonic() - self._began
        for blocks in meta.saves:
            self._put(blocks)
        for hint in meta.hints if self._off is None else ():
            self._tell(hint)
        if meta.evict and self._off is None:
            try:
                self._space(self._no_tenant).evict(meta.evict)
            except Exception as e:
                self._trouble("evict", e)

    def _tell(self, hint: Hint) -> None:
        try:
            space = self._space(hint.salt)
            prefix = space.prefix_of_keys(hint.keys)
            if hint.until is None:
                space.session_closed(prefix)
            else:
                space.next_use(prefix, max(0.0, hint.until - time.monotonic()))
        except Exception as e:
            self._trouble("hint", e)

    def _put(self, blocks: Blocks) -> None:
        if self._off is not None or self._engine is None or 0 in blocks.ids:
            return
        started = time.monotonic()
        try:
            space, prefix = self._prefix(blocks)
            stored = space.put(prefix, 0, block_ids=blocks.ids, **self._engine.tensors)
        except Exception as e:
            self._trouble("store", e)
            return
        self._present += [
            key for key, each in zip(blocks.keys, stored.each, strict=True) if each == "present"
        ]
        self.counts["stored_blocks"] += stored.blocks
        self.counts["store_bytes"] += stored.blocks * space.block_bytes
        self.counts["store_time"] += time.monotonic() - started
        for reason, count in stored.refused.items():
            self.counts[f"refused_{reason}"] += count

    def done(self) -> tuple[set[str], set[str]]:
        """Requests whose load ended since the last call, and those of them whose blocks did not all
        come: the engine computes these itself."""
        received: set[str] = set()
        failed: set[str] = set()
        if self._idle:
            self._linger()
        for name, (ticket, wanted, started) in list(self._loading.items()):
            if ticket is not None and not ticket.done:
                continue
            del self._loading[name]
            received.add(name)
            restored = ticket.wait(0) if ticket is not None else None
            blocks = restored.blocks if restored is not None else 0
            took = time.monotonic() - started
            self.counts["load_time"] += took
            self._measure(restored, ticket, took)
            self._count(restored, len(wanted.keys))
            if blocks < len(wanted.keys):
                failed.add(name)
                self._failed[name] = blocks
                self._doubt(restored, wanted)
        return received, failed

    def _linger(self) -> None:
        """Waits for a load, a little. An engine that has nothing to compute asks without a pause, and keeps
        the cores busy that would load."""
        for ticket in [ticket for ticket, _, _ in self._loading.values() if ticket is not None][:1]:
            ticket.wait(LINGER_SECONDS)

    def _measure(
        self, restored: Restored | None, ticket: Ticket[Restored] | None, took: float
    ) -> None:
        """Notes what a load says of the tiers' speed."""
        if restored is None or ticket is None or (seconds := ticket.seconds) is None:
            return
        far, near = restored.from_disk, restored.blocks - restored.from_disk
        if restored.miss is not None and restored.miss.reason in STUCK:
            near = 0  # The time was the disk's.
        elif restored.blocks == 0:
            return
        self._loaded.append((near, far, seconds, max(0.0, took - seconds)))

    def _doubt(self, restored: Restored | None, wanted: Blocks) -> None:
        """A damaged block is seldom alone: those behind it leave too. The engine is about to compute
        them all, and they are stored anew."""
        if restored is None or restored.miss is None or restored.miss.reason not in DAMAGE:
            return
        try:
            self._space(wanted.salt).evict(wanted.keys[restored.blocks :])
        except Exception as e:
            self._trouble("evict", e)

    def _count(self, restored: Restored | None, wanted: int) -> None:
        blocks = restored.blocks if restored is not None else 0
        self.counts["loads"] += 1
        self.counts["loaded_blocks"] += blocks
        self.counts["loaded_from_disk"] += restored.from_disk if restored is not None else 0
        self.counts["load_bytes"] += blocks * self._own_bytes
        if blocks < wanted:
            miss = restored.miss if restored is not None else None
            reason = miss.reason if miss is not None else "given_up"
            self.counts[f"failed_{reason}"] += 1
            log.warning("kvist: a load ended after %d of %d blocks: %s", blocks, wanted, reason)

    def report(self) -> WorkerMeta | None:
        """What the scheduler has to know after the step; none if that is nothing."""
        part = Part(self._place.rank)
        if not self._said_hello and self._hello is not None:
            part.hello, self._said_hello = self._hello, True
        if self._off is not None and not self._said_off:
            part.off, self._said_off = self._off, True
        if self._off is None and self._store is not None and self._hello is not None:
            try:
                part.reset, part.changes = self._store.changes()
            except KvistError as e:
                self._trouble("list", e)
        self._report_times(part)
        part.failed, self._failed = self._failed, {}
        part.present, self._present = self._present, []
        said = part.hello or part.off or part.reset or part.changes or part.present or part.failed
        timed = part.computed or part.loaded or part.tried or part.waiting is not None
        return WorkerMeta([part]) if said or timed else None

    def _report_times(self, part: Part) -> None:
        part.computed, self._computed = self._computed, None
        part.loaded, self._loaded = self._loaded, []
        if self._trials:
            self._end_trials()
        part.tried, self._tried = self._tried, []
        if self._loading or self._said_waiting:
            now = time.monotonic()
            part.waiting = max((now - at for _, _, at in self._loading.values()), default=0.0)
            self._said_waiting = bool(self._loading)

    def _end_trials(self) -> None:
        for ticket in [ticket for ticket in self._trials if ticket.done]:
            self._trials.remove(ticket)
            restored, seconds = ticket.wait(0), ticket.seconds or 0.0
            far = restored.from_disk if restored is not None else 0
            blocks = restored.blocks if restored is not None else 0
            miss = restored.miss if restored is not None else None
            stuck = miss is not None and miss.reason in STUCK
            self._tried.append(
                (stuck or far > 0, far or blocks, seconds if blocks or stuck else 0.0)
            )

    def take_counts(self) -> dict[str, float]:
        """What was done since the last call."""
        if not self.counts:
            return {}
        counts, self.counts = dict(self.counts), defaultdict(float)
        return counts

    # --- Helpers --------------------------------------------------------------------------------

    def _space(self, salt: bytes) -> Space:
        if salt not in self._spaces:
            assert self._store is not None and self._engine is not None
            if len(self._spaces) >= 256:
                self._spaces.clear()
            options = {**self._engine.space, **self._engine.own, "codec": self._config.codec_disk}
            self._spaces[salt] = self._store.space(**options, salt=salt)
        return self._spaces[salt]

    def _prefix(self, blocks: Blocks) -> tuple[Space, Prefix]:
        space = self._space(blocks.salt)
        return space, space.prefix_of_keys(blocks.keys, after=blocks.after)

    def _trouble(self, what: str, e: Exception) -> None:
        """Something failed that is not expected to: the engine goes on without it. What makes it
        useless for good switches it off."""
        self.counts[f"errors_{what}"] += 1
        log.warning("kvist: could not %s blocks: %s: %s", what, type(e).__name__, e)
        if self._store is None or self._store.closed:
            self._off = "the store was closed"
