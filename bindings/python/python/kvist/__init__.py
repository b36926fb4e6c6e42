"""kvist: the key-value cache of long-context language models, in pages, read by need.

    cache = kvist.Cache(layers=30, q_heads=9, kv_heads=3, head_dim=64, dtype="bf16",
                        host="2GiB", select="boxed", budget=1024)
    seq = cache.sequence()
    seq.append(layer, k, v)                      # [tokens, kv_heads, head_dim]
    out = seq.attend(layer, q)                   # [q_heads, head_dim] or [queries, q_heads, head_dim]
    out, info = seq.attend(layer, q, info=True)  # what was read, and what was proven

Tensors are NumPy arrays (with `ml_dtypes.bfloat16`) or anything that speaks DLPack on the CPU, and
are read in place. `kvist.hf` plugs into transformers, `kvist.kernels` is for people who keep their
own cache.
"""

from ._errors import (
    BudgetError,
    ClosedError,
    DTypeError,
    KvistError,
    OptionError,
    PositionError,
    RangeError,
    ShapeError,
    UnknownNameError,
    UnsupportedError,
)
from ._kvist import (
    AttendInfo,
    Boxed,
    Cache,
    Full,
    Quest,
    Sequence,
    __version__,
    parse_bytes,
    selection,
    selection_presets,
)
from ._stats import SequenceStats, Stats

__all__ = [
    "AttendInfo",
    "Boxed",
    "BudgetError",
    "Cache",
    "ClosedError",
    "DTypeError",
    "Full",
    "KvistError",
    "OptionError",
    "PositionError",
    "Quest",
    "RangeError",
    "Sequence",
    "SequenceStats",
    "ShapeError",
    "Stats",
    "UnknownNameError",
    "UnsupportedError",
    "__version__",
    "parse_bytes",
    "selection",
    "selection_presets",
]
