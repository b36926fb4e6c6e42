"""Which vLLM the connector was tested with, and what it relies on there."""

from __future__ import annotations

import inspect
import logging
from typing import Any

from .._errors import UnsupportedError

log = logging.getLogger("vllm.kvist")

TESTED = ((0, 32), (0, 33))
"""From this version on, and below that one."""

SIGNATURES = {
    "__init__": ("self", "vllm_config", "role", "kv_cache_config"),
    "bind_connector_metadata": ("self", "connector_metadata"),
    "bind_kv_cache_manager": ("self", "kv_cache_manager"),
    "build_connector_meta": ("self", "scheduler_output"),
    "build_connector_worker_meta": ("self",),
    "build_kv_connector_stats": ("data",),
    "build_prom_metrics": (
        "vllm_config",
        "metric_types",
        "labelnames",
        "per_engine_labelvalues",
    ),
    "get_external_cache_hit_sources": ("self", "request", "num_external_tokens"),
    "get_finished": ("self", "finished_req_ids"),
    "get_handshake_metadata": ("self",),
    "get_kv_connector_stats": ("self",),
    "get_num_new_matched_tokens": ("self", "request", "num_computed_tokens"),
    "get_required_kvcache_layout": ("vllm_config",),
    "get_transfer_results": ("self", "finished_req_ids"),
    "register_kv_caches": ("self", "kv_caches"),
    "request_finished": ("self", "request", "block_ids"),
    "requires_kv_delivery": (),
    "requires_piecewise_for_cudagraph": ("extra_config",),
    "reset_cache": ("self",),
    "save_kv_layer": ("self", "layer_name", "kv_layer", "attn_metadata", "kwargs"),
    "set_xfer_handshake_metadata": ("self", "metadata"),
    "set_xfer_handshake_metadata_pp_aware": ("self", "metadata"),
    "shutdown": ("self",),
    "start_load_kv": ("self", "forward_context", "kwargs"),
    "take_events": ("self",),
    "update_connector_output": ("self", "connector_output"),
    "update_state_after_alloc": ("self", "request", "blocks", "num_external_tokens"),
    "wait_for_layer_load": ("self", "layer_name"),
    "wait_for_save": ("self",),
}
"""What vLLM 0.32 calls, with its parameters; a property has none."""

_warned = False


def parameters(owner: type, name: str) -> tuple[str, ...] | None:
    """Names of a method's parameters; none if there is no such method."""
    member = getattr(owner, name, None)
    if isinstance(member, property):
        return ()
    return tuple(inspect.signature(member).parameters) if callable(member) else None


def check(base: type, version: str) -> None:
    """Warns of a version that was not tested, and refuses one that is called in another way.

    Raises `UnsupportedError` naming the method.
    """
    global _warned
    for name, expected in SIGNATURES.items():
        if (found := parameters(base, name)) != expected:
            raise UnsupportedError(
                f"vLLM {version}: expected {name}({', '.join(expected)}), found "
                f"{'none' if found is None else f'({chr(44).join(found)})'}; kvist was tested "
                f"with vLLM {_dotted(TESTED[0])}"
            )
    if not _warned and not TESTED[0] <= _numbers(version) < TESTED[1]:
        _warned = True
        log.warning(
            "kvist was tested with vLLM %s up to below %s, this is %s",
            _dotted(TESTED[0]),
            _dotted(TESTED[1]),
            version,
        )


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")[:2]
    return tuple(int(part) for part in parts if part.isdigit())


def _dotted(numbers: tuple[Any, ...]) -> str:
    return ".".join(map(str, numbers))
