"""Which blocks the workers hold: the scheduler's copy, fed by what they report."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ._meta import Change

# Blocks asked for together: set operations run in C, and stop at the first that is missing.
CHUNK = 64
_BITS = {"host": 1, "disk": 2}

Watch = Callable[[bytes, str, bool], None]
"""Told of a key, a tier, and whether the block came to it in every worker, or left it in one."""


class Index:
    """Blocks that every one of `world` workers holds, in memory or on disk."""

    def __init__(self, world: int, watch: Watch | None = None) -> None:
        self._where: list[dict[bytes, int]] = [{} for _ in range(world)]
        self._usable: set[bytes] = set()
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
            if self._watch is not None and (not arrived or self._in(key, tier)):
                self._watch(key, tier, arrived)

    def _in(self, key: bytes, tier: str) -> bool:
        return all(where.get(key, 0) & _BITS[tier] for where in self._where)

    def doubt(self, keys: Iterable[bytes]) -> None:
        """Takes blocks for missing, whatever was reported, until a worker says otherwise."""
        self._usable.difference_update(keys)

    def believe(self, keys: Iterable[bytes]) -> None:
        """Blocks that a worker has seen: usable if all workers hold them."""
        self._usable.update(key for key in keys if all(key in where for where in self._where))

    def has(self, key: bytes) -> bool:
        """Whether every worker holds a block."""
        return key in self._usable

    def leading(self, keys: list[bytes], start: int, stop: int) -> int:
        """How many of `keys[start:stop]` there are before the first that is missing."""
        at = start
        while at < stop and self._usable.issuperset(keys[at : min(at + CHUNK, stop)]):
            at = min(at + CHUNK, stop)
        while at < stop and keys[at] in self._usable:
            at += 1
        return at - start

    def in_memory(self, key: bytes) -> bool:
        """Whether every worker holds a block in memory."""
        return self._in(key, "host")
