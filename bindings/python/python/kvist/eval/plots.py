"""The report's pictures, as SVG. Colours are those of Okabe and Ito, which all eyes tell apart; every
selector has a marker of its own too, and where there are more than colours, another dash."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from .options import FULL, NO_TEXT
from .stats import Depth, Interval, Row

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B7500")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
DASHES = ("-", "--", ":")
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.hashsalt": "kvist",
    "figure.constrained_layout.use": True,
}
Look = dict[str, dict[str, Any]]
"""Selector to its lines' colour, marker and dash."""


def look_of(rows: list[Row]) -> Look:
    """The same colour and marker for a selector in every picture."""
    names = [r.select for r in rows if r.select not in (FULL, NO_TEXT)]
    return {
        name: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "ls": DASHES[i // len(COLOURS) % len(DASHES)],
            "ms": 4.5,
            "lw": 1.3,
        }
        for i, name in enumerate(dict.fromkeys(names))
    }


def svg(figure: Any) -> str:
    """The picture as text, without the date."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    return buffer.getvalue()


def scores(rows: list[Row], look: Look) -> str:
    """Score by budget, a picture per task; rows of one model and length."""
    with plt.rc_context(STYLE):
        figure, axes = _facets(rows)
        for axis, (task, mine) in axes:
            _budget_axis(axis, mine)
            axis.set_title(task)
            axis.set_ylim(-3, 103)
            for row in mine:
                if row.select == FULL:
                    low, high = 100 * row.score[1], 100 * row.score[2]
                    axis.axhspan(low, high, color="#000000", alpha=0.07, lw=0)
                    axis.axhline(100 * row.score[0], color="#000000", ls="--", lw=1.2)
                elif row.select == NO_TEXT:
                    axis.axhline(100 * row.score[0], color="#7f7f7f", ls=":", lw=1.4)
            _lines(axis, mine, look, _percent)
        for axis in figure.axes[:: _columns(rows)]:
            axis.set_ylabel("score (%)")
        _legend(figure, look, reference=True)
        return svg(figure)


def divergences(rows: list[Row], look: Look) -> str:
    """KL to full attention by budget, a picture per task; rows of one model and length."""
    with plt.rc_context(STYLE):
        figure, axes = _facets(rows)
        for axis, (task, mine) in axes:
            _budget_axis(axis, mine)
            axis.set_title(task)
            _log_axis(axis)
            _lines(axis, mine, look, lambda r: r.kl)
        for axis in figure.axes[:: _columns(rows)]:
            axis.set_ylabel("KL to full (nats)")
        _legend(figure, look, reference=False)
        return svg(figure)


def reads(rows: list[Row], look: Look) -> str:
    """Tokens and bytes read per step by budget, a pair of pictures per length; one model."""
    lengths = sorted({r.length for r in rows})
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(lengths), 2, figsize=(8.2, 0.6 + 2.5 * len(lengths)), squeeze=False
        )
        for axes, length in zip(grid, lengths):
            mine = _mean_reads([r for r in rows if r.length == length])
            full = next(r for r in mine if r.select == FULL)
            for axis in axes:
                _budget_axis(axis, mine)
                axis.set_ylim(0, 108)
                axis.axhline(100, color="#000000", ls="--", lw=1.2)
            axes[0].set_title(f"tokens per KV head, length {length}")
            axes[0].set_ylabel("% of full")
            axes[1].set_title(f"bytes, length {length} (full: {full.bytes_read / 1e6:.0f} MB)")
            for axis, what in zip(axes, ("tokens_read", "bytes_read")):
                _lines(axis, mine, look, _share_of(full, what))
        _legend(figure, look, reference=False, full=True)
        return svg(figure)


def depths(cells: list[Depth]) -> str:
    """Share of needles found by depth (across) and way to read (down), a picture per length."""
    cells = [c for c in cells if c.label != NO_TEXT]
    lengths = sorted({c.length for c in cells})
    labels = list(dict.fromkeys(c.label for c in cells))
    bins = len(cells[0].found)
    widest = max(map(len, labels))
    with plt.rc_context({**STYLE, "axes.grid": False}):
        size = (1 + 0.07 * widest + 2.5 * len(lengths), 1.0 + 0.24 * len(labels))
        figure, axes = plt.subplots(1, len(lengths), figsize=size, squeeze=False, sharey=True)
        image = None
        for axis, length in zip(axes[0], lengths):
            table = np.full((len(labels), bins), np.nan)
            for cell in cells:
                if cell.length == length:
                    shares = zip(cell.found, cell.asked)
                    row = [100 * found / asked if asked else np.nan for found, asked in shares]
                    table[labels.index(cell.label)] = row
            image = axis.imshow(table, cmap="cividis", vmin=0, vmax=100, aspect="auto")
            for (y, x), value in np.ndenumerate(table):
                if not np.isnan(value):
                    colour = "#000000" if value > 55 else "#ffffff"
                    axis.text(x, y, f"{value:.0f}", ha="center", va="center", color=colour)
            axis.set_title(f"{length} tokens")
            names = [f"{100 * i // bins}-{100 * (i + 1) // bins}" for i in range(bins)]
            axis.set_xticks(range(bins), names)
            axis.set_yticks(range(len(labels)), labels)
            axis.spines[:].set_visible(False)
            axis.tick_params(length=0)
            axis.set_xlabel("depth (%)")
        figure.colorbar(image, ax=axes, label="found (%)", shrink=0.9, aspect=20)
        return svg(figure)


def _percent(row: Row) -> Interval:
    middle, low, high = row.score
    return 100 * middle, 100 * low, 100 * high


def _share_of(full: Row, what: str) -> Callable[[Row], Interval]:
    """A figure in percent of full attention's, without an interval."""
    return lambda row: (100 * getattr(row, what) / getattr(full, what),) * 3


def _columns(rows: list[Row]) -> int:
    return min(4, len({r.task for r in rows}))


def _facets(rows: list[Row]) -> tuple[Any, Any]:
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row.task, []).append(row)
    columns = _columns(rows)
    lines = -(-len(tasks) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(max(5.0, 0.8 + 2.5 * columns), 0.8 + 2.4 * lines), squeeze=False
    )
    for axis in grid.flat[len(tasks) :]:
        figure.delaxes(axis)
    return figure, list(zip(grid.flat, tasks.items()))


def _budget_axis(axis: Any, rows: list[Row]) -> None:
    """Budgets as shares of the length, on a logarithmic axis that names those there are."""
    known = {r.budget / r.length: r.share for r in rows if r.budget is not None}
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(sorted(known)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: known.get(x, "")))
    if known:
        axis.set_xlim(min(known) / 1.35, max(known) * 1.35)
    axis.set_xlabel("budget")


def _log_axis(axis: Any) -> None:
    """A logarithmic axis with plain numbers, three in a decade."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def _lines(axis: Any, rows: list[Row], look: Look, value: Callable[[Row], Interval]) -> None:
    """A line with intervals per selector; side by side where they would cover each other."""
    for place, (name, style) in enumerate(look.items()):
        mine = sorted(
            (r for r in rows if r.select == name and r.budget is not None),
            key=lambda r: r.budget or 0,
        )
        shift = 1 + 0.035 * (place - (len(look) - 1) / 2)
        if mine:
            x = [shift * (r.budget or 0) / r.length for r in mine]
            middle, low, high = np.array([value(r) for r in mine]).T
            axis.errorbar(
                x, middle, (np.maximum(0, middle - low), np.maximum(0, high - middle)),
                elinewidth=0.9, capsize=2, **style,
            )  # fmt: skip
        for row in rows:
            if row.select == name and row.budget is None:
                # It sets its own budget: it stands where it read.
                share = min(1.0, row.tokens_read / row.length)
                axis.plot(share, value(row)[0], **{**style, "ls": ""})


def _mean_reads(rows: list[Row]) -> list[Row]:
    """One row per rule: the mean over tasks."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.select != NO_TEXT:
            groups.setdefault(row.rule, []).append(row)
    means = []
    for mine in groups.values():
        fields = {**mine[0].__dict__}
        for name in ("tokens_read", "bytes_read"):
            fields[name] = float(np.mean([getattr(r, name) for r in mine]))
        means.append(Row(**fields))
    return means


def _legend(figure: Any, look: Look, reference: bool, full: bool = False) -> None:
    """Below the picture."""
    handles = [plt.Line2D([], [], label=name, **style) for name, style in look.items()]
    if reference or full:
        handles.append(plt.Line2D([], [], color="#000000", ls="--", lw=1.2, label="full attention"))
    if reference:
        handles.append(
            plt.Line2D([], [], color="#7f7f7f", ls=":", lw=1.4, label="without the text")
        )
    # In inches: a name with its line, and a row of them.
    widest = 0.5 + 0.055 * max(len(handle.get_label()) for handle in handles)
    columns = min(len(handles), max(1, int(figure.get_figwidth() / widest)))
    figure.set_figheight(figure.get_figheight() + 0.19 * (len(handles) // columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
