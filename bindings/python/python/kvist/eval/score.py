"""From predictions to numbers: what one answer is worth."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from .tasks import Question


@dataclass(frozen=True)
class Score:
    """One answer. Shares lie between 0 and 1, logarithms are natural."""

    score: float
    """Teacher-forced; see the task."""
    generated: float | None
    """Share of what is wanted that a greedy answer holds; `None` if none was made or it says nothing."""
    log_prob: float
    """Mean log-probability of the answer's tokens; of a set, of its members."""
    agree: float
    """Share of the positions whose likeliest token is full attention's."""
    kl: float
    """Mean KL divergence of full attention's prediction from this one, over the positions."""
    kl_max: float


def score(question: Question, log_probs: torch.Tensor, reference: torch.Tensor) -> Score:
    """Scores predictions `[positions, vocab]` against the answer and against full attention's
    predictions `reference`, of the same shape. `generated` is left out."""
    likeliest = log_probs.argmax(-1)
    if question.answer:
        targets = torch.tensor(question.targets)
        hits = (likeliest == targets).float()
        value = float(hits.min() if question.whole else hits.mean())
        log_prob = float(log_probs.gather(1, targets[:, None]).mean())
    else:
        value = recall(log_probs[0], question.candidates, question.right)
        log_prob = float(log_probs[0, list(question.right)].mean())
    # Rounding may leave a sum of nothing just below zero.
    kl = (reference.exp() * (reference - log_probs)).sum(-1).clamp(min=0)
    return Score(
        score=value,
        generated=None,
        log_prob=log_prob,
        agree=float((likeliest == reference.argmax(-1)).float().mean()),
        kl=float(kl.mean()),
        kl_max=float(kl.max()),
    )


def recall(log_probs: torch.Tensor, candidates: tuple[int, ...], right: tuple[int, ...]) -> float:
    """Share of `right` among as many likeliest `candidates`; of equals the first come first."""
    among = log_probs[list(candidates)]
    best = among.sort(descending=True, stable=True).indices[: len(right)].tolist()
    return sum(candidates[i] in right for i in best) / len(right)


def greedy(question: Question, log_probs: torch.Tensor, text: str | None) -> float | None:
    """What a greedy answer is worth; `text` is what was generated, `None` if the predictions tell.

    A single answer must stand in the first line that is not empty, whole and in any case; of a set
    the share that stands anywhere counts; a chain is followed until its first wrong name.
    """
    if not question.wants:
        return None
    if not question.answer:
        assert text is not None
        return sum(holds(text, want) for want in question.wants) / len(question.wants)
    hits = (log_probs.argmax(-1) == torch.tensor(question.targets)).tolist()
    if not question.whole:
        return (hits + [False]).index(False) / len(hits)
    if all(hits):
        return 1.0
    assert text is not None
    return float(holds(text.strip().split("\n")[0], question.wants[0]))


def holds(text: str, want: str) -> bool:
    """Whether a text has these words, up to case, spaces and marks around them."""
    return f" {_normal(want)} " in f" {_normal(text)} "


def _normal(text: str) -> str:
    """Lower case, single spaces; dots, quotes and other marks only inside words."""
    return " ".join(re.findall(r"\w(?:[^\s]*\w)?", text.lower()))
