"""Snapshots of what a cache or a sequence holds and has done."""

from __future__ import annotations

import builtins
from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """A cache's bytes and counters."""

    budget_bytes: int
    """The host tier's byte budget."""
    used_bytes: int
    """Bytes charged to it: pages, summaries and overhead."""
    page_bytes: int
    """Bytes of pages in use; a page shared by forks counts once."""
    cluster_bytes: int
    """The part of these that are rows in the order of clusters."""
    summary_bytes: int
    """Bytes of summaries in use."""
    overhead_bytes: int
    """Bytes of tables and handles."""
    tokens_appended: int
    """Tokens appended, summed over layers."""
    queries: int
    """Queries attended, summed over layers."""
    tokens_dense: int
    """Tokens dense attention would have read for them, summed over KV heads."""
    tokens_read: int
    """Tokens that were read for them, summed over KV heads."""
    bytes_read: int
    """Bytes of summaries, keys and values read for them."""


@dataclass(frozen=True)
class DeviceUse:
    """What the GPU beside a cache holds and has done."""

    name: str
    """The GPU's name; empty if there never was one."""
    budget_bytes: int
    """Bytes of all its frames."""
    used_bytes: int
    """Bytes of those in use."""
    page_hits: int
    """Pages that calls found in frames."""
    page_misses: int
    """Pages that they did not."""
    copied_bytes: int
    """Bytes copied to frames."""
    prefetched: int
    """Pages copied before anybody asked for them."""
    pages_in_place: int
    """Pages that kernels read in host memory."""
    pages_on_cpu: int
    """Pages that the CPU read beside the GPU."""
    calls: int
    """Calls that the GPU did."""
    selections: int
    """Calls for which the GPU chose what to read."""
    calls_on_cpu: int
    """Calls that the CPU did in its place."""
    degraded: str | None
    """Why the CPU does its work now, if it does."""
    degraded_seconds: int | None
    """How long it has."""


@dataclass(frozen=True)
class SequenceStats:
    """One sequence's bytes, shared pages included."""

    tokens: int
    """Tokens present in every layer."""
    page_bytes: int
    summary_bytes: int
    overhead_bytes: int

    @property
    def bytes(self) -> int:
        """All of them."""
        return self.page_bytes + self.summary_bytes + self.overhead_bytes


@dataclass(frozen=True)
class Saved:
    """What saving a session came to."""

    tokens: int
    """Tokens present in every layer."""
    bytes: int
    """Bytes of the session on disk."""
    written: int
    """Those of them that were written now."""


@dataclass(frozen=True)
class SessionInfo:
    """A saved session."""

    name: str
    tokens: int
    """Tokens present in every layer."""
    bytes: int
    """Bytes on disk; its records may be shared with other sessions."""
    written: int
    """When it was saved, in seconds since 1970."""
    model: builtins.bytes
    """The model it was saved for."""
    missing: str | None
    """Why its file cannot be read, if it cannot. The other fields say nothing then."""
