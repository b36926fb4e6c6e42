"""Real queries, keys and values of a model in one file, for `kvist bench selection-quality`.

The file: the line `KVISTDUMP 1`, the header's length as u64, a JSON header padded with spaces, then
the arrays, each at a multiple of 64 bytes. Everything is little-endian. Keys and values are as the
cache stores them (after position encoding and key norm), queries are not scaled; query `n` stands
at position `tokens - queries + n` and is causal. Layers with a sliding window are not dumped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from .._errors import OptionError, ShapeError, UnsupportedError
from ._cache import KvistCache, name_of
from ._recorder import Recorder

MAGIC = b"KVISTDUMP 1\n"
_ALIGN = 64
_CHUNK = 1024
"""Tokens per forward: bounds the activations."""
_NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def dump(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    path: str | PathLike[str],
    queries: int = 96,
    layers: Iterable[int] | None = None,
    source: str = "",
) -> dict[str, Any]:
    """Runs `model` over `input_ids` `[1, tokens]` and writes the last `queries` queries and all keys
    and values of `layers` (model layers; all that attend globally) to `path`.

    Returns the header. The model's attention implementation is as before afterwards.
    """
    if sys.byteorder != "little":
        raise UnsupportedError("dump: expected a little-endian machine, found a big-endian one")
    if input_ids.ndim != 2 or len(input_ids) != 1:
        raise ShapeError(f"input_ids: expected [1, tokens], found {list(input_ids.shape)}")
    if not 1 <= queries <= input_ids.shape[1]:
        raise OptionError(f"queries: expected 1..={input_ids.shape[1]}, found {queries}")
    before = model.config.get_text_config(decoder=True)._attn_implementation
    cache = KvistCache.for_model(model)
    try:
        recorder = _record(model, input_ids, cache, queries)
    finally:
        cache.close()
        model.set_attn_implementation(before)
    chosen = sorted(cache.kvist_layers) if layers is None else sorted(set(layers))
    missing = [layer for layer in chosen if layer not in cache.kvist_layers]
    if missing or not chosen:
        raise OptionError(
            f"layers: expected some of {sorted(cache.kvist_layers)}, found {missing or chosen}"
        )
    return _write(model, recorder, cache, chosen, Path(path), source)


def _record(
    model: PreTrainedModel, input_ids: torch.Tensor, cache: KvistCache, queries: int
) -> Recorder:
    recorder = Recorder(queries)
    cache._store.recorder = recorder
    with torch.inference_mode():
        for chunk in input_ids.to(model.device).split(_CHUNK, dim=1):
            model(chunk, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return recorder


def _write(
    model: PreTrainedModel,
    recorder: Recorder,
    cache: KvistCache,
    layers: list[int],
    path: Path,
    source: str,
) -> dict[str, Any]:
    slots = [cache.kvist_layers[layer] for layer in layers]
    keys, values = zip(*(recorder.kv(slot) for slot in slots))
    arrays = {
        "k": torch.stack(keys),
        "v": torch.stack(values),
        "q": torch.stack([recorder.rows[slot] for slot in slots]).float(),
    }
    scales = {recorder.scale[slot] for slot in slots}
    if len(scales) != 1:
        raise UnsupportedError(f"scale: expected one for all layers, found {sorted(scales)}")
    header: dict[str, Any] = {
        "model": name_of(model),
        "source": source,
        "layers": layers,
        "q_heads": arrays["q"].shape[2],
        "kv_heads": arrays["k"].shape[2],
        "dim_k": arrays["k"].shape[3],
        "dim_v": arrays["v"].shape[3],
        "tokens": arrays["k"].shape[1],
        "queries": arrays["q"].shape[1],
        "scale": scales.pop(),
        "soft_cap": recorder.soft_cap,
    }
    header["arrays"] = {name: _place(array) for name, array in arrays.items()}
    text = _settle(header)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(text)
        for name, array in arrays.items():
            file.write(bytes(header["arrays"][name]["offset"] - file.tell()))
            file.write(array.contiguous().view(torch.uint8).numpy().tobytes())
    # A reader never finds half a file.
    part.replace(path)
    return header


def _place(array: torch.Tensor) -> dict[str, Any]:
    return {
        "dtype": _NAMES[array.dtype],
        "shape": list(array.shape),
        "offset": 0,
        "nbytes": array.numel() * array.element_size(),
    }


def _settle(header: dict[str, Any]) -> bytes:
    """Fixes the offsets, whose digits are part of the header; returns magic, length and header."""
    room = 0
    while True:
        at = room
        for array in header["arrays"].values():
            array["offset"] = at
            at += -(-array["nbytes"] // _ALIGN) * _ALIGN
        text = json.dumps(header).encode()
        prefix = len(MAGIC) + 8
        needed = -(-(prefix + len(text)) // _ALIGN) * _ALIGN
        if needed == room:
            text = text.ljust(room - prefix)
            return MAGIC + len(text).to_bytes(8, "little") + text
        room = needed
