"""What a `KvistCache` read and holds, as numbers and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._store import LayerCounts, Store


@dataclass(frozen=True)
class LayerReport:
    """One model layer. Reads are means over the decode steps so far."""

    layer: int
    kind: str
    """`kvist`, `kvist (dense)` or the library's layer class."""
    steps: int
    tokens_read: float
    """Tokens read per KV head and step."""
    share_read: float
    """Of the tokens there were."""
    bytes_read: float
    """Bytes of summaries, keys and values read per step."""
    resident_bytes: int


@dataclass(frozen=True)
class Report:
    """All layers of a cache; `str(report)` is a table."""

    tokens: int
    """Positions cached, padding included."""
    rows: int
    select: str
    layers: tuple[LayerReport, ...]
    page_bytes: int
    summary_bytes: int
    overhead_bytes: int
    other_bytes: int
    """Tensors of layers that kvist does not hold."""

    @property
    def resident_bytes(self) -> int:
        """All bytes of keys, values and summaries, pages shared with forks included."""
        return self.page_bytes + self.summary_bytes + self.overhead_bytes + self.other_bytes

    @property
    def bytes_read(self) -> float:
        """Per decode step, all layers kvist holds."""
        return sum(layer.bytes_read for layer in self.layers)

    @property
    def tokens_read(self) -> float:
        """Per KV head and decode step, mean over the layers kvist holds, dense ones included."""
        held = [layer.tokens_read for layer in self.layers if layer.kind.startswith("kvist")]
        return sum(held) / max(1, len(held))

    def __str__(self) -> str:
        lines = [
            f"{self.rows} x {self.tokens} tokens, select {self.select}, "
            f"{human(self.resident_bytes)} resident "
            f"(pages {human(self.page_bytes)}, summaries {human(self.summary_bytes)}, "
            f"tables {human(self.overhead_bytes)}, other layers {human(self.other_bytes)})",
            f"{'layer':>5}  {'kind':<26} {'steps':>6} {'tokens/head':>11} {'share':>7} "
            f"{'bytes/step':>11} {'resident':>10}",
        ]
        for x in self.layers:
            lines.append(
                f"{x.layer:>5}  {x.kind:<26} {x.steps:>6} {x.tokens_read:>11.0f} "
                f"{x.share_read:>6.1%} {human(x.bytes_read):>11} {human(x.resident_bytes):>10}"
            )
        return "\n".join(lines)


def human(n: float) -> str:
    """Bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if abs(n) < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.2f} GiB"


def report_of(
    store: Store, slots: dict[int, int], layers: list[Any], row: int | None = None
) -> Report:
    """See `KvistCache.report`."""
    stats = [row.stats() for row in store.rows]
    pages = sum(s.page_bytes for s in stats)
    summaries = sum(s.summary_bytes for s in stats)
    overhead = sum(s.overhead_bytes for s in stats)
    held = _resident(store, pages, summaries + overhead)
    counts = store.counts if row is None else store.row_counts[row]
    reports, other = [], 0
    for i, layer in enumerate(layers):
        if i in slots:
            reports.append(_kvist_layer(store, i, slots[i], held[slots[i]], counts[slots[i]]))
            continue
        tensors = [t for t in (getattr(layer, "keys", None), getattr(layer, "values", None))]
        size = sum(t.numel() * t.element_size() for t in tensors if t is not None)
        other += size
        reports.append(LayerReport(i, type(layer).__name__, 0, 0.0, 0.0, 0.0, size))
    return Report(
        tokens=max(store.seen),
        rows=len(store.rows),
        select=repr(store.rows[row or 0].select if store.rows else store.options.select),
        layers=tuple(reports),
        page_bytes=pages,
        summary_bytes=summaries,
        overhead_bytes=overhead,
        other_bytes=other,
    )


def _resident(store: Store, pages: int, summaries: int) -> list[int]:
    """Bytes per slot: pages are alike in all layers, summaries in all that are not dense."""
    n, dense = store.options.slots, set(store.options.dense_slots)
    lengths = [sum(row.layer_len(slot) for row in store.rows) for slot in range(n)]
    total = max(1, sum(lengths))
    selected = max(1, sum(length for slot, length in enumerate(lengths) if slot not in dense))
    return [
        pages * length // total + (0 if slot in dense else summaries * length // selected)
        for slot, length in enumerate(lengths)
    ]


def _kvist_layer(
    store: Store, layer: int, slot: int, resident: int, counts: LayerCounts
) -> LayerReport:
    steps = max(1, counts.steps)
    heads = store.cache.kv_heads if store.cache is not None else 1
    return LayerReport(
        layer=layer,
        kind="kvist (dense)" if slot in store.options.dense_slots else "kvist",
        steps=counts.steps,
        tokens_read=counts.tokens / steps / heads,
        share_read=counts.tokens / max(1, counts.available),
        bytes_read=sum(counts.bytes.values()) / steps,
        resident_bytes=resident,
    )
