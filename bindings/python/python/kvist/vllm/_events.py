"""Which blocks came to kvist's tiers and left them, in the engine's own names, for routers.

A router knows blocks by the engine's hashes and tokens; the workers report kvist's keys. The name of a key
is known from the first request that has it on, so blocks of an earlier process are announced when a
request asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Name:
    """A block as the engine knows it."""

    hash: bytes
    parent: bytes | None
    tokens: tuple[int, ...]
    lora: tuple[int, str] | None


@dataclass(frozen=True)
class Event:
    """A block came to a tier ("host" or "disk"), or left it."""

    name: Name
    tier: str
    stored: bool


class Events:
    """Events since they were last taken. A block is announced once in each tier until it leaves it."""

    def __init__(self, block_tokens: int, hash_tokens: int) -> None:
        self._block = block_tokens
        # The engine may hash shorter pieces than its blocks.
        self._hashes = block_tokens // hash_tokens
        self._names: dict[bytes, Name] = {}
        self._live: dict[str, set[bytes]] = {"host": set(), "disk": set()}
        self._said: dict[str, set[bytes]] = {"host": set(), "disk": set()}
        self._events: list[Event] = []

    def name(self, request: Any, keys: Sequence[bytes], first: int) -> None:
        """`keys` are those of the request's blocks `first`, `first + 1`, ..."""
        lora = request.lora_request
        adapter = None if lora is None else (lora.lora_int_id, lora.lora_name)
        for i, key in enumerate(keys, first):
            end = (i + 1) * self._hashes
            if key in self._names or end > len(request.block_hashes):
                continue
            parent = request.block_hashes[i * self._hashes - 1] if i else None
            tokens = tuple(request.all_token_ids[i * self._block : (i + 1) * self._block])
            self._names[key] = Name(request.block_hashes[end - 1], parent, tokens, adapter)
            for tier, live in self._live.items():
                if key in live:
                    self._say(key, tier, True)

    def follow(self, key: bytes, tier: str, arrived: bool) -> None:
        """A block came to a tier in every worker, or left it in one."""
        live = self._live[tier]
        if arrived == (key in live):
            return
        if arrived:
            live.add(key)
        else:
            live.discard(key)
        self._say(key, tier, arrived)
        if not any(key in live for live in self._live.values()):
            self._names.pop(key, None)

    def _say(self, key: bytes, tier: str, stored: bool) -> None:
        said = self._said[tier]
        if key not in self._names or stored == (key in said):
            return
        if stored:
            said.add(key)
        else:
            said.discard(key)
        self._events.append(Event(self._names[key], tier, stored))

    def take(self) -> list[Event]:
        """What happened since the last call, in order."""
        events, self._events = self._events, []
        return events
