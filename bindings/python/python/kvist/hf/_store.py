"""The rows of a batch as kvist sequences, shared by all layers of a `KvistCache`.

One row of the batch is one `kvist.Sequence`. Padding is never stored: a row owns its real tokens
only, so a left-padded batch is a ragged batch here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

import kvist

from .._errors import ClosedError, KvistError, ShapeError, UnsupportedError
from ._gpu import Gpu, check_device
from ._masks import Plan, plan_of_tensor
from ._recorder import Recorder

Scorer = Callable[[int, torch.Tensor, int], torch.Tensor]
"""`(layer, query [batch, q_heads, dim], tokens)` to scores `[batch, heads, units]`."""

DTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


@dataclass
class LayerCounts:
    """What the decode steps of one layer read, summed over rows or of one row."""

    steps: int = 0
    tokens: int = 0
    """Tokens read, summed over KV heads and steps."""
    available: int = 0
    """Tokens there were, summed likewise."""
    bytes: dict[str, int] = field(default_factory=dict)

    def add(self, info: kvist.AttendInfo, available: int) -> None:
        read = info.tokens_read
        self.steps += 1
        self.tokens += int(read.sum())
        self.available += available * len(read)
        for kind, n in info.bytes_read.items():
            self.bytes[kind] = self.bytes.get(kind, 0) + n


@dataclass(frozen=True)
class Options:
    """How the underlying `kvist.Cache` is made once the first keys show their shape."""

    slots: int
    select: Any
    budget: int | None
    host: Any
    dense_slots: tuple[int, ...]
    profile: kvist.Profile | None
    model: str | None
    """The model's name, for the profile."""
    threads: int | None
    page_tokens: int
    scorer: Scorer | None
    prefill: kvist.Prefill
    cluster_order: bool
    layers: tuple[int, ...]
    """The model's layer of each slot."""
    gpu: Gpu


class Store:
    """Sequences, padding and lengths of all layers kvist holds ("slots", numbered from 0)."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.cache: kvist.Cache | None = None
        self.rows: list[kvist.Sequence] = []
        self.seen = [0] * options.slots
        """Tokens per slot, padding included: what transformers calls the sequence length."""
        self.keep: torch.Tensor | None = None
        """`[batch, seen]` on the CPU, bool: real tokens; `None` while nothing is padded."""
        self.counts = self._no_counts()
        self.row_counts: list[list[LayerCounts]] = []
        """The same of every row, as far as it was a row of its own."""
        self.counting = True
        self.recorder: Recorder | None = None
        self.last: dict[int, list[kvist.AttendInfo]] = {}
        self.tracing = False
        self.foreign = False
        """Whether the cache has layers that are not kept here."""
        self.broken: str | None = None
        self.closed = False

    def _no_counts(self) -> list[LayerCounts]:
        return [LayerCounts() for _ in range(self.options.slots)]

    def check_open(self) -> None:
        """Raises `ClosedError` after `close`."""
        if self.closed:
            raise ClosedError("cache: expected an open one, found it closed; make a new one")

    def check_usable(self) -> None:
        """Raises if nothing more may be appended."""
        self.check_open()
        if self.broken is not None:
            raise KvistError(self.broken)

    # -- attention ---------------------------------------------------------------------------

    def attend(
        self,
        slot: int,
        query: torch.Tensor,
        new: tuple[torch.Tensor, torch.Tensor] | None,
        mask: torch.Tensor | None,
        options: dict[str, Any],
    ) -> torch.Tensor:
        """Appends `new` (keys, values), if given, and attends; all or nothing for this slot.

        `query` `[batch, q_heads, new, dim]`; output `[batch, new, q_heads, dim_v]`.
        """
        tokens = query.shape[2]
        past = self.seen[slot] - tokens
        plan = plan_of_tensor(
            mask, tokens, past, None if self.keep is None else self.keep[:, :past]
        )
        if self.recorder is not None:
            self.recorder.add(slot, query, new, plan, options)
        if new is not None:
            self._append(slot, query, *new, plan)
        if plan is not None:
            self.keep = plan.keep
        rows = _token_major(query)
        if tokens == 1 and (plan is None or plan.whole):
            return self._decode(slot, rows, options)
        return self._prefill(slot, rows, plan, options)

    def _append(
        self,
        slot: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: Plan | None,
    ) -> None:
        if self.cache is None:
            self.cache = self._build(query, key, value)
        if not self.rows:
            self.rows = [self.cache.sequence() for _ in range(len(key))]
            self.row_counts = [self._no_counts() for _ in self.rows]
        if len(self.rows) != len(key):
            raise ShapeError(
                f"batch: expected {len(self.rows)} rows as cached, found {len(key)}; "
                "batch_repeat_interleave() or fork() the cache first"
            )
        key, value = _token_major(key), _token_major(value)
        for i, sequence in enumerate(self.rows):
            real = None if plan is None else plan.rows[i]
            k, v = (key[i], value[i]) if real is None else (key[i][real], value[i][real])
            if len(k):
                sequence.append(slot, k, v)

    def _build(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> kvist.Cache:
        check_device(key.device)
        if key.dtype not in DTYPES:
            raise UnsupportedError(
                f"dtype: expected float32, float16 or bfloat16 keys, found {key.dtype}"
            )
        o = self.options
        return kvist.Cache(
            layers=o.slots,
            q_heads=query.shape[1],
            kv_heads=key.shape[1],
            head_dim=key.shape[3],
            value_dim=value.shape[3],
            dtype=DTYPES[key.dtype],
            host=o.host,
            select=o.select,
            budget=o.budget,
            dense_layers=o.dense_slots,
            threads=o.threads,
            page_tokens=o.page_tokens,
            profile=o.profile,
            model=o.model,
            cluster_order=o.cluster_order,
            **o.gpu.beside(key.device),
        )

    def _decode(self, slot: int, query: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        """One new token in every row: `query` `[batch, 1, q_heads, dim]`."""
        assert self.cache is not None
        want = self.counting or self.tracing
        options = {**options, "info": want, "selected": self.tracing, "bound": self.tracing}
        if self.options.scorer is not None:
            layer = self.options.layers[slot]
            options["scores"] = self.options.scorer(layer, query[:, 0], self.seen[slot])
        infos: list[kvist.AttendInfo] = []
        if len(self.rows) == 1:
            out: Any = self.rows[0].attend(slot, query[0], **options)
            if want:
                out, infos = out[0], [out[1]]
            out = out.unsqueeze(0)
        else:
            out = self.cache.attend_batch(slot, query[:, 0], self.rows, **options)
            if want:
                out, infos = out
            out = out.unsqueeze(1)
        if self.counting:
            for row, info, own in zip(self.rows, infos, self.row_counts):
                length = row.layer_len(slot)
                self.counts[slot].add(info, length)
                own[slot].add(info, length)
        if self.tracing:
            self.last[slot] = infos
        return out

    def _prefill(
        self, slot: int, query: torch.Tensor, plan: Plan | None, options: dict[str, Any]
    ) -> torch.Tensor:
        """Several new tokens, or rows of which some have none: row by row."""
        if slot not in self.options.dense_slots:
            options = {**options, "prefill": self.options.prefill}
        if plan is None and len(self.rows) == 1:
            return self.rows[0].attend(slot, query[0], **options).unsqueeze(0)
        out = None
        for i, sequence in enumerate(self.rows):
            real = None if plan is None else plan.rows[i]
            q = query[i] if real is None else query[i][real]
            if not len(q):
                continue
            one = sequence.attend(slot, q, **options)
            if out is None:
                # Padding queries attend to nothing and give zeros.
                out = one.new_zeros((*query.shape[:2], *one.shape[1:]))
            if real is None:
                out[i] = one
            else:
                out[i, real] = one
        return torch.zeros_like(query) if out is None else out

    # -- length ------------------------------------------------------------------------------

    def crop(self, length: int) -> None:
        """Keeps the first `length` positions (padding included) of every row."""
        for i, sequence in enumerate(self.rows):
            real = length if self.keep is None else int(self.keep[i, :length].sum())
            sequence.truncate(real)
        self.keep = None if self.keep is None else self.keep[:, :length]
        self.seen = [min(n, length) for n in self.seen]

    def roll_back(self, length: int, cause: KvistError) -> None:
        """Undoes a forward that failed half-way: back to `length` positions in every layer."""
        self.crop(length)
        if self.foreign:
            self.broken = (
                f"a forward failed half-way ({cause}) and layers that kvist does not hold cannot be "
                "rolled back; reset() the cache"
            )

    def reset(self) -> None:
        """Forgets every token; options stay."""
        for row in self.rows:
            row.close()
        self.rows = []
        self.seen = [0] * self.options.slots
        self.keep = None
        self.broken = None
        self.counts, self.row_counts = self._no_counts(), []
        self.last = {}

    # -- batch -------------------------------------------------------------------------------

    def select_rows(self, index: list[int]) -> None:
        """Row `i` becomes what row `index[i]` was; a row used again is a fork (shared pages)."""
        count = len(self.rows)
        bad = [i for i in index if not -count <= i < count]
        if bad:
            raise ShapeError(f"batch index: expected below {count}, found {bad[0]}")
        index = [i % count for i in index]
        used: set[int] = set()
        rows, counts = [], []
        for i in index:
            rows.append(self.rows[i].fork() if i in used else self.rows[i])
            counts.append(self._no_counts() if i in used else self.row_counts[i])
            used.add(i)
        for i, row in enumerate(self.rows):
            if i not in used:
                row.close()
        self.rows, self.row_counts = rows, counts
        if self.keep is not None:
            self.keep = self.keep[torch.tensor(index)]

    def fork(
        self,
        selects: list[Any],
        budget: int | None,
        profile: kvist.Profile | None,
        views: list[kvist.View | None],
    ) -> Store:
        """A second store over the same pages; each row with its own selection, `None` for the same, and
        its own view."""
        other = Store(self.options)
        other.cache = self.cache
        other.rows = [
            row.fork(select=select, budget=budget, profile=profile, view=view)
            for row, select, view in zip(self.rows, selects, views)
        ]
        other.row_counts = [self._no_counts() for _ in self.rows]
        other.seen = list(self.seen)
        other.keep = self.keep
        other.counting = self.counting
        other.foreign = self.foreign
        return other


@dataclass
class Handle:
    """Travels on the key tensor from `update` to the attention function."""

    store: Store
    slot: int
    past: int
    """Positions cached before this update."""
    used: bool = False

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        **options: Any,
    ) -> torch.Tensor:
        """See `Store.attend`. A layer that shares another's keys finds them appended already."""
        if options["sinks"] is not None:
            options["sinks"] = options["sinks"].detach().float()
        new = None if self.used else (key.detach(), value.detach())
        self.used = True
        try:
            return self.store.attend(self.slot, query.detach(), new, mask, options)
        except KvistError as error:
            self.store.roll_back(self.past, error)
            raise


def _token_major(x: torch.Tensor) -> torch.Tensor:
    """`[batch, heads, tokens, dim]` as `[batch, tokens, heads, dim]`, a view."""
    return x.transpose(1, 2)
