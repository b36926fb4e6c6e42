"""Which blocks the workers hold: the scheduler's copy, fed by what they report."""

from __future__ import annotations

from collections.abc import Iterable

from ._meta import Change

# Blocks asked for together: set operations run in C, and stop at the first that is missing.
CHUNK = 64
_BITS = {"host": 1, "disk": 2}


class Index:
    """Blocks that every one of `world` workers holds, in memory or on disk."""

    def __init__(self, world: int) -> None:
        self._where: list[dict[bytes, int]] = [{} for _ in range(world)]
        self._everywhere: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._everywhere)

    def keys(self) -> list[bytes]:
        """Every block that some worker holds."""
        return list(set().union(*self._where))

    def apply(self, rank: int, reset: bool, changes: Iterable[Change]) -> None:
        """Follows what a worker reports. With `reset`, what it reported before is void."""
        where = self._where[rank]
        if reset:
            self._everywhere.difference_update(where)
            where.clear()
        for key, tier, arrived in changes:
            bits = where.get(key, 0)
            bits = bits | _BITS[tier] if arrived else bits & ~_BITS[tier]
            if bits:
                where[key] = bits
                if all(key in other for other in self._where):
                    self._everywhere.add(key)
            else:
                where.pop(key, None)
                self._everywhere.discard(key)

    def forget(self, keys: Iterable[bytes]) -> None:
        """Takes blocks for missing, whatever was reported."""
        for key in keys:
            self._everywhere.discard(key)
            for where in self._where:
                where.pop(key, None)

    def has(self, key: bytes) -> bool:
        """Whether every worker holds a block."""
        return key in self._everywhere

    def leading(self, keys: list[bytes], start: int, stop: int) -> int:
        """How many of `keys[start:stop]` there are before the first that is missing."""
        at = start
        while at < stop and self._everywhere.issuperset(keys[at : min(at + CHUNK, stop)]):
            at = min(at + CHUNK, stop)
        while at < stop and keys[at] in self._everywhere:
            at += 1
        return at - start

    def in_memory(self, key: bytes) -> bool:
        """Whether every worker holds a block in memory."""
        return all(where.get(key, 0) & _BITS["host"] for where in self._where)
