"""What vLLM calls at the start of each of its processes, if kvist is installed."""

from __future__ import annotations

NAME = "KvistConnector"


def register() -> None:
    """Makes the connector known by name, without importing it."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if not registered():
        KVConnectorFactory.register_connector(NAME, "kvist.vllm", NAME)


def registered() -> bool:
    """Whether vLLM knows the connector by name, here and so in its other processes: it rebuilds
    statistics by that name, and a name that it does not know ends it."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    return NAME in KVConnectorFactory._registry
