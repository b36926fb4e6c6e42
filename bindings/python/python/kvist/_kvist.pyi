from collections.abc import Sequence as _Seq
from typing import Any, Literal, TypeAlias, final, overload

from numpy import float32, uint32
from numpy.typing import NDArray

from ._stats import SequenceStats, Stats

__version__: str
__all__ = [
    "AttendInfo",
    "Boxed",
    "Buffer",
    "Cache",
    "Full",
    "Quest",
    "Sequence",
    "Summary",
    "__version__",
    "attend_pages",
    "attend_slots",
    "merge",
    "parse_bytes",
    "run_cli",
    "selection",
    "selection_presets",
    "top_k",
    "top_p",
]

_Select: TypeAlias = str | Full | Quest | Boxed

@final
class Full:
    """Dense attention over every token."""

    def __new__(cls) -> Full: ...
    def __eq__(self, value: object, /) -> bool: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __lt__(self, value: object, /) -> bool: ...
    def __le__(self, value: object, /) -> bool: ...
    def __gt__(self, value: object, /) -> bool: ...
    def __ge__(self, value: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]

@final
class Quest:
    """Quest: units of consecutive tokens ranked by the bound of their key box."""

    def __new__(cls, *, budget: int = 1024, unit_tokens: int = 16) -> Quest: ...
    @property
    def budget(self) -> int: ...
    @property
    def unit_tokens(self) -> int: ...
    def __eq__(self, value: object, /) -> bool: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __lt__(self, value: object, /) -> bool: ...
    def __le__(self, value: object, /) -> bool: ...
    def __gt__(self, value: object, /) -> bool: ...
    def __ge__(self, value: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]

@final
class Boxed:
    """kvist's own selector: tokens ranked by nested bit planes inside key boxes.

    Set `budget` (tokens read per KV head and query, keeps included), `top_p` (estimated softmax
    mass covered), `max_missed_mass` (proven softmax mass not read), or a combination. `planes`
    defaults to 3, to 4 with `max_missed_mass`.  `min_tokens` and `max_tokens` bound what `top_p`
    and `max_missed_mass` may choose.
    """

    def __new__(
        cls,
        *,
        planes: int | None = None,
        budget: int | None = None,
        top_p: float | None = None,
        max_missed_mass: float | None = None,
        min_tokens: int | None = None,
        max_tokens: int | None = None,
        sinks: int = 16,
        recent: int = 64,
    ) -> Boxed: ...
    @property
    def planes(self) -> int: ...
    @property
    def budget(self) -> int | None: ...
    @property
    def top_p(self) -> float | None: ...
    @property
    def max_missed_mass(self) -> float | None: ...
    @property
    def min_tokens(self) -> int | None: ...
    @property
    def max_tokens(self) -> int | None: ...
    @property
    def sinks(self) -> int: ...
    @property
    def recent(self) -> int: ...
    def __eq__(self, value: object, /) -> bool: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __lt__(self, value: object, /) -> bool: ...
    def __le__(self, value: object, /) -> bool: ...
    def __gt__(self, value: object, /) -> bool: ...
    def __ge__(self, value: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]

@final
class AttendInfo:
    """What one `attend` read and proved, for one sequence."""

    @property
    def lse(self) -> NDArray[float32]: ...
    @property
    def tokens_read(self) -> NDArray[uint32]: ...
    @property
    def missed_mass_bound(self) -> NDArray[float32] | None: ...
    @property
    def selected(self) -> list[NDArray[uint32]] | None: ...
    @property
    def bytes_read(self) -> dict[str, int]: ...

@final
class Cache:
    """The KV cache of one model: pages of all its sequences under one byte budget."""

    def __new__(
        cls,
        *,
        layers: int,
        q_heads: int,
        kv_heads: int,
        head_dim: int,
        dtype: Any,
        value_dim: int | None = None,
        page_tokens: int = 64,
        host: str | int | None = "1GiB",
        select: _Select = "full",
        budget: int | None = None,
        dense_layers: _Seq[int] = (),
        threads: int | None = None,
    ) -> Cache: ...
    def sequence(self) -> Sequence: ...
    @overload
    def attend_batch(
        self,
        layer: int,
        q: Any,
        sequences: _Seq[Sequence],
        *,
        queries: _Seq[int] | None = None,
        info: Literal[False] = False,
        scale: float | None = None,
        soft_cap: float = 0.0,
        window: int = 0,
        sinks: Any = None,
        selected: bool | None = None,
        bound: bool | None = None,
    ) -> Any: ...
    @overload
    def attend_batch(
        self,
        layer: int,
        q: Any,
        sequences: _Seq[Sequence],
        *,
        queries: _Seq[int] | None = None,
        info: bool,
        scale: float | None = None,
        soft_cap: float = 0.0,
        window: int = 0,
        sinks: Any = None,
        selected: bool | None = None,
        bound: bool | None = None,
    ) -> tuple[Any, list[AttendInfo]]: ...
    def stats(self) -> Stats: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def layers(self) -> int: ...
    @property
    def q_heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def value_dim(self) -> int: ...
    @property
    def page_tokens(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def select(self) -> Full | Quest | Boxed: ...
    def __enter__(self) -> Cache: ...
    def __exit__(self, *_exception: object) -> None: ...
    def __reduce__(self) -> Any: ...

@final
class Sequence:
    """One token stream: append to its layers, attend over them, fork it."""

    def append(self, layer: int, k: Any, v: Any, *, position: int | None = None) -> None: ...
    @overload
    def attend(
        self,
        layer: int,
        q: Any,
        *,
        info: Literal[False] = False,
        scale: float | None = None,
        soft_cap: float = 0.0,
        window: int = 0,
        sinks: Any = None,
        selected: bool | None = None,
        bound: bool | None = None,
    ) -> Any: ...
    @overload
    def attend(
        self,
        layer: int,
        q: Any,
        *,
        info: bool,
        scale: float | None = None,
        soft_cap: float = 0.0,
        window: int = 0,
        sinks: Any = None,
        selected: bool | None = None,
        bound: bool | None = None,
    ) -> tuple[Any, AttendInfo]: ...
    def fork(self, *, select: _Select | None = None, budget: int | None = None) -> Sequence: ...
    def truncate(self, length: int) -> None: ...
    def read(
        self, layer: int, start: int = 0, stop: int | None = None
    ) -> tuple[NDArray[float32], NDArray[float32]]: ...
    def layer_len(self, layer: int) -> int: ...
    def stats(self) -> SequenceStats: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def select(self) -> Full | Quest | Boxed: ...
    def __len__(self) -> int: ...
    def __bool__(self) -> bool: ...
    def __enter__(self) -> Sequence: ...
    def __exit__(self, *_exception: object) -> None: ...
    def __reduce__(self) -> Any: ...

@final
class Buffer:
    """Memory of a result, for libraries that ask for it."""

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: Any = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    @property
    def __array_interface__(self) -> dict[str, Any]: ...

@final
class Summary:
    """The summaries of one layer's keys, all KV heads."""

    def __new__(
        cls, keys: Any, kind: str = "box", *, unit_tokens: int = 16, planes: int = 3
    ) -> Summary: ...
    def score(self, q: Any, *, scale: float | None = None) -> NDArray[float32]: ...
    @property
    def units(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def kind(self) -> str: ...

def selection(select: _Select = "full", budget: int | None = None) -> Full | Quest | Boxed: ...
def selection_presets() -> list[dict[str, str]]: ...
def parse_bytes(size: str | int) -> int: ...
def run_cli(args: list[str]) -> int: ...
def attend_pages(
    q: Any,
    k: Any,
    v: Any,
    indptr: Any,
    frames: Any,
    lens: Any,
    first_positions: Any,
    common: dict[str, Any],
) -> tuple[Any, NDArray[float32]]: ...
def attend_slots(
    q: Any,
    k: Any,
    v: Any,
    indptr: Any,
    slots: Any,
    positions: Any,
    common: dict[str, Any],
) -> tuple[Any, NDArray[float32]]: ...
def merge(parts: list[tuple[Any, Any]]) -> tuple[Any, NDArray[float32]]: ...
def top_k(weights: Any, k: int, forced: list[tuple[int, int]]) -> NDArray[uint32]: ...
def top_p(
    weights: Any, target: float, least: int, most: int | None, forced: list[tuple[int, int]]
) -> tuple[NDArray[uint32], float]: ...
