import os
from collections.abc import Callable, Generator, Iterable
from collections.abc import Sequence as _Seq
from typing import Any, Generic, Literal, TypeAlias, TypeVar, final, overload

from numpy import float32, uint8, uint32
from numpy.typing import NDArray

from ._prefix import PrefixStats, Published, Restored, Started, Stored
from ._stats import Saved, SequenceStats, SessionInfo, Stats

__version__: str
__all__ = [
    "AttendInfo",
    "Buffer",
    "Cache",
    "Lease",
    "Loading",
    "Pinned",
    "Prefill",
    "Prefix",
    "PrefixStore",
    "Profile",
    "Select",
    "Sequence",
    "Space",
    "Summary",
    "Ticket",
    "View",
    "__version__",
    "_calibrate",
    "attend_pages",
    "attend_slots",
    "cuda_folders",
    "cuda_json",
    "inspect_json",
    "merge",
    "parse_bytes",
    "prefill_presets",
    "run_cli",
    "selection",
    "selection_presets",
    "top_k",
    "top_p",
    "verify_json",
    "why_json",
]

_T = TypeVar("_T")
_Select: TypeAlias = str | Select
_Profile: TypeAlias = Profile | str | os.PathLike[str]

@final
class Select:
    """A selector: a preset by name (see `selection_presets`), with its settings as keywords.

    All settings have the paper's defaults and are attributes: `Select("quest").unit_tokens`. The one
    called "boxed" is kvist's own; set its `budget` (tokens read per KV head and query, keeps
    included), `top_p` (estimated softmax mass covered), `max_missed_mass` (proven softmax mass not
    read), or a combination; `min_tokens` and `max_tokens` bound what the last two may choose.

    Raises `UnknownNameError` for unknown names, `OptionError` for unknown or impossible settings.
    """

    def __new__(cls, name: str, /, **settings: object) -> Select: ...
    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> dict[str, Any]: ...
    def __getattribute__(self, name: str, /) -> Any: ...
    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]: ...
    def __eq__(self, value: object, /) -> bool: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __lt__(self, value: object, /) -> bool: ...
    def __le__(self, value: object, /) -> bool: ...
    def __gt__(self, value: object, /) -> bool: ...
    def __ge__(self, value: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]

@final
class Prefill:
    """How the queries of a prompt read the keys: a pattern by name (see `prefill_presets`), with its
    settings as keywords. "dense" reads all.

    Raises `UnknownNameError` for unknown names, `OptionError` for unknown or impossible settings.
    """

    def __new__(cls, name: str, /, **settings: object) -> Prefill: ...
    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> dict[str, Any]: ...
    def __getattribute__(self, name: str, /) -> Any: ...
    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]: ...
    def __eq__(self, value: object, /) -> bool: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __lt__(self, value: object, /) -> bool: ...
    def __le__(self, value: object, /) -> bool: ...
    def __gt__(self, value: object, /) -> bool: ...
    def __ge__(self, value: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]

@final
class Profile:
    """How each KV head of a model is read: `dense` (every token), `streaming` (first and recent tokens) or
    `select` (what the selector picks, with the head's `share` of the budget; 1 is the mean).

    Made by `kvist.hf.calibrate` or `kvist calibrate`; `report` is what was measured then. Raises
    `OptionError` for one that is incomplete, out of range or of another version.
    """

    @staticmethod
    def from_json(text: str) -> Profile: ...
    def to_json(self) -> str: ...
    @staticmethod
    def load(path: str | os.PathLike[str]) -> Profile: ...
    def save(self, path: str | os.PathLike[str]) -> None: ...
    @staticmethod
    def duo(
        gates: _Seq[_Seq[float]],
        *,
        model: str,
        q_heads: int,
        head_dim: int,
        sparsity: float = 0.5,
    ) -> Profile: ...
    @property
    def model(self) -> str: ...
    @property
    def layers(self) -> int: ...
    @property
    def q_heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def heads(self) -> list[list[dict[str, Any]]]: ...
    @property
    def report(self) -> dict[str, Any] | None: ...
    def _check(self, model: str | None, layers: int) -> None: ...
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
        disk: tuple[str | os.PathLike[str], str | int] | None = None,
        disk_codec: str = "lossless",
        model: str | bytes | None = None,
        profile: _Profile | None = None,
        cluster_order: bool = False,
    ) -> Cache: ...
    def sequence(self) -> Sequence: ...
    def open_session(self, name: str) -> Sequence: ...
    def sessions(self) -> list[SessionInfo]: ...
    def delete_session(self, name: str) -> bool: ...
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
        scores: Any = None,
        prefill: str | Prefill | None = None,
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
        scores: Any = None,
        prefill: str | Prefill | None = None,
    ) -> tuple[Any, list[AttendInfo]]: ...
    def hint_batch(
        self,
        layer: int,
        q: Any,
        sequences: _Seq[Sequence],
        *,
        scale: float | None = None,
        soft_cap: float = 0.0,
        window: int = 0,
        scores: Any = None,
    ) -> int: ...
    @overload
    def attend_trees(
        self,
        layer: int,
        q: Any,
        sequences: _Seq[Sequence],
        parents: _Seq[Iterable[int]],
        k: Any,
        v: Any,
        *,
        info: Literal[False] = False,
        scale: float | None = None,
        soft_cap: float = 0.0,
        window: int = 0,
        sinks: Any = None,
        selected: bool | None = None,
    ) -> Any: ...
    @overload
    def attend_trees(
        self,
        layer: int,
        q: Any,
        sequences: _Seq[Sequence],
        parents: _Seq[Iterable[int]],
        k: Any,
        v: Any,
        *,
        info: bool,
        scale: float | None = None,
        soft_cap: float = 0.0,
        window: int = 0,
        sinks: Any = None,
        selected: bool | None = None,
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
    def select(self) -> Select: ...
    @property
    def profile(self) -> Profile | None: ...
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
        scores: Any = None,
        prefill: str | Prefill | None = None,
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
        scores: Any = None,
        prefill: str | Prefill | None = None,
    ) -> tuple[Any, AttendInfo]: ...
    def hint(
        self,
        layer: int,
        q: Any,
        *,
        scale: float | None = None,
        soft_cap: float = 0.0,
        window: int = 0,
        scores: Any = None,
    ) -> int: ...
    @overload
    def attend_tree(
        self,
        layer: int,
        q: Any,
        parents: Iterable[int],
        k: Any,
        v: Any,
        *,
        info: Literal[False] = False,
        scale: float | None = None,
        soft_cap: float = 0.0,
        window: int = 0,
        sinks: Any = None,
        selected: bool | None = None,
    ) -> Any: ...
    @overload
    def attend_tree(
        self,
        layer: int,
        q: Any,
        parents: Iterable[int],
        k: Any,
        v: Any,
        *,
        info: bool,
        scale: float | None = None,
        soft_cap: float = 0.0,
        window: int = 0,
        sinks: Any = None,
        selected: bool | None = None,
    ) -> tuple[Any, AttendInfo]: ...
    def fork(
        self,
        *,
        select: _Select | None = None,
        budget: int | None = None,
        profile: _Profile | None = None,
        view: View | None = None,
    ) -> Sequence: ...
    def view(self) -> View | None: ...
    def truncate(self, length: int) -> None: ...
    def read(
        self, layer: int, start: int = 0, stop: int | None = None
    ) -> tuple[NDArray[float32], NDArray[float32]]: ...
    def save(self, name: str) -> Saved: ...
    def offload(self) -> int: ...
    def restore(self, *, wait: bool = True) -> int: ...
    def layer_len(self, layer: int) -> int: ...
    def stats(self) -> SequenceStats: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def select(self) -> Select: ...
    @property
    def profile(self) -> Profile | None: ...
    def __len__(self) -> int: ...
    def __bool__(self) -> bool: ...
    def __enter__(self) -> Sequence: ...
    def __exit__(self, *_exception: object) -> None: ...
    def __reduce__(self) -> Any: ...

@final
class View:
    """What the heads of a sequence read from some length on: a draft view."""

    @staticmethod
    def from_json(text: str) -> View: ...
    def to_json(self) -> str: ...
    def head(self, layer: int, kv_head: int) -> tuple[list[int], int] | None: ...
    @property
    def layers(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    def __len__(self) -> int: ...
    def __bool__(self) -> bool: ...
    def __eq__(self, other: object, /) -> bool: ...
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

@final
class PrefixStore:
    """A content-addressed store of KV blocks in host memory and on disk."""

    def __new__(
        cls,
        host: str | int | None = "1GiB",
        disk: tuple[str | os.PathLike[str], str | int] | None = None,
        *,
        replace: str = "adaptive",
        watermarks: tuple[float, float] | None = None,
        multi_tenant: bool = False,
        verify_tokens: bool = True,
        verify_host: bool = False,
        backpressure: float = 0.0,
        key_secret: bytes | None = None,
        seal: bytes | None = None,
        segment: str | int | None = None,
        deadline: float = 10.0,
        required: bool = True,
        admit: int = 1,
        admit_rate: str | int | None = None,
        prefault: bool = False,
    ) -> PrefixStore: ...
    def space(
        self,
        *,
        model: bytes,
        layers: int,
        kv_heads: int,
        head_dim: int,
        dtype: Any,
        value_dim: int | None = None,
        block_tokens: int = 64,
        salt: bytes | None = b"",
        adapter: bytes | None = None,
        extra: bytes | None = b"",
        codec: str = "lossless",
        layer_range: tuple[int, int] | None = None,
        head_range: tuple[int, int] | None = None,
        attention: str | tuple[str, int] | None = "full",
        priority: int = 0,
    ) -> Space: ...
    def erase_tenant(self, salt: bytes) -> dict[str, int]: ...
    def set_share(self, salt: bytes, floor: float = 0.0, ceiling: float = 1.0) -> None: ...
    def hint_precision(self, source: int = 0) -> tuple[float, float]: ...
    def flush(self, timeout: float | None = None) -> bool: ...
    @property
    def key_secret(self) -> bytes: ...
    def changes(self) -> tuple[bool, list[tuple[bytes, str, bool]]]: ...
    def stats(self) -> PrefixStats: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...
    def __enter__(self) -> PrefixStore: ...
    def __exit__(self, *_exception: object) -> None: ...
    def __reduce__(self) -> Any: ...

@final
class Space:
    """The blocks of one model, layout, tenant and adapter."""

    def prefix(self, token_ids: Any, *, parent: bytes | None = None) -> Prefix: ...
    def prefix_of_keys(
        self, keys: _Seq[bytes], *, after: tuple[bytes, bytes] | None = None
    ) -> Prefix: ...
    def prefix_of_hashes(self, hashes: _Seq[bytes]) -> Prefix: ...
    def contains(self, prefix: Prefix) -> int: ...
    def put(
        self,
        prefix: Prefix,
        first: int = 0,
        blocks: Any = None,
        *,
        kv: Any = None,
        k: Any = None,
        v: Any = None,
        block_ids: Any = None,
        layout: str = "nhd",
    ) -> Stored: ...
    def get(
        self,
        prefix: Prefix,
        start: int = 0,
        blocks: Any = None,
        *,
        kv: Any = None,
        k: Any = None,
        v: Any = None,
        block_ids: Any = None,
        layout: str = "nhd",
        layers: tuple[int, int] | None = None,
    ) -> Restored: ...
    def publish(self, sequence: Sequence, token_ids: Any) -> Published: ...
    def start(self, cache: Cache, token_ids: Any) -> Started: ...
    def put_behind(
        self,
        prefix: Prefix,
        blocks: Any = None,
        *,
        kv: Any = None,
        k: Any = None,
        v: Any = None,
        block_ids: Any = None,
        layout: str = "nhd",
    ) -> Ticket[Stored]: ...
    def get_behind(
        self,
        prefix: Prefix,
        start: int = 0,
        blocks: Any = None,
        *,
        kv: Any = None,
        k: Any = None,
        v: Any = None,
        block_ids: Any = None,
        layout: str = "nhd",
    ) -> Ticket[Restored]: ...
    def prefetch(self, prefix: Prefix, start: int = 0, stop: int | None = None) -> Ticket[int]: ...
    def session_closed(self, prefix: Prefix, source: int = 0) -> None: ...
    def wanted(self, prefix: Prefix, within: float, source: int = 0) -> None: ...
    def next_use(self, prefix: Prefix, after: float, source: int = 0) -> None: ...
    def pin(self, prefix: Prefix) -> Pinned: ...
    def evict(self, blocks: Prefix | _Seq[bytes]) -> int: ...
    def lease(self, key: bytes) -> Lease | None: ...
    @property
    def block_bytes(self) -> int: ...
    @property
    def block_tokens(self) -> int: ...
    def __reduce__(self) -> Any: ...

@final
class Prefix:
    """The blocks of a token stream, in order."""

    @property
    def keys(self) -> list[bytes]: ...
    def __len__(self) -> int: ...
    def __bool__(self) -> bool: ...
    def __reduce__(self) -> Any: ...

@final
class Ticket(Generic[_T]):
    """Blocks on their way into memory. Dropping it cancels what has not begun."""

    @property
    def done(self) -> bool: ...
    @property
    def seconds(self) -> float | None: ...
    def wait(self, timeout: float | None = None) -> _T | None: ...
    def cancel(self) -> None: ...
    def add_done_callback(self, callback: Callable[[], object]) -> None: ...
    def __await__(self) -> Generator[Any, None, _T | None]: ...
    def __reduce__(self) -> Any: ...

@final
class Lease:
    """A block's bytes in canonical order, read-only, held in memory while this or an array lives."""

    @property
    def array(self) -> NDArray[uint8]: ...
    @property
    def __array_interface__(self) -> dict[str, Any]: ...
    def __len__(self) -> int: ...
    def __reduce__(self) -> Any: ...

@final
class Pinned:
    """Blocks that stay in memory until it is closed."""

    def close(self) -> None: ...
    def __len__(self) -> int: ...
    def __enter__(self) -> Pinned: ...
    def __exit__(self, *_exception: object) -> None: ...

@final
class Loading:
    """Learns how quickly prompts are computed and blocks loaded, and says which blocks to load."""

    def __new__(cls, margin: float = 0.0) -> Loading: ...
    def computed(self, tokens: int, seconds: float) -> None: ...
    def loaded(self, host_bytes: int, disk_bytes: int, seconds: float, lookup: float) -> None: ...
    def stuck(self, seconds: float) -> None: ...
    def choose(
        self,
        *,
        block_tokens: int,
        block_bytes: int,
        blocks: int,
        near: int,
        near_first: int,
        waiting: float,
    ) -> tuple[str, int, tuple[float, float, float] | None]: ...
    def try_now(self, now: float) -> bool: ...
    def tried(self, far: bool, bytes: int, seconds: float, now: float) -> None: ...
    @property
    def rates(self) -> tuple[float | None, float | None, float | None]: ...

def verify_json(
    path: str | os.PathLike[str], strict: bool, allow_shared_dir: bool, threads: int
) -> str: ...
def cuda_json() -> str: ...
def cuda_folders(
    compilers: _Seq[str | os.PathLike[str]], prebuilt: _Seq[str | os.PathLike[str]]
) -> None: ...
def inspect_json(path: str | os.PathLike[str]) -> str: ...
def why_json(path: str | os.PathLike[str], key: bytes) -> str: ...
def selection(select: _Select = "full", budget: int | None = None) -> Select: ...
def _calibrate(
    dump: str | os.PathLike[str],
    select: _Select,
    budget: int,
    steps: int,
    streaming: float | None,
    dense: float | None,
    sparsity: float | None,
    model: str | None,
) -> tuple[Profile, str]: ...
def prefill_presets() -> list[dict[str, str]]: ...
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
