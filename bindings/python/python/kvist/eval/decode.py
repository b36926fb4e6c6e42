"""Reading a document once, and answering its questions over forks of what was read.

Every token of a question is a decode step of its own, so that the selector decides at each of them;
only the document is prefilled, and its last tokens once for each selector, as some look at the queries
of a prompt's end. Questions of one length are decoded together as a batch, by all selectors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kvist.hf import KvistCache, Report

from .options import TAIL
from .tasks import Question

CHUNK = 512
"""Tokens of a prefill step."""
BATCH = 64
"""Rows decoded together: questions by selectors."""
EXTRA = 8
"""Tokens that a generated answer may be longer than the expected one."""


@dataclass(frozen=True)
class Answer:
    """What the model said to one question."""

    log_probs: torch.Tensor
    """`[positions, vocab]`, natural, f32: its predictions where they count."""
    generated: list[int] | None
    """A greedy answer, where it cannot be told from the predictions."""
    tokens_read: float = 0.0
    """Per KV head and step, mean over layers, dense ones included."""
    bytes_read: float = 0.0
    """Per step, all layers kvist holds, had the question been decoded alone."""


ITEM_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


class Decoder:
    """One model, whose attention implementation becomes "kvist"."""

    def __init__(self, model: Any, stop: set[int], host: str | int) -> None:
        self.model = model
        self.stop = stop
        """Tokens that end a generated answer."""
        self.host = host

    def prefill(
        self,
        ids: Sequence[int],
        dense_layers: Sequence[int],
        progress: Callable[[int], None],
        select: Any = "full",
    ) -> KvistCache:
        """Reads a document densely but for its last `TAIL` tokens, and lets the selector look on;
        `progress` is told the tokens read so far."""
        cache = KvistCache.for_model(
            self.model, select=select, host=self.host, dense_layers=dense_layers
        )
        ids = ids[:-TAIL]
        for at in range(0, len(ids), CHUNK):
            self._read(cache, [ids[at : at + CHUNK]])
            progress(min(len(ids), at + CHUNK))
        return cache

    def _read(self, cache: KvistCache, rows: Sequence[Sequence[int]]) -> None:
        with torch.inference_mode():
            self.model(torch.tensor(rows), past_key_values=cache, logits_to_keep=1)

    def answer(
        self,
        read: KvistCache,
        tail: Sequence[int],
        selects: Sequence[Any],
        questions: Sequence[Question],
    ) -> Iterator[tuple[int, list[Answer]]]:
        """Number of every question, as they are done, and its answer by each of `selects` (`None`: that
        which looked on when the document was read), from forks of what `prefill` read; `tail` is the
        document's last `TAIL` tokens, which are read densely, too."""
        ways = range(len(selects))
        with read.fork() as rows:
            rows.batch_repeat_interleave(len(ways))
            with rows.fork(select=None if None in selects else selects) as document:
                self._read(document, [tail] * len(ways))
                for group in batches(questions, max(1, BATCH // len(ways))):
                    asked = [questions[i] for _ in ways for i in group]
                    with document.fork() as cache, torch.inference_mode():
                        cache.batch_repeat_interleave(len(group))
                        answers = self._group(cache, asked)
                    for place, i in enumerate(group):
                        yield i, answers[place :: len(group)]

    def _group(self, cache: KvistCache, questions: list[Question]) -> list[Answer]:
        """Answers of questions with prompts of one length, one for each row of the batch."""
        prompt = torch.tensor([q.prompt for q in questions])
        longest = max(len(q.answer) for q in questions)
        # Rows that are done go on with a token whose output nobody looks at.
        forced = torch.tensor([[*q.answer, *(0,) * (longest - len(q.answer))] for q in questions])
        kept: list[dict[int, torch.Tensor]] = [{} for _ in questions]

        def step(ids: torch.Tensor, position: int) -> None:
            logits = self.model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1]
            for row, question in enumerate(questions):
                if position in question.positions:
                    kept[row][position] = logits[row].float().log_softmax(-1)

        for position in range(prompt.shape[1]):
            step(prompt[:, position : position + 1], position)
        asked = cache.fork()
        for i in range(longest - 1):
            step(forced[:, i : i + 1], prompt.shape[1] + i)
        log_probs = [torch.stack([row[p] for p in sorted(row)]) for row in kept]
        generated = self._generate(asked, questions, log_probs)
        reads = [cache.report(row) for row in range(len(questions))]
        return [
            Answer(p, said, report.tokens_read, _bytes_alone(cache, report))
            for p, said, report in zip(log_probs, generated, reads)
        ]

    def _generate(
        self, cache: KvistCache, questions: list[Question], log_probs: list[torch.Tensor]
    ) -> list[list[int] | None]:
        """Greedy answers of the questions whose forced predictions do not settle them."""
        rows = [i for i, (q, p) in enumerate(zip(questions, log_probs)) if not settled(q, p)]
        said: list[list[int] | None] = [None] * len(questions)
        with cache:
            if not rows:
                return said
            cache.batch_select_indices(torch.tensor(rows))
            answers: list[list[int]] = [[] for _ in rows]
            room = [_room(questions[i]) for i in rows]
            ids = torch.stack([log_probs[i][0].argmax() for i in rows])[:, None]
            while True:
                for answer, token, most in zip(answers, ids[:, 0].tolist(), room):
                    if len(answer) < most and not (answer and answer[-1] in self.stop):
                        answer.append(token)
                if all(
                    len(answer) == most or answer[-1] in self.stop
                    for answer, most in zip(answers, room)
                ):
                    break
                logits = self.model(ids, past_key_values=cache, logits_to_keep=1).logits
                ids = logits[:, -1:].argmax(-1)
        for i, answer in zip(rows, answers):
            said[i] = answer
        return said

    def without_text(self, head: Sequence[int], questions: Sequence[Question]) -> list[Answer]:
        """The same questions with nothing read but `head`: what the model knows or guesses."""
        answers: list[Answer | None] = [None] * len(questions)
        for group in batches(questions, BATCH):
            longest = max(len(questions[i].answer) for i in group)
            rows = []
            for i in group:
                question = questions[i]
                padding = (0,) * (longest - len(question.answer))
                rows.append([*head, *question.prompt, *question.answer, *padding])
            with torch.inference_mode():
                logits = self.model(torch.tensor(rows)).logits[:, len(head) :]
            for row, i in enumerate(group):
                kept = logits[row, questions[i].positions].float().log_softmax(-1)
                answers[i] = Answer(kept, None)
        return [answer for answer in answers if answer is not None]


def settled(question: Question, log_probs: torch.Tensor) -> bool:
    """Whether the predictions already say what a greedy answer is worth: nothing is asked of it, it
    is a chain, or its own tokens would be the forced ones."""
    if not question.wants or (question.answer and not question.whole):
        return True
    return bool(question.answer) and log_probs.argmax(-1).tolist() == question.targets


def _bytes_alone(cache: KvistCache, report: Report) -> float:
    """Bytes per step of a row without the batch, whose rows share what they all read: layers that
    read every token."""
    shape = cache._store.cache
    assert shape is not None
    token = (shape.head_dim + shape.value_dim) * ITEM_BYTES[shape.dtype] * shape.kv_heads
    return sum(
        layer.tokens_read * token if layer.share_read == 1 else layer.bytes_read
        for layer in report.layers
    )


def _room(question: Question) -> int:
    expected = len(question.answer) if question.answer else 3 * len(question.right)
    return expected + EXTRA


def batches(questions: Sequence[Question], most: int) -> list[list[int]]:
    """Numbers of the questions, at most so many with prompts of one length together."""
    groups: dict[int, list[int]] = defaultdict(list)
    for i, question in enumerate(questions):
        groups[len(question.prompt)].append(i)
    parts = []
    for _, group in sorted(groups.items()):
        parts += [group[at : at + most] for at in range(0, len(group), most)]
    return parts
