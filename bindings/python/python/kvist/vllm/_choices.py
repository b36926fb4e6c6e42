"""Whether stored blocks are worth loading: asks `Loading`, which decides, and keeps the figures for metrics."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable

from .._kvist import Loading
from ._index import Leading
from ._meta import Part, Tried

log = logging.getLogger("vllm.kvist")

TRIAL_BLOCKS = 4
"""Blocks of a trial, at most."""
RATES = ("prefill", "host", "disk")


class Choices:
    """Decides for the requests of an engine, and learns from what its workers measure."""

    def __init__(self, margin: float, block_tokens: int, block_bytes: int) -> None:
        self._loading = Loading(margin)
        self._block_tokens = block_tokens
        self._block_bytes = block_bytes
        self._waiting: dict[int, float] = {}
        self._declined = False
        self.counts: defaultdict[str, float] = defaultdict(float)
        """What was decided since the last `take_counts`: see `_stats`."""

    def learn(self, part: Part) -> None:
        """What a worker measured in a step."""
        if part.computed is not None:
            self._loading.computed(*part.computed)
        for near, far, seconds, lookup in part.loaded:
            if near or far:
                size = self._block_bytes
                self._loading.loaded(near * size, far * size, seconds, lookup)
            else:
                self._loading.stuck(seconds)
        self.tried(part.tried)
        if part.waiting is not None:
            self._waiting[part.rank] = part.waiting

    def tried(self, trials: Iterable[Tried]) -> None:
        """What trials read."""
        for far, blocks, seconds in trials:
            self._loading.tried(far, blocks * self._block_bytes, seconds, time.monotonic())

    def choose(self, found: Leading, asked: bool) -> int:
        """Blocks to load of those that were found. `asked`: the same request asked before, and is not
        counted again."""
        verdict, blocks, gain = self._loading.choose(
            block_tokens=self._block_tokens,
            block_bytes=self._block_bytes,
            blocks=found.blocks,
            near=found.near,
            near_first=found.near_first,
            waiting=max(self._waiting.values(), default=0.0),
        )
        if not asked:
            self._count(verdict, gain)
        return blocks

    def _count(self, verdict: str, gain: tuple[float, float, float] | None) -> None:
        self.counts[f"choices_{verdict}"] += 1
        if gain is None:
            return
        compute, lookup, transfer = gain
        self.counts["estimated_compute_time"] += compute
        self.counts["estimated_lookup_time"] += lookup
        self.counts["estimated_transfer_time"] += transfer
        if self._declined != (verdict in ("near", "compute")):
            self._declined = not self._declined
            log.info(
                "kvist: stored blocks are %s: to load them is expected to take %.3g s, to compute them %.3g s",
                "computed, for now" if self._declined else "loaded again",
                lookup + transfer,
                compute,
            )

    def trial(self, found: Leading) -> range | None:
        """Which of the found blocks to read for trial now, if any: some that are not in memory, if
        there are such."""
        if not self._loading.try_now(time.monotonic()):
            return None
        self.counts["trials"] += 1
        first = found.near_first if found.near < found.blocks else 0
        return range(first, min(first + TRIAL_BLOCKS, found.blocks))

    def take_counts(self) -> dict[str, float]:
        """What was decided since the last call, and the rates that it was decided by."""
        if not self.counts:
            return {}
        counts, self.counts = dict(self.counts), defaultdict(float)
        known = zip(RATES, self._loading.rates)
        return {**counts, **{f"rate_{name}": rate for name, rate in known if rate is not None}}
