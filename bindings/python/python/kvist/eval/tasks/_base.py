"""What a task is made of: documents that are read once, and questions asked of forks of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from ..._errors import OptionError
from ..corpus import Corpus

ROOM = 128
"""Tokens of a length that are left for the question and its answer."""


@dataclass(frozen=True)
class Question:
    """One sample. Its tokens are fed one by one, so that the selector decides at each."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...] = ()
    """What follows the prompt, fed whatever the model says (teacher-forced); empty for a set."""
    scored: tuple[bool, ...] = ()
    """Which tokens of the answer are asked for; the others lead to the next one."""
    wants: tuple[str, ...] = ()
    """Texts that a generated answer should hold; empty if generating says nothing."""
    candidates: tuple[int, ...] = ()
    """Tokens among which a set is to be found."""
    right: tuple[int, ...] = ()
    """The set: those of the candidates that answer the question."""
    whole: bool = False
    """Whether only the whole answer counts; otherwise each of its tokens does."""
    depth: float | None = None
    """Where in the document the answer stands, 0 to 1."""

    @property
    def positions(self) -> list[int]:
        """Positions of prompt and answer after which the model's prediction counts."""
        last = len(self.prompt) - 1
        if not self.answer:
            return [last]
        return [last + i for i, scored in enumerate(self.scored) if scored]

    @property
    def targets(self) -> list[int]:
        """The tokens to be predicted there; none for a set."""
        return [token for token, scored in zip(self.answer, self.scored) if scored]


def whole(prompt: list[int], answer: list[int], want: str, depth: float) -> Question:
    """A question with one answer, of which every token must be right."""
    scored = (True,) * len(answer)
    return Question(tuple(prompt), tuple(answer), scored, wants=(want,), whole=True, depth=depth)


@dataclass(frozen=True)
class Document:
    """A text and what is asked of it."""

    context: list[int]
    questions: list[Question]


@dataclass(frozen=True)
class Maker:
    """What a task makes its documents from."""

    corpus: Corpus
    seed: int

    def rng(self, *of: object) -> random.Random:
        """Random numbers that depend on the seed and these values only."""
        return random.Random("/".join(map(str, (self.seed, *of))))


@dataclass(frozen=True)
class Task:
    """One kind of question."""

    name: str
    about: str
    source: str
    score: str
    """What the score of one sample is."""
    per_document: Callable[[int], int]
    """Questions of one document, by length."""
    build: Callable[[Maker, int, int], Document]
    """The document of a length with this number; the same every time."""
    binary: bool = False
    """Whether a score is 0 or 1."""
    shortest: int = 512
    """The shortest length, in tokens."""
    revision: int = 1
    """Raised when the documents change, so that old results are not mixed with new ones."""

    def document(self, maker: Maker, length: int, number: int) -> Document:
        """Document `number`, at most `length` tokens with any of its questions and answers.

        Raises `OptionError` if the length is too short for the task.
        """
        if length < self.shortest:
            raise OptionError(
                f"length: expected at least {self.shortest} tokens for {self.name}, found {length}"
            )
        document = self.build(maker, length, number)
        longest = max(len(q.prompt) + len(q.answer) for q in document.questions)
        assert len(document.context) <= length - ROOM, (self.name, len(document.context))
        assert longest <= ROOM, (self.name, longest)
        assert len(document.questions) == self.per_document(length), self.name
        return document
