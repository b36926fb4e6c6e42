"""kvist in vLLM (0.32): a store of KV blocks in host memory and on disk behind one line of configuration.

vllm serve MODEL --kv-transfer-config '{"kv_connector": "KvistConnector", "kv_role": "kv_both",
    "kv_connector_module_path": "kvist.vllm", "kv_load_failure_policy": "recompute",
    "kv_connector_extra_config": {"host_bytes": "8GiB", "disk_dir": "/var/cache/kvist", "disk_bytes": "100GiB"}}'

docs/vllm.md lists every key and says what happens on failure.
"""

from __future__ import annotations

from typing import Any

__all__ = ["KvistConnector"]


def __getattr__(name: str) -> Any:
    # vLLM is imported by whoever asks for the connector, not by the modules beside it.
    if name == "KvistConnector":
        from ._connector import KvistConnector

        return KvistConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
