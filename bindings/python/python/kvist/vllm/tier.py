"""A secondary tier below vLLM's own CPU tier: host memory, compressed, and disk.

vllm serve MODEL --kv-transfer-config '{"kv_connector": "OffloadingConnector", "kv_role": "kv_both",
    "kv_connector_extra_config": {"spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": 8000000000,
        "secondary_tiers": [{"type": "KvistTier", "module_path": "kvist.vllm.tier",
            "disk_dir": "/var/cache/kvist", "disk_bytes": "100GiB"}]}}'

vLLM moves KV between the device and its CPU tier; kvist moves it on from there. A chunk of that tier is
a row of bytes in vLLM's layout, so blocks are opaque here, and vLLM's own chained hash is all that is
known of their content.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import vllm
from vllm.v1.kv_offload.base import (
    LookupResult,
    Medium,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
)
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

from .._errors import KvistError
from .._kvist import PrefixStore, Space, Ticket
from . import _identity as identity
from . import _layout
from ._config import Config

TENANT = "kvist_tenant"
"""What a server sets in `kv_transfer_params`: whose a request is."""

SPACES_MAX = 256
"""Spaces that are kept, one for each tenant."""

KEY_BYTES = 32 + 4
"""Of vLLM's keys: a block hash and the group's number. Shorter hashes are not taken for content."""

TOKENS = 16
"""Of a row, for the shape of a store's blocks; a row is bytes, and has no tokens."""


@dataclass(frozen=True)
class _Tenant:
    """Whose a request is, as keys take it; `None` if it has to say and does not."""

    salt: bytes | None


@dataclass
class _Job:
    """A job under way."""

    load: bool
    salt: bytes | None
    keys: list[OffloadKey]
    ticket: Ticket[Any] | None
    started: float


class KvistTier(SecondaryTierManager):
    """kvist's store as a secondary tier. All calls come from the scheduler's thread, and none waits for a
    disk or copies a chunk: that happens on a thread of the store.

    A request's tenant is what `kv_transfer_params["kvist_tenant"]` says. The engine's own CPU tier does not
    know it: there, only different hashes keep tenants apart, so a server sets `cache_salt` too.

    Takes the keys of the connector's configuration that concern the store (docs/vllm.md). Raises
    `OptionError` or `StoreError` when it cannot be used: the engine does not start.
    """

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self.locality = settings.pop("locality", None)
        config = Config.of(settings)
        self._rows = np.asarray(primary_kv_view).view(np.uint8)
        disk = None if config.disk_dir is None else (config.disk_dir, config.disk_bytes)
        self._store = PrefixStore(
            config.host_bytes,
            disk,
            multi_tenant=config.multi_tenant,
            verify_host=config.verify == "always",
            key_secret=config.key_secret_file,
            deadline=config.disk_deadline,
            required=config.disk_required,
            prefault=config.prefault,
            replace=config.policy_evict,
            admit=config.admit_sightings if disk else 1,
        )
        self._multi_tenant = config.multi_tenant
        self._options = self._describe(config, offloading_spec)
        self._spaces: dict[bytes, Space] = {}
        # What a store refuses of its blocks, it says now.
        self._space(b"kvist" if config.multi_tenant else b"")
        self._jobs: dict[int, _Job] = {}
        self._gone: set[tuple[bytes | None, OffloadKey]] = set()
        """Keys whose load failed, until they are stored again."""

    def _describe(self, config: Config, spec: Any) -> dict[str, Any]:
        """Rows of bytes: two engines meet only if everything that their bytes depend on is equal."""
        c = spec.config
        model = config.model or identity.weights_digest(c.model.name, None)
        fields = [
            "vllm-tier",
            vllm.__version__,
            c.model.dtype,
            str(c.cache),
            str([(group.tokens_per_block, group.layer_names) for group in c.groups]),
            str(c.parallel),
            str(self._rows.shape[1]),
            _kernels(),
            config.namespace_extra,
        ]
        kind = hashlib.sha256(identity.frame(field.encode() for field in fields)).digest()
        heads, dim = _layout.as_bytes(self._rows.shape[1], TOKENS)
        return {
            "model": model,
            "layers": 1,
            "kv_heads": heads,
            "head_dim": dim,
            "dtype": "u8",
            "block_tokens": TOKENS,
            "extra": kind,
            "codec": config.codec_disk,
        }

    def _space(self, salt: bytes) -> Space:
        if salt not in self._spaces:
            if len(self._spaces) >= SPACES_MAX:
                self._spaces.clear()
            self._spaces[salt] = self._store.space(**self._options, salt=salt)
        return self._spaces[salt]

    def _salt(self, context: ReqContext) -> bytes | None:
        """The request's tenant, read once."""
        if (tenant := context.get_state(_Tenant)) is None:
            named = (context.kv_transfer_params or {}).get(TENANT)
            salt = identity.salt_of(named) if isinstance(named, str) else b""
            missing = not salt and (self._multi_tenant or named is not None)
            tenant = _Tenant(None if missing else salt)
            context.set_state(tenant)
        return tenant.salt

    # --- What the engine asks -----------------------------------------------------------------

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        salt = self._salt(req_context)
        if salt is None or (salt, key) in self._gone or len(key) < KEY_BYTES:
            return LookupResult.MISS
        try:
            space = self._space(salt)
            there = space.contains(space.prefix_of_hashes([key]))
        except KvistError:
            return LookupResult.MISS  # The store was closed.
        return LookupResult.HIT if there else LookupResult.MISS

    def submit_store(self, job_metadata: TransferJob) -> None:
        self._submit(job_metadata, load=False)

    def submit_load(self, job_metadata: TransferJob) -> None:
        self._submit(job_metadata, load=True)

    def _submit(self, job: TransferJob, load: bool) -> None:
        keys, rows = list(job.keys), [int(row) for row in job.chunk_ids]
        ticket: Ticket[Any] | None = None
        salt = self._salt(job.req_context)
        if salt is not None and all(len(key) >= KEY_BYTES for key in keys):
            try:
                # The engine's hash in full, and the group.
                space, blocks = self._space(salt), [self._rows[row] for row in rows]
                prefix = space.prefix_of_hashes(keys)
                if load:
                    ticket = space.get_behind(prefix, 0, blocks)
                else:
                    ticket = space.put_behind(prefix, blocks)
            except KvistError:
                ticket = None  # The store was closed: the job fails, and is said to have.
        self._jobs[job.job_id] = _Job(load, salt, keys, ticket, time.monotonic())

    def get_finished_jobs(self) -> Iterable[JobResult]:
        ended = [i for i, job in self._jobs.items() if job.ticket is None or job.ticket.done]
        return [self._result(i, self._jobs.pop(i)) for i in ended]

    def _result(self, job_id: int, job: _Job) -> JobResult:
        result = job.ticket.wait(0) if job.ticket is not None else None
        blocks = result.blocks if result is not None else 0
        good = job.keys[:blocks]
        if job.load:
            self._gone.update((job.salt, key) for key in job.keys[blocks : blocks + 1])
            # Later ones were not read; whether they are there is seen when they are asked for.
        elif result is not None:
            kept = zip(job.keys, result.each, strict=True)
            good = [key for key, each in kept if each in ("stored", "present")]
            self._gone.difference_update((job.salt, key) for key in good)
        return JobResult(
            job_id,
            success=len(good) == len(job.keys),
            successful_keys=good if job.load else None,
            transfer_time=time.monotonic() - job.started,
            transfer_bytes=len(good) * self._rows.shape[1],
        )

    def has_pending_work(self) -> bool:
        return bool(self._jobs)

    def drain_jobs(self) -> None:
        for job in self._jobs.values():
            if job.ticket is not None:
                job.ticket.wait()

    def touch(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        return None  # Reading a block makes it recent.

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        self._salt(req_context)
        return RequestOffloadingContext()

    def erase_tenant(self, tenant: str) -> dict[str, int]:
        """Erases every block that requests of a tenant stored, in memory and on disk; waits for the disk.
        Returns `records`, `segments` and `segments_left`. Raises `StoreError` if the disk fails."""
        self._spaces.pop(salt := identity.salt_of(tenant), None)
        return self._store.erase_tenant(salt)

    def shutdown(self) -> None:
        self.drain_jobs()
        self._store.close()


def _kernels() -> str:
    """Which kernels permute the blocks: those of a CPU differ between machines."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return "device"
    import torch

    return f"amx={torch.cpu._is_amx_tile_supported()} avx512={torch.cpu._is_avx512_supported()}"
