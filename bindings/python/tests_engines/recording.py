"""The connector, noting the order of its hooks."""

import faults
from kvist.vllm import KvistConnector

HOOKS = (
    "bind_kv_cache_manager", "on_new_request", "get_num_new_matched_tokens",
    "update_state_after_alloc", "build_connector_meta", "update_connector_output",
    "request_finished_all_groups", "register_kv_caches", "set_xfer_handshake_metadata",
    "handle_preemptions", "bind_connector_metadata", "clear_connector_metadata", "start_load_kv",
    "wait_for_layer_load", "save_kv_layer", "wait_for_save", "get_transfer_results",
    "build_connector_worker_meta", "shutdown",
)  # fmt: skip


def told(name, result):
    """What of a hook's result the tests look at."""
    if name == "get_num_new_matched_tokens":
        return result[0]
    return len(result.finished_recving) if name == "get_transfer_results" else None


def recording(name):
    original = getattr(KvistConnector, name)

    def hook(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        faults.note((name, told(name, result)))
        return result

    return hook


class RecordingConnector(KvistConnector):
    """As its base."""


for _name in HOOKS:
    setattr(RecordingConnector, _name, recording(_name))
