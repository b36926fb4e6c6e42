"""Lists of words that have to be taken in as a whole: common words and frequent words."""

from __future__ import annotations

import random
from bisect import bisect_right
from itertools import accumulate

from ..words import VALUES
from ._base import ROOM, Document, Maker, Question, Task

_COMMON, _TIMES = 10, 10
"""Common words, and how much more often than the others they stand in the list."""
_FREQUENT = 3


def _question(maker: Maker, text: str, right: list[str], words: list[str]) -> Question:
    token = {word: maker.corpus.encode(" " + word)[0] for word in words}
    return Question(
        tuple(maker.corpus.encode(text)),
        wants=tuple(right),
        candidates=tuple(token.values()),
        right=tuple(token[word] for word in right),
    )


def _numbered(maker: Maker, words: list[str]) -> list[list[int]]:
    """The items of the numbered list."""
    texts = [f"{i}. {word} " for i, word in enumerate(words, start=1)]
    return list(maker.corpus.tokenizer(texts, add_special_tokens=False).input_ids)


def _fits(items: list[list[int]], room: int) -> int:
    """How many items, from the front, take at most `room` tokens."""
    return bisect_right(list(accumulate(map(len, items))), room)


def _common(maker: Maker, length: int, number: int) -> Document:
    rng = maker.rng("cwe", length, number)
    words = maker.corpus.single(VALUES)
    rng.shuffle(words)
    room = length - ROOM
    count = _fits(_numbered(maker, words[:1] * (room // 3)), room)
    # Every other word as often as it takes to fill the list with the words there are.
    extra = _COMMON * (_TIMES - 1)
    rare = max(2, -(-count // (len(words) + extra)))
    kinds = count // rare - extra
    common = words[:_COMMON]
    chosen = common * (_TIMES * rare) + words[_COMMON:kinds] * rare
    rng.shuffle(chosen)
    items = _numbered(maker, chosen)
    context = [token for item in items[: _fits(items, room)] for token in item]
    ask = f"\n\nThe {_COMMON} most common words of the list are:"
    return Document(context, [_question(maker, ask, common, words[:kinds])])


def _zeta(rng: random.Random, words: list[str], count: int) -> list[str]:
    """`count` words in random order; the n-th stands in it in proportion to 1/n^2."""
    weights = [1 / rank**2 for rank in range(1, len(words) + 1)]
    share = count / sum(weights)
    chosen = [
        word for word, weight in zip(words, weights) for _ in range(max(1, int(share * weight)))
    ]
    rng.shuffle(chosen)
    return chosen[:count]


def _frequent(maker: Maker, length: int, number: int) -> Document:
    rng = maker.rng("fwe", length, number)
    words = maker.corpus.single(VALUES)
    rng.shuffle(words)
    words = words[:100]
    # One token each, and one for what may stand before the first.
    chosen = _zeta(rng, words, length - ROOM - 1)
    context = maker.corpus.encode(" " + " ".join(chosen))
    ask = f"\n\nThe {_FREQUENT} most frequent words of the text are:"
    return Document(context, [_question(maker, ask, words[:_FREQUENT], words)])


_RULER = "RULER, arXiv 2404.06654"

TASKS = (
    Task(
        "cwe",
        "a numbered list of words in which ten stand ten times as often as the others",
        f"{_RULER}: common words extraction",
        "share of the 10 common words among the 10 likeliest of the list's words",
        lambda _: 1,
        _common,
        shortest=1536,
    ),
    Task(
        "fwe",
        "words in random order, the n-th most frequent in proportion to 1/n^2",
        f"{_RULER}: frequent words extraction, with real words",
        "share of the 3 most frequent words among the 3 likeliest of the text's words",
        lambda _: 1,
        _frequent,
    ),
)
