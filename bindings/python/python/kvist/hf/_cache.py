"""`KvistCache`: a transformers cache whose full-attention layers live in kvist's pages."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    CacheLayerMixin,
    get_layer_types_and_kwargs,
)

import kvist

from .._errors import OptionError, RangeError, ShapeError, UnsupportedError
from ._attention import NAME
from ._gpu import Gpu, check_device
from ._masks import KvLength
from ._report import Report, report_of
from ._store import Handle, Options, Scorer, Store

_pending = threading.local()


class KvistLayer(CacheLayerMixin):
    """One full-attention layer. `update` hands the new keys and values on, with a handle."""

    is_compileable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self, store: Store, slot: int) -> None:
        super().__init__()
        self.store = store
        self.slot = slot

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the *new* keys and values only; the attention function finds the rest by handle."""
        self._check_previous()
        self.store.check_usable()
        self.is_initialized = True
        handle = Handle(self.store, self.slot, self.store.seen[self.slot])
        self.store.seen[self.slot] += key_states.shape[-2]
        # A fresh view: the caller's own tensor must not carry the handle into anything else.
        key_states = key_states.detach()
        key_states._kvist = handle
        _pending.handle = handle
        return key_states, value_states

    def _check_previous(self) -> None:
        """The handle of the update before must have been used, or that layer's output was wrong."""
        before: Handle | None = getattr(_pending, "handle", None)
        _pending.handle = None
        if before is None or before.used or before.store is not self.store:
            return
        self.store.crop(before.past)
        raise UnsupportedError(
            f"attention of kvist layer {before.slot}: expected the keys that update() returned to "
            f"reach attention implementation '{NAME}', found them bypassed or the forward "
            f"interrupted; the cache is back at {before.past} tokens. Call "
            f"model.set_attn_implementation('{NAME}') and do not compile the model"
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        past = self.store.seen[self.slot]
        keep = self.store.keep
        cached = None if keep is None else keep[:, :past]
        return KvLength.of(past + query_length, past, cached), 0

    def get_seq_length(self) -> int:
        return self.store.seen[self.slot]

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.is_initialized = False

    def _whole(self, method: str) -> UnsupportedError:
        return UnsupportedError(
            f"{method} of one layer: expected the call on the cache, which moves all layers at once"
        )

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        raise self._whole("reorder_cache")

    def crop(self, tokens_to_remove: int) -> None:
        raise self._whole("crop")

    def offload(self) -> None:
        raise self._whole("offload")

    def prefetch(self) -> None:
        raise self._whole("prefetch")


class KvistCache(Cache):
    """Pass it as `past_key_values`; make it with [`KvistCache.for_model`].

    Full-attention layers are held by kvist: the attention function "kvist" appends and attends in
    kvist's pages, and decode reads only what the selector picks. Sliding-window and other layers
    use the library's own classes.
    """

    def __init__(self, layers: list[Any], store: Store, model_layers: dict[int, int]) -> None:
        super().__init__(layers=layers)
        self._store = store
        self._slots = model_layers

    # -- making ------------------------------------------------------------------------------

    @classmethod
    def for_model(
        cls,
        model: PreTrainedModel,
        *,
        select: str | kvist.Select = "full",
        budget: int | None = None,
        host: str | int = "4GiB",
        dense_layers: Iterable[int] | None = None,
        profile: kvist.Profile | str | os.PathLike[str] | None = None,
        threads: int | None = None,
        page_tokens: int = 64,
        scorer: Scorer | None = None,
        prefill: str | kvist.Prefill = "dense",
        cluster_order: bool = False,
        device: str | int | None = None,
        device_bytes: str | int | None = None,
        device_memory: torch.Tensor | None = None,
        device_optional: bool = False,
    ) -> KvistCache:
        """A cache for `model`, whose attention implementation becomes "kvist".

        `select`, `budget`: which tokens a decode step reads (see `kvist.selection_presets()`);
        `dense_layers`: model layers that always read everything, by default 0 and 1, with a profile
        none; `profile`: how each KV head is read, from `kvist.hf.calibrate`, or its file; `host`: most
        bytes of host memory; `threads`: of kvist's kernels, by default as many as torch uses; `scorer`:
        for selectors that go by a trained indexer's scores ("nsa", "dsa"), called at every decode step
        with the layer, the queries `[batch, q_heads, dim]` and the tokens there are, returns
        `[batch, heads, units]`; `prefill`: how prompts read their keys, by the name of a pattern (see
        `kvist.prefill_presets()`) or an object, dense layers densely; `cluster_order`: "clusterkv" and
        "retroinfer" hold rows a second time, in the order of clusters, while `host` has room for them;
        `device`: the GPU that keeps copies of pages and attends to them, by default none (the model may be
        on a GPU all the same), "cuda" for the model's own; `device_bytes`, `device_memory`, `device_optional`: as for `kvist.Cache`.

        Raises `UnsupportedError` for models kvist cannot serve, `OptionError` for bad options.
        """
        _check_model(model)
        config = model.config.get_text_config(decoder=True)
        cache = cls._make(
            config,
            name_of(model),
            select=select,
            budget=budget,
            host=host,
            dense_layers=dense_layers,
            profile=profile,
            threads=threads,
            page_tokens=page_tokens,
            scorer=scorer,
            prefill=prefill,
            cluster_order=cluster_order,
            gpu=Gpu(device, device_bytes, device_memory, device_optional),
        )
        _switch(model, config)
        return cache

    @classmethod
    def for_config(
        cls,
        config: PreTrainedConfig,
        *,
        select: str | kvist.Select = "full",
        budget: int | None = None,
        host: str | int = "4GiB",
        dense_layers: Iterable[int] | None = None,
        profile: kvist.Profile | str | os.PathLike[str] | None = None,
        threads: int | None = None,
        page_tokens: int = 64,
        scorer: Scorer | None = None,
        prefill: str | kvist.Prefill = "dense",
        cluster_order: bool = False,
        device: str | int | None = None,
        device_bytes: str | int | None = None,
        device_memory: torch.Tensor | None = None,
        device_optional: bool = False,
    ) -> KvistCache:
        """Like `for_model`, for a model that already uses attention implementation "kvist".

        A profile is checked against the model's geometry only.
        """
        return cls._make(
            config,
            None,
            select=select,
            budget=budget,
            host=host,
            dense_layers=dense_layers,
            profile=profile,
            threads=threads,
            page_tokens=page_tokens,
            scorer=scorer,
            prefill=prefill,
            cluster_order=cluster_order,
            gpu=Gpu(device, device_bytes, device_memory, device_optional),
        )

    @classmethod
    def _make(
        cls,
        config: PreTrainedConfig,
        name: str | None,
        *,
        select: str | kvist.Select,
        budget: int | None,
        host: str | int,
        dense_layers: Iterable[int] | None,
        profile: kvist.Profile | str | os.PathLike[str] | None,
        threads: int | None,
        page_tokens: int,
        scorer: Scorer | None,
        prefill: str | kvist.Prefill,
        cluster_order: bool,
        gpu: Gpu,
    ) -> KvistCache:
        types, kwargs = get_layer_types_and_kwargs(config)
        types = _without_useless_windows(types, config)
        slots = {
            i: n for n, i in enumerate(i for i, t in enumerate(types) if t == "full_attention")
        }
        if not slots:
            raise UnsupportedError(
                "layer types: expected at least one full-attention layer, found "
                f"{', '.join(sorted(set(types)))}; the model's own cache is small already"
            )
        if dense_layers is None:
            dense_layers = (0, 1) if profile is None else ()
        if isinstance(profile, (str, os.PathLike)):
            profile = kvist.Profile.load(profile)
        if profile is not None:
            profile._check(name, len(slots))
        dense = tuple(dense_layers)
        for layer in dense:
            if not 0 <= layer < len(types):
                raise OptionError(f"dense_layers: expected 0..{len(types)}, found {layer}")
        store = Store(
            Options(
                slots=len(slots),
                select=kvist.selection(select, budget),
                budget=None,
                host=kvist.parse_bytes(host),
                dense_slots=tuple(slots[i] for i in dense if i in slots),
                profile=profile,
                model=None if profile is None else name,
                threads=torch.get_num_threads() if threads is None else threads,
                page_tokens=page_tokens,
                scorer=scorer,
                prefill=kvist.Prefill(prefill) if isinstance(prefill, str) else prefill,
                cluster_order=cluster_order,
                layers=tuple(slots),
                gpu=gpu,
            )
        )
        store.foreign = len(slots) < len(types)
        layers = [
            KvistLayer(store, slots[i])
            if i in slots
            else DYNAMIC_LAYER_TYPE_MAPPING[kind](**kwargs)
            for i, kind in enumerate(types)
        ]
        return cls(layers, store, slots)

    # -- what generate() calls ---------------------------------------------------------------

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if torch.compiler.is_compiling():
            raise UnsupportedError("torch.compile: expected an eager model, found one being traced")
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def batch_size(self) -> int:
        return len(self._store.rows) or -1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, padding included. After a crop or fork all layers agree."""
        return super().get_seq_length(layer_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last `-tokens_to_remove` tokens of every row; 0 forgets none.

        A positive number is the length to keep, as older transformers had it.
        """
        self._store.check_open()
        # Assisted generation counts in tensors, which `seen` must not share between layers.
        tokens_to_remove, seen = int(tokens_to_remove), max(self._store.seen)
        length = seen + tokens_to_remove if tokens_to_remove <= 0 else tokens_to_remove
        if length < 0:
            raise kvist.PositionError(
                f"crop: expected at most {seen} tokens, found {-tokens_to_remove}"
            )
        for layer in self._foreign():
            layer.crop(tokens_to_remove)
        if length < seen:
            self._store.crop(length)

    def reset(self) -> None:
        """Forgets everything; the cache can be used again."""
        self._store.check_open()
        self._clear()

    def _clear(self) -> None:
        self._store.reset()
        for layer in self._foreign():
            _reset(layer)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row `i` continues what row `beam_idx[i]` was: page tables move, no data is copied."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows `indices` (numbers or a bool mask), in that order."""
        indices = torch.as_tensor(indices)
        if indices.dtype == torch.bool:
            indices = indices.nonzero().flatten()
        if self._store.rows:
            self._store.select_rows(indices.tolist())
        for layer in self._foreign():
            layer.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times; copies share their pages."""
        if repeats < 1:
            raise OptionError(f"repeats: expected at least 1, found {repeats}")
        self._store.select_rows([i for i in range(len(self._store.rows)) for _ in range(repeats)])
        for layer in self._foreign():
            layer.batch_repeat_interleave(repeats)

    # -- kvist's own -------------------------------------------------------------------------

    def fork(
        self,
        *,
        select: str | kvist.Select | Sequence[str | kvist.Select] | None = None,
        budget: int | None = None,
        profile: kvist.Profile | None = None,
        views: Sequence[kvist.View | None] | None = None,
    ) -> KvistCache:
        """A second cache that continues from here, over the same pages (copied when written).

        With `select` (and `budget`, `profile`) the fork reads by another rule: prefill once, compare
        many. A list gives each row of the batch a rule of its own. A `select` alone has no profile, a
        `budget` alone keeps the one there is. With `views`, from `Sequence.view()` of the rows of an earlier
        fork, the rows read by these instead of choosing anew: a draft view that serves until it is refreshed.

        Raises `ShapeError` for a list that is not as long as the batch.
        """
        self._store.check_open()
        rows = len(self._store.rows)
        rules: list[kvist.Select | None] = [None] * rows
        if isinstance(select, (str, kvist.Select)):
            rules = [kvist.selection(select, budget)] * rows
        elif select is not None:
            rules = [None if rule is None else kvist.selection(rule, budget) for rule in select]
        if select is not None:
            budget = None
        if len(rules) != rows:
            raise ShapeError(f"select: expected one for each of {rows} rows, found {len(rules)}")
        views = [None] * rows if views is None else list(views)
        if len(views) != rows:
            raise ShapeError(f"views: expected one for each of {rows} rows, found {len(views)}")
        store = self._store.fork(rules, budget, profile, views)
        layers = []
        for layer in self.layers:
            if isinstance(layer, KvistLayer):
                twin = KvistLayer(store, layer.slot)
                twin.is_initialized = layer.is_initialized
                layers.append(twin)
            else:
                layers.append(copy.deepcopy(layer))
        return KvistCache(layers, store, self._slots)

    @property
    def sequences(self) -> Sequence[kvist.Sequence]:
        """One kvist sequence per row of the batch."""
        return tuple(self._store.rows)

    @property
    def kvist_layers(self) -> dict[int, int]:
        """Model layer -> layer number inside `sequences`, for the layers kvist holds."""
        return dict(self._slots)

    def report(self, row: int | None = None) -> Report:
        """Tokens and bytes read by the decode steps so far and bytes resident, per layer.

        With `row`, what that row of the batch read since it became one; bytes are those of all rows.

        Raises `RangeError` for a row that there is not.
        """
        rows = len(self._store.rows)
        if row is not None and not 0 <= row < rows:
            raise RangeError(f"row: expected 0..{rows}, found {row}")
        return report_of(self._store, self._slots, self.layers, row)

    def close(self) -> None:
        """Gives all memory back now instead of when the cache is collected; every later use raises
        `ClosedError`."""
        self._clear()
        self._store.closed = True

    def __enter__(self) -> KvistCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _foreign(self) -> list[Any]:
        return [layer for layer in self.layers if not isinstance(layer, KvistLayer)]


def _reset(layer: Any) -> None:
    """An empty layer. The library's `reset` zeroes the tensors instead, in place, which tensors made
    in inference mode do not allow: it gets the layer without them."""
    if isinstance(layer, CacheLayerMixin) and layer.is_initialized:
        layer.keys, layer.values, layer.is_initialized = None, None, False
    layer.reset()


def name_of(model: PreTrainedModel) -> str:
    """The model's name; of a local directory its last part."""
    name = str(getattr(model.config, "_name_or_path", "")) or type(model).__name__
    return Path(name).resolve().name if Path(name).is_dir() else name


def _without_useless_windows(types: list[str], config: PreTrainedConfig) -> list[str]:
    """A window no shorter than the model's longest text never cuts: such layers are global."""
    window = getattr(config, "sliding_window", None)
    longest = getattr(config, "max_position_embeddings", None)
    if window is None or longest is None or window < longest:
        return list(types)
    return ["full_attention" if t == "sliding_attention" else t for t in types]


def _check_model(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise UnsupportedError(
            f"model: expected a decoder-only model, found encoder-decoder {name}"
        )
    check_device(model.device)
    if getattr(model.config, "output_attentions", False):
        raise UnsupportedError("output_attentions: expected False in the config, found True")
    if not model._can_set_attn_implementation():
        raise UnsupportedError(
            f"model: expected one that uses transformers' attention interface, found {name}"
        )


def _switch(model: PreTrainedModel, text: PreTrainedConfig) -> None:
    """Sets the attention implementation of the text model only."""
    if text is model.config:
        model.set_attn_implementation(NAME)
    else:
        names = [key for key in model.config.sub_configs if getattr(model.config, key) is text]
        model.set_attn_implementation({key: NAME for key in names})
    if text._attn_implementation != NAME:
        raise UnsupportedError(
            f"attention implementation: expected '{NAME}' to be accepted, found "
            f"'{text._attn_implementation}' still in place"
        )


__all__ = ["KvistCache", "KvistLayer", "name_of"]
