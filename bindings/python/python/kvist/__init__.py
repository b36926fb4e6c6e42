"""kvist: the key-value cache of long-context language models, in pages, read by need.

    cache = kvist.Cache(layers=30, q_heads=9, kv_heads=3, head_dim=64, dtype="bf16",
                        host="2GiB", select="boxed", budget=1024)
    seq = cache.sequence()
    seq.append(layer, k, v)                      # [tokens, kv_heads, head_dim]
    out = seq.attend(layer, q)                   # [q_heads, head_dim] or [queries, q_heads, head_dim]
    out, info = seq.attend(layer, q, info=True)  # what was read, and what was proven

    store = kvist.PrefixStore(host="8GiB", disk=("/var/cache/kvist", "200GiB"))
    space = store.space(model=weights_hash, layers=32, kv_heads=8, head_dim=128, dtype="bf16",
                        salt=tenant)                           # blocks by the content they came from
    prefix = space.prefix(token_ids)
    space.put(prefix, 0, kv=kv_cache, block_ids=ids)           # an engine's own tensors, any strides
    restored = space.get(prefix, 0, kv=kv_cache, block_ids=ids)  # bit-identical, or a miss
    space.publish(seq, token_ids)                              # a sequence's pages, without a copy
    started = space.start(cache, token_ids)                    # one that has what is known of these

Tensors are NumPy arrays (with `ml_dtypes.bfloat16`) or anything that speaks DLPack on the CPU, and
are read in place. `append`, `attend`, `hint` and their like take CUDA tensors too: they are copied to the
host, and results come back to the GPU. `kvist.hf` plugs into transformers, `kvist.kernels` is for people who keep their
own cache, `kvist.cuda` says what the machine has for kernels on GPUs.
"""

from . import cuda
from ._errors import (
    BudgetError,
    ClosedError,
    CorruptError,
    DeviceError,
    DTypeError,
    ForkedError,
    InUseError,
    KvistError,
    OptionError,
    PositionError,
    RangeError,
    ShapeError,
    StoreError,
    StorePermissionError,
    UnknownNameError,
    UnsupportedError,
    VersionError,
)
from ._kvist import (
    AttendInfo,
    Cache,
    Lease,
    Pinned,
    Prefill,
    Prefix,
    PrefixStore,
    Profile,
    Select,
    Sequence,
    Space,
    Ticket,
    View,
    __version__,
    parse_bytes,
    prefill_presets,
    selection,
    selection_presets,
)
from ._prefix import (
    DiskStats,
    Miss,
    PrefixStats,
    Published,
    Restored,
    Started,
    Stored,
    inspect,
    verify,
    why,
)
from ._stats import DeviceUse, Saved, SequenceStats, SessionInfo, Stats

__all__ = [
    "AttendInfo",
    "BudgetError",
    "Cache",
    "ClosedError",
    "CorruptError",
    "DTypeError",
    "DeviceError",
    "DeviceUse",
    "DiskStats",
    "ForkedError",
    "InUseError",
    "KvistError",
    "Lease",
    "Miss",
    "OptionError",
    "Pinned",
    "PositionError",
    "Prefill",
    "Prefix",
    "PrefixStats",
    "PrefixStore",
    "Profile",
    "Published",
    "RangeError",
    "Restored",
    "Saved",
    "Select",
    "Sequence",
    "SequenceStats",
    "SessionInfo",
    "ShapeError",
    "Space",
    "Started",
    "Stats",
    "StoreError",
    "StorePermissionError",
    "Stored",
    "Ticket",
    "UnknownNameError",
    "UnsupportedError",
    "VersionError",
    "View",
    "__version__",
    "cuda",
    "inspect",
    "parse_bytes",
    "prefill_presets",
    "selection",
    "selection_presets",
    "verify",
    "why",
]
