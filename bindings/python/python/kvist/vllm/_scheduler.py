"""The scheduler's half: which blocks to load before a request runs, which to store after a step.

Knows requests by what it reads of them, and imports nothing of the engine. It never waits, and touches
no KV. A request goes through

    new -> asked -> loading -> loaded | failed -> storing -> (gone)

and back to `asked` when it is preempted; how many of its blocks were stored is kept then.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from ._choices import Choices
from ._config import Config
from ._events import Events
from ._index import Index
from ._keys import Keys
from ._meta import Blocks, Hello, Hint, StepMeta, WorkerMeta

log = logging.getLogger("vllm.kvist")

CLOSED, NEXT_USE = "kvist_session_closed", "kvist_next_use"
"""What a server may set in a request's `kv_transfer_params`."""
ASKS_MAX = 20
"""How often a request is told to ask again, at most."""
PREFILL_MIN = 64
"""Tokens of prompts that make a step one that computes prompts."""


@dataclass
class State:
    """What is known of a request."""

    request: Any
    phase: str = "new"
    keys: list[bytes] | None = None
    shared: bool = True
    """Whether its blocks may be shared at all."""
    stored: int = 0
    """Leading blocks that were handed to the workers, or that they have."""
    matched: int = 0
    """Tokens that the engine had itself when it asked last."""
    sources: dict[str, int] = field(default_factory=dict)
    """Tokens of the load by tier."""
    chosen: bool = False
    """Whether it was decided what to load for it."""
    asks: int = 0
    asked_at: float = 0.0


class Scheduler:
    """Decides for all requests of an engine."""

    def __init__(self, config: Config, world: int, events: Events | None = None) -> None:
        self._config = config
        self._world = world
        self.index = Index(world, None if events is None else events.follow)
        self._events = events
        self._hellos: dict[int, Hello] = {}
        self._keys: Keys | None = None
        self._choices: Choices | None = None
        self.off: str | None = None
        """Why nothing is stored or loaded, if that is so."""
        self._requests: dict[str, State] = {}
        self._loads: list[Blocks] = []
        self._evict: list[bytes] = []
        self._trials: list[Blocks] = []
        self._hints: list[Hint] = []

    # --- What the workers say ---------------------------------------------------------------

    def greet(self, hello: Hello) -> None:
        """A worker is ready. Nothing is stored or loaded before all are, or if one cannot."""
        if hello.rank in self._hellos or self.off is not None:
            return
        self._hellos[hello.rank] = hello
        self.index.apply(hello.rank, True, hello.changes)
        if hello.off is not None:
            self.switch_off(hello.off)
        elif any(hello.space != other.space for other in self._hellos.values()):
            self.switch_off("the workers found different models or layouts")
        elif len(self._hellos) == self._world:
            self._keys = Keys(self._hellos[0], self._config.multi_tenant)
            margin, size = self._config.load_margin_ms / 1e3, self._hellos[0].block_bytes
            self._choices = Choices(margin, self._block, size)
            for other in self._hellos.values():
                self._choices.tried(other.tried)

    def switch_off(self, why: str) -> None:
        """From now on every request is computed."""
        if self.off is None:
            log.warning("kvist: nothing is stored or loaded: %s", why)
        self.off = why

    def update(self, meta: WorkerMeta | None, received: set[str], failed: set[str]) -> None:
        """What the workers did since the last step."""
        for part in meta.parts if meta is not None else ():
            if part.hello is not None:
                self.greet(part.hello)
            if part.off is not None:
                self.switch_off(part.off)
            self.index.apply(part.rank, part.reset, part.changes)
            self.index.believe(part.present)
            if self._choices is not None:
                self._choices.learn(part)
            for name, blocks in part.failed.items():
                self._lost(name, blocks)
        for name in received:
            if (state := self._requests.get(name)) is not None and state.phase == "loading":
                state.phase = "failed" if name in failed else "loaded"

    def _lost(self, name: str, blocks: int) -> None:
        """A load ended after so many blocks: the next one is not there, whatever the index says, and
        those behind it are of no use. All will be computed, and stored unless they are there."""
        state = self._requests.get(name)
        if state is not None and state.keys is not None:
            first = state.matched // self._block + blocks
            self.index.doubt(state.keys[first:])
            state.stored = min(state.stored, first)

    @property
    def _block(self) -> int:
        return self._keys.block_tokens if self._keys is not None else 1

    # --- What the engine asks -----------------------------------------------------------------

    def matched(self, request: Any, computed: int) -> int | None:
        """Tokens that can be loaded beyond those that the engine has: whole blocks, and never the
        last token. `None` if that cannot be said yet. Changes nothing that matters."""
        state = self._state(request)
        if self.off is not None or state.phase == "failed":
            return 0
        if self._keys is None:
            return self._ask_again(state)
        state.phase, state.matched = "asked", computed
        keys = self._keys_of(state)
        size = self._block
        first, stop = computed // size, min((request.num_tokens - 1) // size, len(keys))
        found = self._worth(state, keys, first, stop) * size
        return found if found and found >= self._config.admit_min_tokens else 0

    def _worth(self, state: State, keys: list[bytes], first: int, stop: int) -> int:
        """How many of the request's blocks are there and worth loading."""
        found = self.index.leading(keys, first, stop)
        if found.blocks == 0 or self._choices is None:
            return 0
        blocks = self._choices.choose(found, state.chosen)
        state.chosen = True
        if blocks < found.blocks and (part := self._choices.trial(found)) is not None:
            tried = keys[first + part.start : first + part.stop]
            self._trials.append(Blocks("", self._salt(state.request), tried, []))
        return blocks

    def _ask_again(self, state: State) -> int | None:
        now = time.monotonic()
        state.asks += 1
        if state.asks == 1:
            state.asked_at = now
        late = (now - state.asked_at) * 1e3 > self._config.load_max_wait_ms
        return 0 if late or state.asks > ASKS_MAX else None

    def allocated(self, request: Any, ids: list[int], tokens: int) -> None:
        """The engine has blocks for `tokens` tokens to be loaded; with 0 there is nothing to load."""
        state = self._state(request)
        if tokens == 0 or self._keys is None:
            return
        first, count = state.matched // self._block, tokens // self._block
        every = self._keys_of(state)
        keys, own = every[first : first + count], list(ids[first : first + count])
        load = Blocks(request.request_id, self._salt(request), keys, own, _after(every, first))
        if self._events is not None:
            self._events.name(request, keys, first)
        near = sum(map(self.index.in_memory, keys)) * self._block
        state.sources = {"host": near, "disk": tokens - near}
        state.phase, state.stored = "loading", max(state.stored, first + count)
        self._loads.append(load)

    def sources(self, request: Any) -> dict[str, int]:
        """Tokens of the request's load by tier, "host" and "disk"."""
        state = self._requests.get(request.request_id)
        return dict(state.sources) if state is not None else {}

    def step(self, output: Any) -> StepMeta:
        """What the workers are to do with this step. Forgets what it says."""
        meta = StepMeta(self._loads, [], self._evict, self._trials, hints=self._hints)
        self._loads, self._evict, self._trials, self._hints = [], [], [], []
        if self._keys is None or self.off is not None:
            return meta
        try:
            scheduled = output.num_scheduled_tokens
            total = sum(scheduled.values())
            meta.idle = total == 0
            meta.computed = total if total - len(scheduled) >= PREFILL_MIN else 0
            for request in output.scheduled_new_reqs:
                self._save(meta, request.req_id, request.num_computed_tokens, output)
            cached = output.scheduled_cached_reqs
            for name, computed in zip(cached.req_ids, cached.num_computed_tokens):
                self._save(meta, name, computed, output)
        except Exception as e:
            # The loads must reach the workers all the same: requests wait for them.
            self.switch_off(f"{type(e).__name__}: {e}")
        return meta

    def _save(self, meta: StepMeta, name: str, computed: int, output: Any) -> None:
        """Adds the blocks that this step makes full."""
        state = self._requests.get(name)
        if state is None or not state.shared:
            return
        request = state.request
        known = (
            request.num_tokens if self._config.admit_decode_tokens else request.num_prompt_tokens
        )
        # Tokens beyond those known are drafts, which may be taken back.
        full = min(computed + output.num_scheduled_tokens[name], known) // self._block
        if full <= state.stored or request.num_prompt_tokens < self._config.admit_min_tokens:
            return
        keys = self._keys_of(state)
        (ids, *_) = output.kv_connector_block_state.resolve_block_ids(name)
        full = min(full, len(keys), len(ids))
        new = [i for i in range(state.stored, full) if not self.index.has(keys[i])]
        if self._events is not None:
            self._events.name(request, keys[state.stored : full], state.stored)
        state.phase, state.stored = "storing", full
        if new:
            chosen = [keys[i] for i in new], [ids[i] for i in new]
            meta.saves.append(Blocks(name, self._salt(request), *chosen, _after(keys, new[0])))

    def take_counts(self) -> dict[str, float]:
        """What was decided since the last call."""
        return self._choices.take_counts() if self._choices is not None else {}

    def finished(self, request: Any) -> None:
        """The request is over, however it ended."""
        state = self._requests.pop(request.request_id, None)
        if state is not None and state.keys:
            self._hear(request, state.keys)

    def _hear(self, request: Any, keys: list[bytes]) -> None:
        """What the server says of the request's session."""
        said = getattr(request, "kv_transfer_params", None) or {}
        closed, after = said.get(CLOSED, False), said.get(NEXT_USE)
        number = isinstance(after, (int, float)) and not isinstance(after, bool) and after >= 0
        if not isinstance(closed, bool) or not (after is None or number) or (closed and number):
            log.warning(
                "kvist: expected %s: true or %s: seconds in kv_transfer_params, found %r and %r",
                CLOSED, NEXT_USE, closed, after,
            )  # fmt: skip
        elif closed or number:
            until = None if after is None else time.monotonic() + after
            self._hints.append(Hint(self._salt(request), keys, until))

    def reset(self) -> bool:
        """Has the workers forget every block; whether there are workers."""
        keys = self.index.keys()
        self.index.doubt(keys)
        self._evict += keys
        for state in self._requests.values():
            state.stored = 0
        return self._keys is not None

    def close(self) -> None:
        """Gives everything back."""
        if self._keys is not None:
            self._keys.close()
        self._requests.clear()

    # --- What is kept of requests -----------------------------------------------------------

    def phase(self, name: str) -> str | None:
        """Where a request is; none if it is gone."""
        state = self._requests.get(name)
        return state.phase if state is not None else None

    def _state(self, request: Any) -> State:
        state = self._requests.get(request.request_id)
        if state is None:
            state = self._requests[request.request_id] = State(request)
        return state

    def _salt(self, request: Any) -> bytes:
        salt = self._keys.salt(request) if self._keys is not None else None
        return salt or b""

    def _keys_of(self, state: State) -> list[bytes]:
        """Keys of the request's full blocks; none if they cannot be shared."""
        request = state.request
        if self._keys is None or not state.shared:
            return []
        known = state.keys or []
        tokens = (
            request.num_tokens if self._config.admit_decode_tokens else request.num_prompt_tokens
        )
        if state.keys is not None and tokens // self._block <= len(known):
            return known
        keys = self._keys.of(request, list(request.all_token_ids[:tokens]), known)
        state.shared = keys is not None
        state.keys = keys or []
        return state.keys


def _after(keys: list[bytes], first: int) -> tuple[bytes, bytes] | None:
    """What the store is told of where blocks `first..` of a prompt stand."""
    return (keys[first - 1], keys[1]) if first > 0 else None
