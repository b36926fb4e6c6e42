"""Profiles of a model: how each of its KV heads is read, from what it attends to on real text."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

import kvist

from .._errors import OptionError, ShapeError
from .._kvist import _calibrate
from ._dump import dump


def calibrate(
    model: PreTrainedModel,
    text: str | torch.Tensor,
    *,
    budget: int = 1024,
    select: str | kvist.Select = "boxed",
    tokenizer: Any = None,
    queries: int = 96,
    steps: int = 48,
    streaming: float | None = 0.99,
    dense: float | None = 0.125,
    sparsity: float | None = None,
) -> kvist.Profile:
    """A profile of `model` for `KvistCache.for_model(model, select=..., budget=..., profile=...)`.

    `text`: token ids `[tokens]` or `[1, tokens]`, or a text with its `tokenizer`; as long as contexts will
    be, and of their kind. Its last `queries` positions are looked at, `steps` of them against exact
    attention. `streaming`: mass that first and recent tokens must cover at the worst steps of a head that
    reads nothing else; `dense`: part of the context that the effective support of a head exceeds that
    reads everything; `None` switches either off. The other heads share the budget by need. `sparsity`:
    DuoAttention instead, with this share of the heads streaming.

    `report` of the profile says what is expected of it: missed mass of each class and head, before and after,
    at the same number of tokens in all. Raises `OptionError` for bad options or too short a text.
    """
    # Before the model runs.
    select, ids = kvist.selection(select, budget), _ids(text, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calibrate.kvdump"
        dump(model, ids, path, min(queries, ids.shape[1]))
        profile, _ = _calibrate(path, select, budget, steps, streaming, dense, sparsity, None)
    return profile


def _ids(text: str | torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """Token ids `[1, tokens]`."""
    if isinstance(text, str):
        if tokenizer is None:
            raise OptionError("tokenizer: expected one for a text, found None")
        text = torch.tensor(tokenizer(text).input_ids)
    ids = text.reshape(1, -1) if text.ndim == 1 else text
    if ids.ndim != 2 or len(ids) != 1:
        raise ShapeError(f"text: expected [tokens] or [1, tokens], found {list(text.shape)}")
    return ids


__all__ = ["calibrate"]
