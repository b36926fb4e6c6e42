"""kvist's kernels over tensors that stay yours: attention over page and slot lists, scoring, selection.

Keys and values are pools of frames, `[frames, page_tokens, kv_heads, dim]` (layout "NHD") or
`[frames, kv_heads, page_tokens, dim]` ("HND"), any strides with a dense last dimension; lists say
which frames or slots (`frame * page_tokens + offset`) a sequence reads. Tensors are NumPy arrays or
speak DLPack on the CPU; lists are anything NumPy turns into integers. Outputs come back in the
query's library and dtype, the log-sum-exp as f32 NumPy array, natural log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _kvist as _k
from ._errors import DTypeError, RangeError, UnknownNameError

Summary = _k.Summary
"""Digests of keys `[tokens, kv_heads, dim]` that are scored instead of the keys.

`Summary(keys, kind, unit_tokens=16, planes=3)`, kinds "box" (upper bound of q.k per unit), "mean",
"moment2" (mean and variance) and "boxed" (bit planes: an estimate per token of every complete tile
of 64). `summary.score(q)` gives `[q_heads, units]` in units of q.k, unscaled.
"""


def _ids(values: ArrayLike, what: str) -> NDArray[np.uint32]:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise DTypeError(f"{what}: expected integers, found {array.dtype}")
    if array.size and (array.min() < 0 or array.max() >= 2**32):
        raise RangeError(f"{what}: expected 0..2^32, found {array.min()}..{array.max()}")
    return np.require(array, np.uint32, ["C", "A"])


def _optional(values: ArrayLike | None, what: str) -> NDArray[np.uint32] | None:
    return None if values is None else _ids(values, what)


def _common(
    layout: str,
    query_indptr: ArrayLike | None,
    query_positions: ArrayLike | None,
    **params: Any,
) -> dict[str, Any]:
    if layout not in ("NHD", "HND"):
        raise UnknownNameError(f"layout: expected 'NHD' or 'HND', found {layout!r}")
    return {
        "heads_first": layout == "HND",
        "query_indptr": _optional(query_indptr, "query_indptr"),
        "query_positions": _optional(query_positions, "query_positions"),
        **params,
    }


def attend_pages(
    q: Any,
    k: Any,
    v: Any,
    indptr: ArrayLike,
    frames: ArrayLike,
    lens: ArrayLike,
    *,
    layout: str = "NHD",
    query_indptr: ArrayLike | None = None,
    query_positions: ArrayLike | None = None,
    first_positions: ArrayLike | None = None,
    per_head: bool = False,
    scale: float | None = None,
    soft_cap: float = 0.0,
    window: int = 0,
    causal: bool = False,
    sinks: Any = None,
    threads: int = 1,
) -> tuple[Any, NDArray[np.float32]]:
    """Attention of `q` `[queries, q_heads, dim]` over pages: `(o, lse)`.

    List `i` reads `frames[indptr[i]:indptr[i + 1]]`, `lens[i]` tokens of them; there is one list per
    sequence, or with `per_head` one per (sequence, KV head). `query_indptr` says which queries belong
    to which sequence (default: one each, or all to the only one; with `per_head` one sequence).
    `query_positions` (needed for `causal` and `window`) and `first_positions` are absolute.
    """
    common = _common(
        layout, query_indptr, query_positions, per_head=per_head, threads=threads,
        scale=scale, soft_cap=soft_cap, window=window, causal=causal, sinks=sinks,
    )  # fmt: skip
    return _k.attend_pages(
        q, k, v, _ids(indptr, "indptr"), _ids(frames, "frames"), _ids(lens, "lens"),
        _optional(first_positions, "first_positions"), common,
    )  # fmt: skip


def attend_slots(
    q: Any,
    k: Any,
    v: Any,
    indptr: ArrayLike,
    slots: ArrayLike,
    *,
    positions: ArrayLike | None = None,
    layout: str = "NHD",
    query_indptr: ArrayLike | None = None,
    query_positions: ArrayLike | None = None,
    per_head: bool = False,
    scale: float | None = None,
    soft_cap: float = 0.0,
    window: int = 0,
    causal: bool = False,
    sinks: Any = None,
    threads: int = 1,
) -> tuple[Any, NDArray[np.float32]]:
    """Attention of `q` over single tokens: as `attend_pages`, with slots for frames.

    `positions` (one per slot) is needed for `causal` and `window`.
    """
    common = _common(
        layout, query_indptr, query_positions, per_head=per_head, threads=threads,
        scale=scale, soft_cap=soft_cap, window=window, causal=causal, sinks=sinks,
    )  # fmt: skip
    return _k.attend_slots(
        q, k, v, _ids(indptr, "indptr"), _ids(slots, "slots"),
        _optional(positions, "positions"), common,
    )  # fmt: skip


def merge(parts: Sequence[tuple[Any, Any]]) -> tuple[Any, NDArray[np.float32]]:
    """Joins partial results `(o [queries, q_heads, dim], lse [queries, q_heads])` over disjoint sets of
    tokens into `(o, lse)`, f32."""
    return _k.merge(list(parts))


def box_bound(q: Any, keys: Any, unit_tokens: int = 16) -> NDArray[np.float32]:
    """Quest's upper bound of q.k over units of `keys` `[tokens, kv_heads, dim]`: `[q_heads, units]`."""
    return Summary(keys, "box", unit_tokens=unit_tokens).score(q)


def mean(q: Any, keys: Any, unit_tokens: int = 16) -> NDArray[np.float32]:
    """Mean of q.k over each unit: `[q_heads, units]`."""
    return Summary(keys, "mean", unit_tokens=unit_tokens).score(q)


def moment2(
    q: Any, keys: Any, unit_tokens: int = 16, scale: float | None = None
) -> NDArray[np.float32]:
    """Mean plus half the scaled variance of q.k over each unit: times the scale, plus ln of the unit's
    tokens, it estimates the unit's log-mass. `[q_heads, units]`."""
    return Summary(keys, "moment2", unit_tokens=unit_tokens).score(q, scale=scale)


def top_k(weights: Any, k: int, forced: Sequence[tuple[int, int]] = ()) -> NDArray[np.uint32]:
    """Ids of the `k` largest of `weights` `[units]`, ascending; ties to the lower id, NaN first.

    `forced` ranges `(from, to)`, ascending and disjoint, are always taken and are part of `k`.
    """
    return _k.top_k(weights, k, list(forced))


def top_p(
    weights: Any,
    target: float,
    least: int = 0,
    most: int | None = None,
    forced: Sequence[tuple[int, int]] = (),
) -> tuple[NDArray[np.uint32], float]:
    """Ids of the fewest largest `weights` (masses, not negative) that sum to `target`, and their sum;
    at least `least` and at most `most` of them."""
    return _k.top_p(weights, target, least, most, list(forced))


__all__ = [
    "Summary", "attend_pages", "attend_slots", "box_bound", "mean", "merge", "moment2", "top_k",
    "top_p",
]  # fmt: skip
