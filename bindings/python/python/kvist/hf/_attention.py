"""The attention function registered under "kvist".

A key tensor that comes from a `KvistCache` carries a handle; its attention runs in kvist's kernels
over kvist's pages. Everything else (no cache, another cache, sliding-window layers kept by the
library's own layer) is computed from the tensors as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from .._errors import UnsupportedError
from ._masks import kvist_mask

NAME = "kvist"
"""Name of the attention implementation."""

_EAGER_QUERIES = 256
"""Queries per step of `_eager`: bounds the score matrix to a few MiB per head."""


def kvist_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of `query` `[batch, q_heads, new, dim]`; output `[batch, new, q_heads, dim_v]`.

    `softcap` (Gemma 2) and `s_aux` (gpt-oss sinks) are honoured on every path.
    """
    if kwargs.get("output_attentions"):
        raise UnsupportedError(
            "output_attentions: expected False, found True; kvist never forms the attention matrix, "
            "use attn_implementation='eager' with the model's own cache"
        )
    handle = getattr(key, "_kvist", None)
    if handle is not None:
        if dropout:
            raise UnsupportedError(
                f"attention dropout: expected 0 (call model.eval()), found {dropout}"
            )
        out = handle.attend(
            query,
            key,
            value,
            attention_mask,
            scale=scaling,
            soft_cap=softcap or 0.0,
            window=sliding_window or 0,
            sinks=s_aux,
        )
        return out, None
    if softcap is not None or s_aux is not None:
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        out = _eager(query, key, value, attention_mask, scaling, causal, softcap or 0.0, s_aux)
        return out, None
    group = query.shape[1] // key.shape[1]
    if query.shape[2] == 1 and group > 1 and query.device.type == "cpu" and not dropout:
        return _fold(query, key, value, attention_mask, scaling), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
    )


def _fold(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """One query with its GQA group folded into rows: on CPU many times faster than `enable_gqa`."""
    batch, heads, _, dim = query.shape
    rows = query.reshape(batch, key.shape[1], heads // key.shape[1], dim)
    out = scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, 1, heads, value.shape[-1])


def _eager(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    causal: bool,
    softcap: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Soft-cap and sinks in plain tensor code, a few queries at a time, softmax in f32."""
    group = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, group), repeat_kv(value, group)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    total, new = key.shape[2], query.shape[2]
    parts = []
    for at in range(0, new, _EAGER_QUERIES):
        rows = slice(at, min(at + _EAGER_QUERIES, new))
        scores = torch.matmul(query[:, :, rows], key.transpose(2, 3)).float() * scale
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        if mask is not None:
            part = mask[:, :, rows]
            if part.dtype == torch.bool:
                scores = scores.masked_fill(~part, torch.finfo(scores.dtype).min)
            else:
                scores = scores + part
        elif causal and new > 1:
            square = torch.ones(new, total, dtype=torch.bool, device=scores.device)
            visible = square.tril(total - new)[rows]
            scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
        if sinks is not None:
            column = sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, column], dim=-1)
        weights = torch.softmax(scores, dim=-1)[..., :total].to(value.dtype)
        parts.append(torch.matmul(weights, value).transpose(1, 2))
    return torch.cat(parts, dim=1)


def register() -> None:
    """Registers attention and mask under "kvist" (importing `kvist.hf` does it)."""
    AttentionInterface.register(NAME, kvist_attention)
    AttentionMaskInterface.register(NAME, kvist_mask)
