"""Which blocks the workers hold: the scheduler's copy, fed by what they report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ._meta import Change

# Blocks asked for together: set operations run in C, and stop at the first that is missing.
CHUNK = 128
_BITS = {"host": 1, "disk": 2}

Watch = Callable[[bytes, str, bool], None]
"""Told of a key, a tier, and whether the block came to it in every worker, or left it in one."""


class Leading(NamedTuple):
    """Blocks that there are, one after the other."""

    blocks: int
    near: int
    """Those of them that are in memory."""
    near_first: int
    """Those before the first that is not."""


def _run(held: set[bytes], keys: list[bytes], at: int, stop: int) -> int:
    """Where the first of `keys[at:stop]` is that is not held."""
    while at < stop and held.issuperset(keys[at : min(at + CHUNK, stop)]):
        at = min(at + CHUNK, stop)
    while at < stop and keys[at] in held:
        at += 1
    return at


class Index:
    """Blocks that every one of `world` workers holds, in memory or on disk."""

    def __init__(self, world: int, watch: Watch | None = None) -> None:
        self._where: list[dict[bytes, int]] = [{} for _ in range(world)]
        self._usable: set[bytes] = set()
        self._near: set[bytes] = set()
        """Those that are usable and in memory."""
        self._watch = watch

    def __len__(self) -> int:
        return len(self._usable)

    def keys(self) -> list[bytes]:
        """Every block that some worker holds."""
        return list(set().union(*self._where))

    def apply(self, rank: int, reset: bool, changes: Iterable[Change]) -> None:
        """Follows what a worker reports. With `reset`, what it reported before is void."""
        where = self._where[rank]
        if reset:
            held = list(where.items())
            gone = [
                (key, tier, False) for key, bits in held for tier in _BITS if bits & _BITS[tier]
            ]
            self.apply(rank, False, gone)
        for key, tier, arrived in changes:
            bits = where.get(key, 0)
            bits = bits | _BITS[tier] if arrived else bits & ~_BITS[tier]
            if bits:
                where[key] = bits
                self.believe([key])
            else:
                where.pop(key, None)
                self._usable.discard(key)
            if tier == "host" and not arrived:
                self._near.discard(key)
            if self._watch is not None and (not arrived or self._in(key, tier)):
                self._watch(key, tier, arrived)

    def _in(self, key: bytes, tier: str) -> bool:
        return all(where.get(key, 0) & _BITS[tier] for where in self._where)

    def doubt(self, keys: Iterable[bytes]) -> None:
        """Takes blocks for missing, whatever was reported, until a worker says otherwise."""
        gone = list(keys)
        self._usable.difference_update(gone)
        self._near.difference_update(gone)

    def believe(self, keys: Iterable[bytes]) -> None:
        """Blocks that a worker has seen: usable if all workers hold them."""
        for key in keys:
            if all(key in where for where in self._where):
                self._usable.add(key)
                if self.in_memory(key):
                    self._near.add(key)

    def has(self, key: bytes) -> bool:
        """Whether every worker holds a block."""
        return key in self._usable

    def leading(self, keys: list[bytes], start: int, stop: int) -> Leading:
        """Of `keys[start:stop]`, those before the first that is missing."""
        far = _run(self._near, keys, start, stop)
        end = _run(self._usable, keys, far, stop)
        near = far - start + len(self._near.intersection(keys[far:end]))
        return Leading(end - start, near, far - start)

    def in_memory(self, key: bytes) -> bool:
        """Whether every worker holds a block in memory."""
        return self._in(key, "host")
