"""The results as one HTML page, as Markdown and as JSON."""

from __future__ import annotations

import base64
import html
import json
import os
import platform
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import kvist

from . import plots
from .options import FULL, NO_TEXT
from .records import Results
from .stats import RESAMPLES, Interval, Row, by_depth, current, summarise
from .tasks import TASKS

HEAD = (
    "task", "selector", "budget", "n", "texts", "score", "95 %", "vs full", "95 %", "generated",
    "KL mean", "KL max", "perplexity", "nats lost", "same top", "tokens read", "MB/step",
)  # fmt: skip

NOTES = (
    "Score: teacher-forced, see the tasks below. Generated: share of what was asked for that a greedy "
    "answer holds. Vs full: points of score more or fewer than full attention on the same questions. "
    "KL (nats): of full attention's prediction from this one, at the answer's positions. Perplexity: "
    "of the answer's tokens (of a set: of its members). Nats lost: log-probability less than full "
    "attention gives the answer, per token. Same top: positions with full attention's likeliest token. "
    "Tokens read: per KV head and step, mean over the layers kvist holds, dense ones included. MB/step: "
    "summaries, keys and values of those layers.",
    "Intervals are of 95 %. Where a question is right or wrong: Wilson (its difference to full: Agresti "
    "and Min), with as many questions as would say the same if those about one text were independent. "
    f"Else the percentile bootstrap over texts ({RESAMPLES} resamples); it has no width where all came "
    "out the same, and with few texts says little.",
    "'no text' asks the same questions without the document: what the model knows or guesses.",
)


def write(results: Results, directory: Path) -> list[Path]:
    """Writes `report.html`, `summary.md` and `summary.json`; nothing if there are no results."""
    rows = summarise(results)
    if not rows:
        return []
    files = {
        "report.html": page(results, rows),
        "summary.md": markdown(results, rows),
        "summary.json": summary(results, rows),
    }
    for name, text in files.items():
        part = directory / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        # A reader never finds half a file.
        part.replace(directory / name)
    return [directory / name for name in files]


def summary(results: Results, rows: list[Row]) -> str:
    """Machine, settings of the runs, and a line per row as `kvist bench` writes them."""
    lines = ",\n".join(f"  {json.dumps(_line(row))}" for row in rows)
    runs = ",\n".join(f"  {json.dumps(settings)}" for settings in current(results).values())
    machine = json.dumps(_machine())
    return f'{{"machine": {machine},\n"runs": [\n{runs}\n],\n"lines": [\n{lines}\n]}}\n'


def _line(row: Row) -> dict[str, object]:
    names = ("documents", "score", "generated", "difference", "kl", "kl_max", "agree",
             "perplexity", "lost", "tokens_read", "bytes_read")  # fmt: skip
    full = row.score[0] - row.difference[0]
    return {
        "bench": "eval",
        "params": {
            "model": row.model, "task": row.task, "length": row.length, "select": row.select,
            "budget": row.budget,
        },
        "value": _short(row.score[0]),
        "unit": "score",
        "floor": None,
        "fraction": None,
        "peer": None if row.select == FULL else FULL,
        "peer_value": None if row.select == FULL else _short(full),
        "ratio": _short(row.score[0] / full) if row.select != FULL and full else None,
        "repeats": row.samples,
        "spread": None,
        "columns": {name: _short(getattr(row, name)) for name in names},
    }  # fmt: skip


def _short(value: Any) -> Any:
    """Six digits of a figure, or of each of several."""
    if isinstance(value, tuple):
        return [_short(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _machine() -> dict[str, object]:
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "version": kvist.__version__,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def _cells(row: Row) -> list[str]:
    answered = row.select != NO_TEXT
    return [
        row.task,
        row.select,
        row.share,
        str(row.samples),
        str(row.documents),
        f"{100 * row.score[0]:.1f}",
        _ends(row.score),
        f"{100 * row.difference[0]:+.1f}" if row.select != FULL else "",
        _ends(row.difference, sign="+") if row.select != FULL else "",
        f"{100 * row.generated[0]:.1f}" if row.generated else "",
        f"{row.kl[0]:.4f}" if row.select != FULL else "",
        f"{row.kl_max:.3f}" if row.select != FULL else "",
        f"{row.perplexity:.4g}",
        f"{row.lost[0]:+.4f}" if row.select != FULL else "",
        f"{100 * row.agree:.1f}" if row.select != FULL else "",
        f"{row.tokens_read:.0f}" if answered else "",
        f"{row.bytes_read / 1e6:.2f}" if answered else "",
    ]


def _ends(interval: Interval, sign: str = "") -> str:
    return f"{100 * interval[1]:{sign}.1f} to {100 * interval[2]:{sign}.1f}"


def _sections(rows: list[Row]) -> list[tuple[str, int, list[Row]]]:
    keys = dict.fromkeys((r.model, r.length) for r in rows)
    return [(m, n, [r for r in rows if (r.model, r.length) == (m, n)]) for m, n in keys]


def markdown(results: Results, rows: list[Row]) -> str:
    """The tables."""
    lines = ["# kvist eval", "", _setup(results), ""]
    for model, length, mine in _sections(rows):
        lines += [f"## {model}, {length} tokens", "", f"| {' | '.join(HEAD)} |"]
        lines.append(f"| --- | --- |{' ---: |' * (len(HEAD) - 2)}")
        lines += [f"| {' | '.join(_cells(r))} |" for r in mine]
        lines.append("")
    for note in NOTES:
        lines += [note, ""]
    lines += [f"- `{name}`: {TASKS[name].about} ({TASKS[name].source}). Score: {TASKS[name].score}."
              for name in dict.fromkeys(r.task for r in rows)]  # fmt: skip
    return "\n".join(lines) + "\n"


def _setup(results: Results) -> str:
    runs = list(current(results).values())
    builds = sorted({str(s["build"]) for s in runs})
    dense = sorted({str(s["dense_layers"]) for s in runs})
    seeds = sorted({str(s["seed"]) for s in runs})
    return (
        f"kvist {kvist.__version__} (build {', '.join(builds)}), f32, on {platform.machine()}; "
        f"dense layers {', '.join(dense)}; seed {', '.join(seeds)}."
    )


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>kvist eval</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1360px; margin: 2.5em auto; padding: 0 1.5em;
       color: #1f2328; }}
h1 {{ font-size: 1.7em; margin-bottom: 0; }} h2 {{ font-size: 1.3em; margin-top: 2.2em; }}
h3 {{ font-size: 1.05em; margin-top: 1.8em; }} .sub {{ color: #59636e; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: 12px; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .2em .45em; text-align: right; border-bottom: 1px solid #e3e6ea; white-space: nowrap; }}
th:nth-child(-n+2), td:nth-child(-n+2) {{ text-align: left; }} th {{ color: #59636e; font-weight: 600; }}
tr.full td {{ background: #f6f8fa; font-weight: 600; }} tr.none td {{ color: #59636e; }}
tr.first td {{ border-top: 2px solid #afb8c1; }}
img {{ max-width: min(100%, 1000px); display: block; margin: .6em 0; }}
</style></head><body>
<h1>kvist eval</h1><p class="sub">{setup}</p>
{body}
<h2>What the figures are</h2>{notes}
<ul>{tasks}</ul></body></html>
"""


def page(results: Results, rows: list[Row]) -> str:
    """The page; pictures are inside it."""
    look = plots.look_of(rows)
    parts = []
    for model in dict.fromkeys(r.model for r in rows):
        mine = [r for r in rows if r.model == model]
        parts.append(f"<h2>{html.escape(model)}</h2>")
        for _, length, section in _sections(mine):
            parts.append(f"<h3>{length} tokens: score</h3>")
            parts.append(_image(plots.scores(section, look), f"score by budget at {length} tokens"))
            if look:
                parts.append(f"<h3>{length} tokens: KL to full attention</h3>")
                parts.append(_image(plots.divergences(section, look), f"KL by budget at {length}"))
            parts.append(_table(section))
        cells = by_depth(results, model, "needle")
        if cells:
            parts.append("<h3>Needles found, by depth and length</h3>")
            parts.append(_image(plots.depths(cells), "needles found by depth and length"))
        if look:
            parts.append("<h3>What a decode step reads</h3>")
            parts.append(_image(plots.reads(mine, look), "tokens and bytes read by budget"))
    tasks = "".join(
        f"<li><b>{name}</b>: {html.escape(TASKS[name].about)} ({html.escape(TASKS[name].source)}). "
        f"Score: {html.escape(TASKS[name].score)}.</li>"
        for name in dict.fromkeys(r.task for r in rows)
    )
    return PAGE.format(
        setup=html.escape(_setup(results)),
        body="\n".join(parts),
        notes="".join(f"<p>{html.escape(note)}</p>" for note in NOTES),
        tasks=tasks,
    )


def _table(rows: list[Row]) -> str:
    lines = []
    for i, row in enumerate(rows):
        kind = {FULL: "full", NO_TEXT: "none"}.get(row.select, "")
        first = " first" if i and rows[i - 1].task != row.task else ""
        cells = "".join(f"<td>{html.escape(c)}</td>" for c in _cells(row))
        lines.append(f'<tr class="{kind}{first}">{cells}</tr>')
    head = "".join(f"<th>{html.escape(h)}</th>" for h in HEAD)
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _image(svg: str, alt: str) -> str:
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{data}">'
