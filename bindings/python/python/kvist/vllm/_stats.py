"""What was loaded and stored, for vLLM's log and its Prometheus endpoint."""

from __future__ import annotations

from collections import Counter
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

TOTALS = {
    "loads": "Loads that ended, whole or not.",
    "loaded_blocks": "Blocks loaded.",
    "loaded_from_disk": "Blocks loaded from disk.",
    "load_bytes": "Bytes loaded.",
    "load_time": "Seconds between the start and the end of loads.",
    "stored_blocks": "Blocks that can be had after storing them.",
    "store_bytes": "Bytes of these.",
    "store_time": "Seconds spent storing.",
    "trials": "Reads for trial of blocks that were not worth loading.",
    "estimated_compute_time": "Seconds that computing found blocks was expected to take.",
    "estimated_lookup_time": "Seconds that loading them was expected to take before the first byte.",
    "estimated_transfer_time": "Seconds that moving their bytes was expected to take.",
}
REASONS = {
    "failed": "Loads that ended before their last block, by reason.",
    "refused": "Blocks that were not stored, by reason.",
    "errors": "Unexpected errors, by what was tried.",
    "choices": "Requests with stored blocks, by what was done with them.",
}
"""Counters of which a name follows, such as `failed_checksum`."""
RATE = "rate"
"""What is not summed: `rate_prefill` in tokens, `rate_host` and `rate_disk` in bytes a second."""


class KvistStats(KVConnectorStats):
    """Sums, so that workers and intervals add up; of rates, the newest."""

    def reset(self) -> None:
        self.data: dict[str, Any] = {}

    def aggregate(self, other: KVConnectorStats) -> KvistStats:
        rates = {name: value for name, value in other.data.items() if _is_rate(name)}
        total = Counter(self.data)
        total.update(other.data)
        return KvistStats(data={**total, **rates})

    def reduce(self) -> dict[str, int | float]:
        return {f"kvist {name}": value for name, value in sorted(self.data.items())}

    def is_empty(self) -> bool:
        return not self.data


def _is_rate(name: str) -> bool:
    return name.startswith(f"{RATE}_")


class KvistPromMetrics(KVConnectorPromMetrics):
    """`kvist:*` with the engine's labels."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters = {
            name: self._counter_cls(name=f"kvist:{name}", documentation=text, labelnames=labelnames)
            for name, text in TOTALS.items()
        }
        for name, text in REASONS.items():
            self._counters[name] = self._counter_cls(
                name=f"kvist:{name}", documentation=text, labelnames=[*labelnames, "reason"]
            )
        self._rates = self._gauge_cls(
            name=f"kvist:{RATE}",
            documentation="Tokens computed, and bytes loaded by tier, in a second.",
            labelnames=[*labelnames, "of"],
        )

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        labels = self.per_engine_labelvalues[engine_idx]
        for name, value in transfer_stats_data.items():
            if name in TOTALS:
                self._counters[name].labels(*labels).inc(value)
                continue
            kind, _, reason = name.partition("_")
            if kind == RATE:
                self._rates.labels(*labels, reason).set(value)
            elif kind in REASONS:
                self._counters[kind].labels(*labels, reason).inc(value)
