"""Results of the prefix store, and looking at its directory."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ._errors import CorruptError
from ._kvist import inspect_json, verify_json, why_json

if TYPE_CHECKING:
    from ._kvist import Sequence, Ticket

_T = TypeVar("_T")


@dataclass(frozen=True)
class Miss:
    """Why a block could not be had. Falsy."""

    reason: str
    """Its name in counters: `absent`, `evicted`, `erased`, `checksum`, `torn`, `key_mismatch`,
    `model_mismatch`, `layout_mismatch`, `version`, `codec`, `decrypt`, `io`, `timeout`, `gone`,
    `busy`, `degraded`."""
    text: str
    """The same in words."""

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True)
class Restored:
    """How much of what was asked for is there. Truthy if all of it is."""

    blocks: int
    """Leading blocks whose bytes were checked and written to the caller's memory."""
    miss: Miss | None
    """Why the next one was not, if there was one."""
    from_disk: int
    """How many of the blocks came from the disk tier."""

    def __bool__(self) -> bool:
        return self.miss is None


@dataclass(frozen=True)
class Stored:
    """What became of each block that was put."""

    each: tuple[str, ...]
    """`stored`, `present` (it was there: bytes under a key never change), `throttled` (no room in
    memory), `full`, `too_large`, `io`, `timeout`, `closed`."""

    @property
    def blocks(self) -> int:
        """Blocks that can be had now: stored, or there already."""
        return sum(one in ("stored", "present") for one in self.each)

    @property
    def refused(self) -> dict[str, int]:
        """The others, counted by reason."""
        return dict(Counter(one for one in self.each if one not in ("stored", "present")))


@dataclass(frozen=True)
class Published:
    """What became of the full blocks of a sequence that was published. Truthy if none was refused."""

    blocks: int
    """Full blocks of the tokens that the sequence has."""
    new: int
    """Those that can be found now and could not before."""
    present: int
    """Those that could be found already."""
    refused: str | None
    """Why the others cannot, if there are others: they are the last ones. `throttled` is no room."""

    def __bool__(self) -> bool:
        return self.refused is None


@dataclass(frozen=True)
class Started:
    """A sequence that has the longest known prefix of some tokens. Truthy if that is every full
    block of them."""

    sequence: Sequence
    """Its length says how many of the tokens it has."""
    shared: int
    """How many of its blocks are pages that others hold too, without a copy."""
    from_disk: int
    """How many of its blocks were read from the store's disk tier."""
    miss: Miss | None
    """Why it does not have the next block, if there is one."""

    def __bool__(self) -> bool:
        return self.miss is None


@dataclass(frozen=True)
class DiskStats:
    """What the disk tier holds and has done."""

    budget_bytes: int
    used_bytes: int
    """Bytes of files."""
    live_bytes: int
    """Bytes of records that can be read."""
    records: int
    segments: int
    index_bytes: int
    """Bytes of the index in memory."""
    parked_bytes: int
    """Bytes of buffers that the kernel has not let go of after a deadline."""
    written_bytes: int
    read_bytes: int
    evicted: int
    """Records evicted to make room."""
    moved: int
    """Records moved on because they had been read."""
    quarantined: int
    """Records that failed a check and are not served any more."""
    poisoned_segments: int
    """Segments in which a write or sync failed."""
    alien_files: int
    skipped_records: int
    """Records found damaged or cut when the directory was opened."""
    engine: str
    degraded: str | None
    """Why the tier rests, if it does: `sync`, `stuck`, `full`, `readonly`."""


@dataclass(frozen=True)
class PrefixStats:
    """A prefix store's bytes and counters."""

    host_budget_bytes: int
    host_used_bytes: int
    host_blocks: int
    lent_blocks: int
    """Of these, blocks that lie in pages of a cache, which pays for them."""
    host_evicted: int
    queued_bytes: int
    """Bytes of blocks that wait to be written to disk."""
    puts: int
    put_bytes: int
    published: int
    """Blocks published: found in a sequence, and new."""
    shared: int
    """Blocks that sequences were started with without a copy."""
    gets: int
    gets_from_disk: int
    get_bytes: int
    throttled: int
    """Blocks not written to disk because the queue was full or the tier rested."""
    not_admitted: int
    """Times that a block was not let in to the disk tier (`PrefixStore(admit=...)`)."""
    write_errors: int
    write_seconds: float
    misses: dict[str, int]
    """Why blocks could not be had, counted."""
    authenticated: bool
    """Whether what lies on disk is sealed, so that whoever can write there cannot forge it."""
    disk: DiskStats | None


def verify(
    path: str | os.PathLike[str],
    *,
    strict: bool = False,
    allow_shared_dir: bool = False,
    threads: int = 0,
    raise_on_damage: bool = False,
) -> dict[str, Any]:
    """Checks every byte of a store's directory, which may be in use; changes and locks nothing.

    Returns the report that `kvist verify --json` prints: `clean`, `damage` (each with `what`,
    `file`, `offset`, `bytes`, `key`, `check`, `means`), `notes`, counts. With `strict`, what a crash
    may leave counts as damage too; with `raise_on_damage`, damage raises `CorruptError`.
    """
    report: dict[str, Any] = json.loads(
        verify_json(os.fspath(path), strict, allow_shared_dir, threads)
    )
    if raise_on_damage and not report["clean"]:
        first = report["damage"][0]
        raise CorruptError(
            f"{report['path']}: expected it undamaged, found {len(report['damage'])} flaws; the "
            f"first in {first['file']} at byte {first['offset']}: {first['check']}"
        )
    return report


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a store's directory holds, as `kvist inspect --json` prints it."""
    found: dict[str, Any] = json.loads(inspect_json(os.fspath(path)))
    return found


def why(path: str | os.PathLike[str], key: bytes) -> dict[str, Any]:
    """Whether a block would be served from a store's directory, and if not, why."""
    found: dict[str, Any] = json.loads(why_json(os.fspath(path), key))
    return found


def awaited(ticket: Ticket[_T]) -> Generator[Any, None, _T | None]:
    """The result of `ticket.wait()`, without blocking the running event loop."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T | None] = loop.create_future()

    def done() -> None:
        if not future.done():
            future.set_result(ticket.wait(0))

    def from_any_thread() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(done)

    ticket.add_done_callback(from_any_thread)
    return future.__await__()
