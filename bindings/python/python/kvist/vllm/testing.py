"""vLLM's own tiers without a GPU: for tests and comparisons, not for serving.

`TieringOffloadingSpec` copies between its tiers with a CUDA engine. This one copies at once, on the CPU:

{"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": {
    "spec_name": "CpuTieringSpec", "spec_module_path": "kvist.vllm.testing",
    "cpu_bytes_to_use": 1000000000, "secondary_tiers": [...]}}

What is measured with it is vLLM's native tier with a test copy engine.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class CpuTieringSpec(TieringOffloadingSpec):
    """`TieringOffloadingSpec` with a copy engine for memory that the CPU sees. One block a chunk."""

    def get_worker(self, kv_caches: Any) -> OffloadingWorker:
        if self.blocks_per_chunk != 1:
            raise ValueError(f"expected one block a chunk, found {self.blocks_per_chunk}")
        region = SharedOffloadRegion(
            engine_id=self._engine_id,
            num_chunks=self.num_chunks,
            rank=self.config.parallel.rank,
            kv_bytes_per_chunk=self.kv_bytes_per_chunk,
            cpu_page_size=self.cpu_page_size_per_worker,
        )
        return _CopyWorker(region, kv_caches)


class _CopyWorker(OffloadingWorker):
    """Copies when it is asked to: row `c` of the region is chunk `c`, its layers one after the other."""

    def __init__(self, region: SharedOffloadRegion, kv_caches: Any) -> None:
        self._region = region
        self._rows = region.create_next_worker_view(
            sum(t.page_size_bytes for t in kv_caches.tensors)
        )
        self._layers = [(t.tensor, t.page_size_bytes) for t in kv_caches.tensors]
        self._done: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._copy(job_id, src_spec.block_ids, dst_spec.block_ids, store=True)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._copy(job_id, dst_spec.block_ids, src_spec.block_ids, store=False)

    def _copy(self, job_id: int, blocks: Any, chunks: Any, store: bool) -> bool:
        start = time.monotonic()
        for block, chunk in zip(blocks.tolist(), chunks.tolist(), strict=True):
            at = 0
            for tensor, size in self._layers:
                page = tensor[block].view(torch.int8).flatten()[:size]
                row = self._rows[chunk, at : at + size]
                row.copy_(page) if store else page.copy_(row)
                at += size
        moved = len(blocks) * sum(size for _, size in self._layers)
        self._done.append(TransferResult(job_id, True, moved, time.monotonic() - start))
        return True

    def get_finished(self) -> list[TransferResult]:
        done, self._done = self._done, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        return None

    def shutdown(self) -> None:
        # The region's file, all of it memory, is there until somebody removes it.
        self._layers.clear()
        self._rows = None
        self._region.cleanup()
