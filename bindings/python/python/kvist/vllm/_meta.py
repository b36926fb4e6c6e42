"""What the two halves of the connector tell each other; pickled, so plain data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Change = tuple[bytes, str, bool]
"""A block's key, its tier ("host" or "disk"), and whether it came or left."""


Loaded = tuple[int, int, float, float]
"""Blocks that came from memory and from disk, seconds until they were there, and seconds more until that was
noticed. No blocks: a load that the disk gave nothing for."""
Tried = tuple[bool, int, float]
"""Whether a trial read from disk, blocks, and seconds; with none it says nothing."""


@dataclass
class Blocks:
    """Blocks of one request to load or to store."""

    request: str
    salt: bytes
    keys: list[bytes]
    ids: list[int]
    """The engine's block of each key."""
    after: tuple[bytes, bytes] | None = None
    """Keys of the block before them and of the prompt's second one, unless they are the first."""


@dataclass
class Hint:
    """What a server said of a request's session when the request ended."""

    salt: bytes
    keys: list[bytes]
    until: float | None
    """When it goes on, in `time.monotonic()`; `None` if it does not."""


@dataclass
class StepMeta:
    """Scheduler to worker, every step."""

    loads: list[Blocks] = field(default_factory=list)
    saves: list[Blocks] = field(default_factory=list)
    evict: list[bytes] = field(default_factory=list)
    trials: list[Blocks] = field(default_factory=list)
    """To be read for their time, into no block of the engine."""
    computed: int = 0
    """Tokens of this step, if it is one that computes prompts."""
    hints: list[Hint] = field(default_factory=list)
    idle: bool = False
    """Whether the step computes nothing."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.loads or self.saves or self.evict or self.trials or self.hints)


@dataclass
class Hello:
    """What a worker says once, when it knows the engine's tensors."""

    rank: int
    world: int
    space: dict[str, Any]
    """Keywords of `PrefixStore.space` that keys depend on; the same in every worker."""
    block_bytes: int
    secret: bytes = field(repr=False)
    layout: str
    """What the engine's blocks were found to look like."""
    changes: list[Change] = field(default_factory=list, repr=False)
    """Every block that it has."""
    off: str | None = None
    """Why nothing is stored or loaded, if that is so."""
    tried: list[Tried] = field(default_factory=list)
    """What it read for trial before it said this."""


@dataclass
class Part:
    """What one worker says after a step."""

    rank: int
    hello: Hello | None = None
    reset: bool = False
    changes: list[Change] = field(default_factory=list)
    present: list[bytes] = field(default_factory=list)
    """Blocks that were to be stored and were there already."""
    failed: dict[str, int] = field(default_factory=dict)
    """Requests whose load failed, and how many of its leading blocks came."""
    off: str | None = None
    computed: tuple[int, float] | None = None
    """Tokens of a step that computed prompts, and its seconds."""
    loaded: list[Loaded] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    waiting: float | None = None
    """For how many seconds its oldest load has been under way, if that is to be said."""


@dataclass
class WorkerMeta:
    """Workers to scheduler, every step with something to say."""

    parts: list[Part]

    def aggregate(self, other: WorkerMeta) -> WorkerMeta:
        """Both; the order of a rank's own parts is kept."""
        return WorkerMeta(self.parts + other.parts)
