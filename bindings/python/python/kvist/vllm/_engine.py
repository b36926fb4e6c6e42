"""Reads from vLLM's configuration and tensors what the store has to know."""

from __future__ import annotations

from typing import Any

import torch

from . import _identity as identity
from . import _layout
from ._config import Config, worker_folder
from ._events import Event, Events
from ._worker import Engine, Place

WITHOUT_KV = ("ngram", "ngram_gpu", "suffix")
"""Ways to draft that add no KV to the blocks; the weights of other drafters are in no key."""
DTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def place(vllm_config: Any) -> Place:
    """Where this process stands among the engine's workers, and among the engines."""
    parallel = vllm_config.parallel_config
    rank, world, engines = parallel.rank, parallel.world_size, parallel.data_parallel_size
    alone = world == 1 and engines == 1
    folder = "" if alone else worker_folder(parallel.data_parallel_rank, rank, world)
    return Place(rank, world, folder)


def refusal(vllm_config: Any, kv_cache_config: Any) -> str | None:
    """Why blocks of this engine cannot be shared, if that is so. Such an engine runs as without kvist."""
    groups, parallel = kv_cache_config.kv_cache_groups, vllm_config.parallel_config
    if len(groups) != 1:
        return f"expected a model with one KV cache group, found {len(groups)}"
    spec = groups[0].kv_cache_spec
    if type(spec).__name__ != "FullAttentionSpec":
        return f"expected full attention in every layer, found {type(spec).__name__}"
    if getattr(spec, "non_causal", False):
        return "expected causal attention, found layers that look ahead"
    if (runner := vllm_config.model_config.runner_type) != "generate":
        return f"expected a model that generates, found one for {runner}"
    if getattr(vllm_config.cache_config, "calculate_kv_scales", False):
        return (
            "expected KV scales of the checkpoint, found scales of what the engine happens to see"
        )
    speculative = vllm_config.speculative_config
    if speculative is not None and speculative.method not in WITHOUT_KV:
        return f"expected no drafts by a model with KV of its own, found {speculative.method}"
    others = ("pipeline", "decode_context", "prefill_context")
    for kind in others:
        if (size := getattr(parallel, f"{kind}_parallel_size", 1)) > 1:
            return f"expected {kind}_parallel_size 1, found {size}"
    return None


def tensor_refusal(caches: dict[str, torch.Tensor]) -> str | None:
    """The same for the engine's tensors."""
    for name, cache in caches.items():
        if not isinstance(cache, torch.Tensor) or cache.dim() != 4:
            return f"expected {name} as [blocks, kv_heads, tokens, content], found another"
        if cache.device.type != "cpu":
            return (
                f"expected KV in CPU memory, found {cache.device}; on a GPU use vLLM's "
                "OffloadingConnector with kvist as secondary tier (docs/vllm.md)"
            )
    if len({(cache.shape, cache.stride(), cache.dtype) for cache in caches.values()}) != 1:
        return "expected the same shape and strides in every layer"
    return None


def describe(
    config: Config, vllm_config: Any, kv_cache_config: Any, caches: dict[str, torch.Tensor]
) -> Engine:
    """The engine, after `refusal` and `tensor_refusal`. Raises `OptionError` if nothing identifies its
    weights, and `StoreError`-free otherwise."""
    (group,) = kv_cache_config.kv_cache_groups
    named = sorted((name for name in group.layer_names if name in caches), key=_layer_number)
    # Layers may share the KV of another one.
    ordered = list({caches[name].data_ptr(): name for name in reversed(named)}.values())[::-1]
    cache = caches[ordered[0]]
    layers = vllm_config.compilation_config.static_forward_context
    first = layers[ordered[0]]
    name = None
    if config.canonical and cache.dtype in DTYPES:
        name = _layout.detect(cache, _writer(first))
    model = identity.model_fingerprint(vllm_config.model_config, config.model)
    common = {"model": model, "layers": len(ordered), "block_tokens": cache.shape[2]}
    tensors = [caches[layer] for layer in ordered]
    if name is None:
        return _opaque(config, vllm_config, common, tensors, getattr(first, "isa", "unknown"))
    heads, dim = cache.shape[1], cache.shape[3] // 2
    total, own = _heads(vllm_config, heads)
    space = {
        **common,
        "kv_heads": total,
        "head_dim": dim,
        "dtype": DTYPES[cache.dtype],
        "extra": identity.frame([config.namespace_extra.encode()]),
    }
    views = [_layout.LAYOUTS[name](tensor) for tensor in tensors]
    size = len(ordered) * total * cache.shape[2] * cache.shape[3] * cache.element_size()
    put = {"k": [k for k, _ in views], "v": [v for _, v in views], "layout": "hnd"}
    return Engine(space, {"head_range": own}, size, name, put)


def events(vllm_config: Any, kv_cache_config: Any) -> Events | None:
    """Where to note what routers want to know; none if the engine publishes no events."""
    config = vllm_config.kv_events_config
    if config is None or not config.enable_kv_cache_events:
        return None
    if refusal(vllm_config, kv_cache_config) is not None:
        return None
    tokens = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
    return Events(tokens, kv_cache_config.hash_block_size or tokens)


def announced(event: Event) -> Any:
    """An event as vLLM publishes it."""
    from vllm.distributed.kv_events import BlockRemoved, BlockStored
    from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

    name, medium = event.name, {"host": "CPU", "disk": "STORAGE"}[event.tier]
    block = maybe_convert_block_hash(name.hash)
    if not event.stored:
        return BlockRemoved(block_hashes=[block], medium=medium, group_idx=0)
    adapter, adapter_name = name.lora or (None, None)
    return BlockStored(
        block_hashes=[block],
        parent_block_hash=None if name.parent is None else maybe_convert_block_hash(name.parent),
        token_ids=list(name.tokens),
        block_size=len(name.tokens),
        lora_id=adapter,
        medium=medium,
        lora_name=adapter_name,
        group_idx=0,
    )


def _opaque(
    config: Config,
    vllm_config: Any,
    common: dict[str, Any],
    tensors: list[torch.Tensor],
    isa: str,
) -> Engine:
    """Blocks as the engine has them; only an engine of the same kind finds them again."""
    import vllm

    views = [view for tensor in tensors if (view := _layout.opaque(tensor)) is not None]
    if len(views) != len(tensors):
        raise ValueError("expected blocks that are one run of memory, found others")
    parallel = vllm_config.parallel_config
    kind = _layout.describe(
        tensors[0],
        vllm=vllm.__version__,
        isa=isa,
        workers=parallel.world_size,
        kv=vllm_config.cache_config.cache_dtype,
    )
    _, heads, tokens, dim = views[0][0].shape
    space = {
        **common,
        "kv_heads": heads,
        "head_dim": dim,
        "dtype": "u8",
        "extra": identity.frame([config.namespace_extra.encode(), kind.encode()]),
    }
    put = {"k": [k for k, _ in views], "v": [v for _, v in views], "layout": "hnd"}
    return Engine(space, {}, len(tensors) * heads * tokens * dim * 2, "opaque", put)


def _heads(vllm_config: Any, heads: int) -> tuple[int, tuple[int, int]]:
    """KV heads of the model, and those of this worker: a part, or one that several workers have."""
    parallel = vllm_config.parallel_config
    workers = parallel.tensor_parallel_size
    total = max(vllm_config.model_config.get_total_num_kv_heads(), heads)
    first = parallel.rank % workers * total // workers
    return total, (first, first + heads)


def _writer(layer: Any) -> _layout.Writer:
    """How the engine fills blocks of a layer."""

    def write(k: torch.Tensor, v: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> None:
        layer.impl.do_kv_cache_update(layer, k, v, cache, slots)

    return write


def _layer_number(name: str) -> tuple[list[int], str]:
    return [int(part) for part in name.split(".") if part.isdigit()], name
