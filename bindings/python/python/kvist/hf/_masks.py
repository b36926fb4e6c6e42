"""The mask function registered under "kvist", and what the attention function makes of its result.

kvist needs no 4-D mask: attention is causal over each row's own tokens, and padding is a matter of
which tokens a row owns. The mask function therefore returns `None` (no padding) or the 2-D padding
mask, tagged with a `Plan` that all layers of the forward share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.masking_utils import causal_mask_function, sdpa_mask

from .._errors import PositionError, ShapeError, UnsupportedError


class KvLength(int):
    """The length `get_mask_sizes` reports, which also tells the mask function whose it is."""

    cached: torch.Tensor | None
    past: int

    @classmethod
    def of(cls, length: int, past: int, cached: torch.Tensor | None) -> KvLength:
        """`length` tokens of which `past` are cached; `cached` `[batch, past]` marks the real ones."""
        new = cls(length)
        new.past = past
        new.cached = cached
        return new


@dataclass(frozen=True)
class Plan:
    """Which of a forward's new tokens are real, per row."""

    keep: torch.Tensor
    """`[batch, past + new]`, bool: real tokens, cached ones included."""
    rows: tuple[torch.Tensor | None, ...]
    """Per row the indices of its real new tokens; `None` is all of them."""

    @property
    def whole(self) -> bool:
        """Whether every new token of every row is real."""
        return all(row is None for row in self.rows)


def plan_of(keep: torch.Tensor, past: int, cached: torch.Tensor | None) -> Plan | None:
    """The plan of a 2-D padding mask, or `None` if nothing was ever padded.

    Raises `PositionError` if the mask changes its mind about tokens that are cached already.
    """
    before = keep[:, :past]
    known = before.all() if cached is None else torch.equal(before, cached)
    if not bool(known):
        raise PositionError(
            "attention_mask: expected the same values for tokens already in the cache, found others; "
            "padding is fixed when a token is first seen"
        )
    new = keep[:, past:]
    if cached is None and bool(new.all()):
        return None
    rows = tuple(None if bool(row.all()) else row.nonzero().flatten() for row in new)
    return Plan(keep, rows)


def kvist_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> torch.Tensor | None:
    """Mask for attention implementation "kvist".

    For a `KvistCache` layer: `None` without padding, else the bool mask `[batch, kv_length]`. For
    anything else (no cache, another cache, a sliding-window layer) what "sdpa" would get.
    """
    if not isinstance(kv_length, KvLength):
        return sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            local_size=local_size,
            allow_is_causal_skip=allow_is_causal_skip,
            **kwargs,
        )
    if not allow_is_causal_skip:
        raise UnsupportedError(
            "mask: expected causal attention with padding, found a mask of another form "
            "(packed sequences, bidirectional blocks or an overlay); use the model's own cache for it"
        )
    keep = _padding(attention_mask, batch_size, kv_length)
    if keep is None:
        return None
    plan = plan_of(keep, kv_length.past, kv_length.cached)
    if plan is None:
        return None
    keep._kvist = plan
    return keep


def _padding(mask: torch.Tensor | None, batch: int, length: KvLength) -> torch.Tensor | None:
    """The padding mask over exactly `length` tokens, or `None` if nothing is or was padded."""
    if mask is None:
        if length.cached is None:
            return None
        new = torch.ones(batch, length - length.past, dtype=torch.bool)
        return torch.cat([length.cached, new], dim=1)
    if mask.shape[0] != batch or mask.shape[1] < length:
        raise ShapeError(
            f"attention_mask: expected [{batch}, {int(length)}] (cached and new tokens), "
            f"found {list(mask.shape)}"
        )
    # A caller may pass a mask for tokens still to come: what counts is the part seen so far.
    return mask[:, : int(length)].to(device="cpu", dtype=torch.bool)


def plan_of_tensor(
    mask: torch.Tensor | None, new: int, past: int, cached: torch.Tensor | None
) -> Plan | None:
    """The plan behind whatever mask reaches the attention function.

    Masks made by `kvist_mask` carry their plan. A caller's own 4-D mask is used if it is causal plus
    padding; anything else raises `UnsupportedError`.
    """
    if mask is None:
        if cached is None:
            return None
        keep = torch.cat([cached, torch.ones(len(cached), new, dtype=torch.bool)], dim=1)
        return Plan(keep, (None,) * len(cached))
    plan = getattr(mask, "_kvist", None)
    if plan is not None:
        return plan
    # Plans are made on the CPU, wherever the model is.
    mask = mask.cpu()
    visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    if visible.ndim == 2 and visible.shape[1] == past + new:
        return plan_of(visible, past, cached)
    if visible.ndim != 4 or visible.shape[2] != new or visible.shape[3] != past + new:
        raise ShapeError(
            f"attention_mask: expected [batch, 1, {new}, {past + new}], found {list(mask.shape)}"
        )
    # The last query sees every real token, unless it is padding itself: then any query does.
    keep = visible.any(dim=1).any(dim=1)
    causal = torch.ones(new, past + new, dtype=torch.bool).tril(past)
    expected = causal[None, None] & keep[:, None, None, :]
    real = keep[:, None, past:, None]
    if not torch.equal((visible & real), (expected & real).expand_as(visible)):
        raise UnsupportedError(
            "attention_mask: expected a causal mask with padding, found a 4-D mask of another form"
        )
    return plan_of(keep, past, cached)
