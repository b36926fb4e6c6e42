"""The connector that vLLM loads: its hooks, each one call into the scheduler's or the worker's half.

vLLM makes one object for its scheduler and one for each worker; they share no memory.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from .._errors import KvistError
from . import _compat, _engine, _plugin
from ._config import Config
from ._events import Events
from ._meta import Hello, StepMeta, WorkerMeta
from ._scheduler import Scheduler
from ._stats import KvistPromMetrics, KvistStats
from ._worker import Worker

log = logging.getLogger("vllm.kvist")

_F = TypeVar("_F", bound=Callable[..., Any])


def _guarded(otherwise: Callable[[], Any]) -> Callable[[_F], _F]:
    """Keeps an unexpected error from the engine: it is said once for all, nothing more is stored or
    loaded, and every request is computed."""

    def guard(hook: _F) -> _F:
        @functools.wraps(hook)
        def call(self: KvistConnector, *args: Any, **kwargs: Any) -> Any:
            try:
                return hook(self, *args, **kwargs)
            except Exception as e:
                self._give_up(f"{hook.__name__}: {type(e).__name__}: {e}")
                return otherwise()

        return call  # type: ignore[return-value]

    return guard


class KvistConnector(KVConnectorBase_V1, SupportsHMA):
    """A store of KV blocks in host memory and on disk, for vLLM.

    Raises `UnknownNameError` or `OptionError` for a wrong configuration, `StoreError` for a directory
    that cannot be used, `UnsupportedError` for a vLLM that calls connectors in another way: all when
    the engine starts. Later failures are misses, and what is missing is computed.
    """

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        _compat.check(KVConnectorBase_V1, vllm.__version__)
        self._config = Config.of(self._kv_transfer_config.kv_connector_extra_config)
        self._reports = _plugin.registered()
        self._events: Events | None = None
        self._scheduler: Scheduler | None = None
        self._worker: Worker | None = None
        if role == KVConnectorRole.SCHEDULER:
            self._events = _engine.events(vllm_config, kv_cache_config)
            world = vllm_config.parallel_config.world_size
            self._scheduler = Scheduler(self._config, world, self._events)
            if self._kv_transfer_config.kv_load_failure_policy != "recompute":
                log.warning(
                    'kvist: kv_load_failure_policy is "fail": a request whose blocks cannot be '
                    'loaded ends with an error; "recompute" computes them instead'
                )
        else:
            self._worker = Worker(self._config, _engine.place(vllm_config))
            self._worker.open()

    def _give_up(self, why: str) -> None:
        if self._scheduler is not None:
            self._scheduler.switch_off(why)
        if self._worker is not None:
            self._worker.switch_off(why)

    @property
    def requires_kv_delivery(self) -> bool:
        """A cache: what was not stored is computed again."""
        return False

    # --- Worker -------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        worker = self._worker
        assert worker is not None
        why = _engine.refusal(self._vllm_config, self._kv_cache_config)
        why = why or _engine.tensor_refusal(kv_caches)
        if why is not None:
            worker.refuse(why)
            return
        try:
            engine = _engine.describe(
                self._config, self._vllm_config, self._kv_cache_config, kv_caches
            )
            worker.register(engine)
        except KvistError:
            # A wrong configuration: said now, while somebody looks.
            raise
        except Exception as e:
            worker.refuse(f"{type(e).__name__}: {e}")
            return
        log.info(
            "kvist: blocks of %d tokens, layout %s", engine.space["block_tokens"], engine.layout
        )

    def get_handshake_metadata(self) -> Any:
        return self._worker.hello if self._worker is not None else None

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        super().bind_connector_metadata(connector_metadata)
        if self._worker is not None:
            meta = connector_metadata
            self._worker.begin(idle=isinstance(meta, StepMeta) and meta.idle)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        meta = self._connector_metadata
        work = isinstance(meta, StepMeta) and (meta.loads or meta.trials)
        if work and self._worker is not None:
            self._worker.load(meta)

    def wait_for_layer_load(self, layer_name: str) -> None:
        return None

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None:
        return None

    @_guarded(lambda: None)
    def wait_for_save(self) -> None:
        meta = self._connector_metadata
        if isinstance(meta, StepMeta) and self._worker is not None:
            self._worker.save(meta)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return None, self.get_transfer_results(finished_req_ids).finished_recving

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        assert self._worker is not None
        received, failed = self._worker.done()
        return KVConnectorTransferResults(finished_recving=received, failed_recving=failed)

    @_guarded(lambda: None)
    def build_connector_worker_meta(self) -> Any:
        return self._worker.report() if self._worker is not None else None

    @_guarded(lambda: None)
    def get_kv_connector_stats(self) -> Any:
        half = self._worker or self._scheduler
        counts = half.take_counts() if half is not None and self._reports else None
        return KvistStats(data=counts) if counts else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Any:
        return KvistStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> Any:
        return KvistPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    # --- Scheduler ----------------------------------------------------------------------------

    def set_xfer_handshake_metadata(self, metadata: dict[int, Any]) -> None:
        for hello in metadata.values():
            if isinstance(hello, Hello) and self._scheduler is not None:
                self._scheduler.greet(hello)

    def set_xfer_handshake_metadata_pp_aware(self, metadata: dict[tuple[int, int], Any]) -> None:
        self.set_xfer_handshake_metadata(dict(enumerate(metadata.values())))

    @_guarded(lambda: (0, False))
    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        assert self._scheduler is not None
        tokens = self._scheduler.matched(request, num_computed_tokens)
        return tokens, bool(tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        assert self._scheduler is not None
        if num_external_tokens:
            (ids, *_) = blocks.get_block_ids()
            self._scheduler.allocated(request, ids, num_external_tokens)

    @_guarded(dict)
    def get_external_cache_hit_sources(
        self, request: Any, num_external_tokens: int
    ) -> dict[Any, int]:
        assert self._scheduler is not None
        names = {"host": CacheHitSource.HOST, "disk": CacheHitSource.DISK}
        sources = self._scheduler.sources(request)
        return {names[tier]: tokens for tier, tokens in sources.items() if tokens}

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        assert self._scheduler is not None
        return self._scheduler.step(scheduler_output)

    @_guarded(lambda: None)
    def update_connector_output(self, connector_output: Any) -> None:
        assert self._scheduler is not None
        meta = connector_output.kv_connector_worker_meta
        self._scheduler.update(
            meta if isinstance(meta, WorkerMeta) else None,
            set(connector_output.finished_recving or ()),
            set(connector_output.failed_recving or ()),
        )

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        assert self._scheduler is not None
        self._scheduler.finished(request)
        return False, None

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished(request, [])

    @_guarded(tuple)
    def take_events(self) -> Iterable[Any]:
        return [_engine.announced(event) for event in self._events.take()] if self._events else ()

    def reset_cache(self) -> bool | None:
        return self._scheduler.reset() if self._scheduler is not None else None

    # --- Both -------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.close()
        if self._scheduler is not None:
            self._scheduler.close()
