"""The table, and one self-contained page with plots."""

from __future__ import annotations

import base64
import html as escape
import io
import platform
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import kvist

from .measure import Result, Row

COLOURS = {"own": "#8a8f98", "full": "#1f2328", "quest": "#d9822b", "boxed": "#2f6fde"}


def _colour(name: str) -> str:
    return next((c for key, c in COLOURS.items() if key in name), "#1f2328")


HEAD = (
    "cache", "tok/s", "tokens read", "MB read/step", "MB resident", "facts", "same answers",
    "perplexity", "KL mean", "KL max", "proven miss",
)  # fmt: skip


def _cells(row: Row, facts: int) -> list[str]:
    return [
        row.name,
        f"{row.tokens_per_s:.1f}",
        f"{row.tokens_read:.0f}",
        f"{row.bytes_read / 1e6:.1f}",
        f"{row.resident / 1e6:.0f}",
        f"{row.found}/{facts}",
        f"{row.agree}/{facts}",
        f"{row.perplexity:.3f}",
        f"{row.kl:.5f}",
        f"{row.kl_max:.4f}",
        "-" if row.bound is None else f"{row.bound:.3f}",
    ]


def table(result: Result) -> str:
    """The rows as aligned text."""
    cells = [list(HEAD)] + [_cells(r, result.facts) for r in result.rows]
    widths = [max(len(c[i]) for c in cells) for i in range(len(HEAD))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))
        for row in cells
    ]
    lines.insert(1, "-" * len(lines[0]))
    note = (
        f"{result.model}, f32, {result.context} tokens, {_threads(result)}; read and tokens per "
        "decode step (tokens per KV head, layers 0 and 1 dense); perplexity and KL over "
        f"{result.rows[1].steps} held-out tokens, KL to kvist full."
    )
    return "\n".join([*lines, "", note])


def _threads(result: Result) -> str:
    return "1 thread" if result.threads == 1 else f"{result.threads} threads"


def _png(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def _loss(result: Result) -> str:
    figure, axis = plt.subplots(figsize=(6.4, 3.8))
    for kind in ("quest", "boxed"):
        rows = [r for r in result.rows if f"kvist {kind} 1/" in r.name]
        rows.sort(key=lambda r: r.bytes_read)
        axis.plot(
            [r.bytes_read / 1e6 for r in rows], [r.kl for r in rows], "o-", color=COLOURS[kind],
            label=kind,
        )  # fmt: skip
        for r in rows:
            place = (r.bytes_read / 1e6, r.kl)
            axis.annotate(r.name.split()[-1], place, (5, 5), textcoords="offset points", fontsize=8)
    certified = [r for r in result.rows if "missed" in r.name]
    for r in certified:
        axis.plot(r.bytes_read / 1e6, r.kl, "D", color="#1a7f4b", label="boxed, missed mass <= 0.1")
    dense = next(r for r in result.rows if r.name == "kvist full").bytes_read / 1e6
    axis.axvline(dense, color=COLOURS["full"], lw=1, ls="--", label="all keys and values (dense)")
    axis.set_yscale("log")
    axis.margins(y=0.12)
    axis.set_xlim(0, 1.05 * dense)
    axis.set_xlabel("MB of summaries, keys and values read per step")
    axis.set_ylabel("KL to dense attention (mean)")
    axis.grid(alpha=0.25)
    axis.legend(edgecolor="none", framealpha=1, fontsize=8, loc="upper right")
    return _png(figure)


def _speed(result: Result) -> str:
    figure, axis = plt.subplots(figsize=(6.4, 0.45 * len(result.rows) + 0.8))
    names = [r.name for r in result.rows][::-1]
    speeds = [r.tokens_per_s for r in result.rows][::-1]
    bars = axis.barh(names, speeds, color=[_colour(n) for n in names])
    axis.bar_label(bars, fmt=" %.1f", fontsize=8)
    axis.set_xlabel("decoded tokens per second")
    axis.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _reads(result: Result) -> str:
    figure, axis = plt.subplots(figsize=(9.5, 4.6))
    shares = np.maximum(result.reads, 1e-4)
    image = axis.imshow(
        shares, aspect="auto", cmap="magma", norm=matplotlib.colors.LogNorm(1e-3, 0.3),
        extent=(0, result.reads_end, result.layers, 0), interpolation="nearest",
    )  # fmt: skip
    for depth in result.depths:
        axis.axvline(depth, color="white", lw=0.6, ls=":")
    # Above the picture: a line would hide what it points at.
    axis.plot(result.asked_depth, -0.4, "v", color=COLOURS["boxed"], ms=9, clip_on=False)
    axis.set_ylim(result.layers, 0)
    axis.set_xlabel("place in the text (dotted: planted facts; triangle: the one asked for)")
    axis.set_ylabel("layer (a line per KV head)")
    figure.colorbar(image, label="share of the head's reads")
    return _png(figure)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>kvist demo</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2.5em auto; padding: 0 1.5em;
       color: #1f2328; }}
h1 {{ font-size: 1.7em; margin-bottom: 0; }} h2 {{ font-size: 1.15em; margin-top: 2em; }}
.sub {{ color: #59636e; }} table {{ border-collapse: collapse; width: 100%; font-size: 13px; }}
th, td {{ padding: .35em .6em; text-align: right; border-bottom: 1px solid #e3e6ea; }}
th:first-child, td:first-child {{ text-align: left; white-space: nowrap; }} th {{ color: #59636e; font-weight: 600; }}
tr.boxed td:first-child {{ color: #2f6fde; font-weight: 600; }}
.two {{ display: flex; gap: 2em; flex-wrap: wrap; }} img {{ max-width: 100%; }}
.two > div {{ flex: 1 1 0; min-width: 400px; }}
</style></head><body>
<h1>kvist demo</h1>
<p class="sub">{model}, f32 &middot; {context} tokens of CPython documentation, {facts} planted facts
&middot; {threads} on {machine} &middot; kvist {version} &middot; prefill {prefill:.0f} s, all
{seconds:.0f} s</p>
<p>The text was read once. Every row decodes from a fork of the same pages; the model's own cache was
filled with the same keys and values. Layers 0 and 1 read everything in every row.</p>
<table><tr>{head}</tr>{rows}</table>
<p class="sub">Tokens read: per KV head and step, mean over layers. MB read: summaries, keys and values
of all layers per step. Same answers: equal to kvist full token for token. Perplexity and KL (to kvist
full): {steps} held-out tokens, one by one. Proven miss: largest upper bound, over all query heads of
the selecting layers at one step, of the softmax mass not read; a fixed budget promises none.</p>
<div class="two"><div><h2>Loss against bytes read</h2><img src="data:image/png;base64,{loss}"></div>
<div><h2>Speed</h2><img src="data:image/png;base64,{speed}">
<p class="sub">Every step also reads the model's weights, {weights:.0f} MB: the shorter the text, the
less the cache decides.</p></div></div>
<h2>Where in the text each head reads ({read_by})</h2>
<p class="sub">The step that begins the answer to "what is the secret code of {asked}?"</p><img src="data:image/png;base64,{reads}">
</body></html>
"""


def html(result: Result, seconds: float) -> str:
    """The page; pictures are inside it."""
    rows = "".join(
        f'<tr class="{"boxed" if "boxed" in r.name else ""}">'
        + "".join(f"<td>{escape.escape(c)}</td>" for c in _cells(r, result.facts))
        + "</tr>"
        for r in result.rows
    )
    return PAGE.format(
        model=escape.escape(result.model),
        context=result.context,
        facts=result.facts,
        threads=_threads(result),
        machine=escape.escape(platform.machine()),
        version=kvist.__version__,
        prefill=result.prefill_s,
        seconds=seconds,
        head="".join(f"<th>{escape.escape(h)}</th>" for h in HEAD),
        rows=rows,
        steps=result.rows[1].steps,
        loss=_loss(result),
        speed=_speed(result),
        reads=_reads(result),
        weights=result.weights / 1e6,
        read_by=escape.escape(result.read_by),
        asked=escape.escape(result.asked),
    )
