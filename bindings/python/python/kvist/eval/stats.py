"""From records to rows of the tables, with intervals of 95 %.

Shares of questions answered right have Wilson's interval; their paired differences to full
attention that of Agresti and Min (2005: half a pair added to each cell of the 2 x 2 table). Questions
about one document are not independent: both intervals count as many questions as would say the same
if they were, the number divided by the design effect (Kish 1965). Other means have the percentile
bootstrap over documents.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import exp, sqrt

import numpy as np

from .options import FULL
from .records import Record, Results
from .tasks import TASKS

Z = 1.959964
"""Two-sided 95 % of the normal distribution."""
RESAMPLES = 2000

Interval = tuple[float, float, float]
"""A figure, and its interval's ends."""


@dataclass(frozen=True)
class Row:
    """One way to read, for one task at one length."""

    model: str
    task: str
    length: int
    select: str
    budget: int | None
    rule: str
    samples: int
    documents: int
    score: Interval
    generated: Interval | None
    difference: Interval
    """Score minus full attention's, on the same questions."""
    kl: Interval
    kl_max: float
    agree: float
    log_prob: float
    lost: Interval
    """Log-probability less than full attention gives the answer, per token."""
    tokens_read: float
    bytes_read: float

    @property
    def perplexity(self) -> float:
        """Of the tokens asked for."""
        return exp(-self.log_prob)

    @property
    def label(self) -> str:
        """Selector and budget; the budget as a share of the length where that is a round one."""
        return self.select if self.budget is None else f"{self.select} {self.share}"

    @property
    def share(self) -> str:
        """The budget."""
        if self.budget is None:
            return "-"
        if self.length // self.budget * self.budget == self.length:
            return f"1/{self.length // self.budget}"
        return f"{self.budget}"


def design_effect(values: np.ndarray, documents: np.ndarray) -> float:
    """Variance of the mean if documents were drawn, over that if questions were; at least 1.

    `documents`: of each value the number of its document.
    """
    count, parts = len(values), len(np.unique(documents))
    errors = values - values.mean()
    alone = float((errors**2).sum()) / max(1, count * (count - 1))
    if parts < 2 or alone == 0:
        return 1.0
    sums = np.bincount(documents, errors)
    return max(1.0, parts / (parts - 1) * float((sums**2).sum()) / count**2 / alone)


def wilson(hits: float, count: float) -> Interval:
    """Wilson's score interval of a share."""
    share = hits / count
    shrunk = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z * sqrt(share * (1 - share) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
    return share, max(0.0, shrunk - half), min(1.0, shrunk + half)


def paired(won: float, lost: float, count: float) -> Interval:
    """Difference of two shares of the same `count` questions, of which `won` were right the one way
    only and `lost` the other way only."""
    more, less = won + 0.5, lost + 0.5
    middle = (more - less) / (count + 2)
    half = Z * sqrt((more + less) - (more - less) ** 2 / (count + 2)) / (count + 2)
    return (won - lost) / count, max(-1.0, middle - half), min(1.0, middle + half)


def bootstrap(values: np.ndarray, documents: np.ndarray) -> Interval:
    """Mean and percentile interval over resampled documents (if there is but one: questions); the same
    every time."""
    number = np.unique(documents, return_inverse=True)[1]
    if number.max() == 0:
        number = np.arange(len(values))
    sums, counts = np.bincount(number, values), np.bincount(number)
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(counts), (RESAMPLES, len(counts)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def mean(values: np.ndarray, documents: np.ndarray, binary: bool) -> Interval:
    """With Wilson's interval where every value is 0 or 1, else the bootstrap's."""
    if not binary:
        return bootstrap(values, documents)
    effect = design_effect(values, documents)
    return wilson(float(values.sum()) / effect, len(values) / effect)


def difference(
    ours: np.ndarray, theirs: np.ndarray, documents: np.ndarray, binary: bool
) -> Interval:
    """Mean of `ours` minus that of `theirs`, on the same questions."""
    if not binary:
        return bootstrap(ours - theirs, documents)
    effect = design_effect(ours - theirs, documents)
    won, lost = float((ours > theirs).sum()), float((ours < theirs).sum())
    return paired(won / effect, lost / effect, len(ours) / effect)


def current(results: Results) -> dict[str, dict[str, object]]:
    """Settings of the latest run with results of each model, task and length."""
    begun = {record.run for record in results.records}
    latest = {
        (s["model"], s["task"], s["length"]): run
        for run, s in results.settings.items()
        if run in begun
    }
    return {run: results.settings[run] for run in latest.values()}


def summarise(results: Results) -> list[Row]:
    """Rows by model, length, task, and then in the order of the records; tasks in their own order.

    Questions that full attention's answer is missing of are left out.
    """
    runs = current(results)
    full: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in results.records:
        if record.select == FULL:
            full[record.run][record.sample] = record
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in results.records:
        if record.run in runs and record.sample in full[record.run]:
            groups[record.run, record.rule].append(record)
    rows = [_row(runs[run], rule, rs, full[run]) for (run, rule), rs in groups.items()]
    order = list(TASKS)
    rows.sort(key=lambda r: (r.model, r.length, order.index(r.task)))
    return rows


def _row(
    settings: dict[str, object], rule: str, records: list[Record], reference: dict[int, Record]
) -> Row:
    task, length = TASKS[str(settings["task"])], int(str(settings["length"]))
    score, kl, log_prob = (_of(records, name) for name in ("score", "kl", "log_prob"))
    document = np.array([r.sample for r in records]) // task.per_document(length)
    full = [reference[r.sample] for r in records]
    said = [i for i, r in enumerate(records) if r.generated is not None]
    generated = _of([records[i] for i in said], "generated")
    return Row(
        model=str(settings["model"]),
        task=task.name,
        length=length,
        select=records[0].select,
        budget=records[0].budget,
        rule=rule,
        samples=len(records),
        documents=len(np.unique(document)),
        score=mean(score, document, task.binary),
        generated=mean(generated, document[said], task.binary) if said else None,
        difference=difference(score, _of(full, "score"), document, task.binary),
        kl=bootstrap(kl, document),
        kl_max=max(r.kl_max for r in records),
        agree=float(_of(records, "agree").mean()),
        log_prob=float(log_prob.mean()),
        lost=bootstrap(_of(full, "log_prob") - log_prob, document),
        tokens_read=float(_of(records, "tokens_read").mean()),
        bytes_read=float(_of(records, "bytes_read").mean()),
    )


def _of(records: list[Record], name: str) -> np.ndarray:
    return np.array([float(getattr(r, name)) for r in records])


@dataclass(frozen=True)
class Depth:
    """Needles found by depth, for one way to read at one length."""

    label: str
    length: int
    found: list[int]
    asked: list[int]


def by_depth(results: Results, model: str, task: str, bins: int = 5) -> list[Depth]:
    """Answers that were right, in equal parts of the document, front first."""
    runs = current(results)
    table: dict[tuple[str, str], Depth] = {}
    rows = {(r.task, r.length, r.rule): r.label for r in summarise(results) if r.model == model}
    for record in results.records:
        settings = runs.get(record.run)
        if settings is None or (settings["model"], settings["task"]) != (model, task):
            continue
        length = int(str(settings["length"]))
        label = rows.get((task, length, record.rule))
        if label is None or record.depth is None:
            continue
        cell = table.setdefault(
            (record.run, record.rule), Depth(label, length, [0] * bins, [0] * bins)
        )
        place = min(bins - 1, int(record.depth * bins))
        cell.asked[place] += 1
        cell.found[place] += record.score == 1
    return list(table.values())
