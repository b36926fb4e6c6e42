"""Facts planted in real text: one needle among many, near-duplicates, several values, chains."""

from __future__ import annotations

from random import Random

from ..words import PEOPLE, PERSON_FACTS, PLACE_FACTS, PLACES, VALUES
from ._base import ROOM, Document, Maker, Question, Task, whole

_FACTS = [(fact, PLACES) for fact in PLACE_FACTS] + [(fact, PEOPLE) for fact in PERSON_FACTS]
_NEEDLES = 20
_GROUPS, _SAME = 6, 3
"""Sentences of the tasks with near-duplicates or several values, and facts of each."""
_CHAINS, _HOPS = 3, 4


def plant(maker: Maker, length: int, start: int, facts: list[str]) -> tuple[list[int], list[float]]:
    """Real text with the facts evenly spread over it, each between two paragraphs.

    Returns `length - ROOM` tokens, and where each fact stands (0 to 1).
    """
    corpus = maker.corpus
    planted = [corpus.encode(fact + "\n\n") for fact in facts]
    total = length - ROOM
    filler = total - sum(map(len, planted))
    context: list[int] = []
    depths: list[float] = []
    used = 0
    for number in corpus.from_paragraph(start):
        while len(depths) < len(facts) and used >= (len(depths) + 0.5) / len(facts) * filler:
            depths.append(len(context) / total)
            context += planted[len(depths) - 1]
        paragraph = corpus.paragraphs[number][: filler - used]
        context += paragraph
        used += len(paragraph)
        if used == filler:
            break
    for tokens in planted[len(depths) :]:
        # A last paragraph longer than the distance between facts left some over.
        depths.append(len(context) / total)
        context += tokens
    return context, depths


def _ask(maker: Maker, sentence: str, value: str, depth: float) -> Question:
    """The sentence up to its value, to be completed."""
    prompt, answer = maker.corpus.split("\n\n" + sentence, " " + value)
    return whole(prompt, answer, value, depth)


def needles_of(length: int) -> int:
    """Needles of one document: at least 60 tokens of text around each."""
    return min(_NEEDLES, length // 80)


def _needle(maker: Maker, length: int, number: int) -> Document:
    rng = maker.rng("needle", length, number)
    count = needles_of(length)
    sentences = [fact.format(key=rng.choice(keys)) for fact, keys in rng.sample(_FACTS, count)]
    values = rng.sample(VALUES, count)
    facts = [f"{sentence} {value}." for sentence, value in zip(sentences, values)]
    context, depths = plant(maker, length, rng.randrange(len(maker.corpus.paragraphs)), facts)
    return Document(context, _all_asked(maker, rng, sentences, values, depths))


def _all_asked(
    maker: Maker, rng: Random, sentences: list[str], values: list[str], depths: list[float]
) -> list[Question]:
    """In random order, so that a few of them already come from all depths."""
    asked = list(zip(sentences, values, depths))
    rng.shuffle(asked)
    return [_ask(maker, *question) for question in asked]


def _groups(
    maker: Maker, rng: Random, length: int, keys: int
) -> tuple[list[int], list[str], list[str], list[float]]:
    """`_GROUPS` sentences with `_SAME` facts each, whose keys are `keys` different ones; the facts
    of a group are spread over the text. Context, sentences, values and depths."""
    known = maker.corpus.single(VALUES)
    values = rng.sample(known, _GROUPS * _SAME)
    chosen = [(fact, rng.sample(of, keys)) for fact, of in rng.sample(_FACTS, _GROUPS)]
    sentences = []
    for turn in range(_SAME):
        sentences += [fact.format(key=names[turn % keys]) for fact, names in chosen]
    facts = [f"{sentence} {value}." for sentence, value in zip(sentences, values)]
    context, depths = plant(maker, length, rng.randrange(len(maker.corpus.paragraphs)), facts)
    return context, sentences, values, depths


def _mkey(maker: Maker, length: int, number: int) -> Document:
    rng = maker.rng("mkey", length, number)
    context, sentences, values, depths = _groups(maker, rng, length, keys=_SAME)
    return Document(context, _all_asked(maker, rng, sentences, values, depths))


def _mvalue(maker: Maker, length: int, number: int) -> Document:
    context, sentences, values, _ = _groups(
        maker, maker.rng("mvalue", length, number), length, keys=1
    )
    token = {value: maker.corpus.encode(" " + value)[0] for value in values}
    questions = []
    for i in range(_GROUPS):
        mine = values[i::_GROUPS]
        questions.append(
            Question(
                tuple(maker.corpus.encode("\n\n" + sentences[i])),
                wants=tuple(mine),
                candidates=tuple(token.values()),
                right=tuple(token[value] for value in mine),
            )
        )
    return Document(context, questions)


def _chain(maker: Maker, length: int, number: int) -> Document:
    rng = maker.rng("vt", length, number)
    names = rng.sample(maker.corpus.single(VALUES), _CHAINS * (_HOPS + 1))
    chains = [names[i::_CHAINS] for i in range(_CHAINS)]
    facts = [f"{chain[hop]} -> {chain[hop + 1]}" for hop in range(_HOPS) for chain in chains]
    context, _ = plant(maker, length, rng.randrange(len(maker.corpus.paragraphs)), facts)
    return Document(context, [_follow(maker, chain) for chain in chains])


def _follow(maker: Maker, chain: list[str]) -> Question:
    """All hops in turn; each is asked after the ones before were answered."""
    corpus = maker.corpus
    answer: list[int] = []
    scored: list[bool] = []
    for hop, name in enumerate(chain[1:], start=1):
        answer += corpus.encode(" " + name)
        scored.append(True)
        if hop < _HOPS:
            lead = corpus.encode(f"\n\n{name} ->")
            answer += lead
            scored += [False] * len(lead)
    prompt = tuple(corpus.encode(f"\n\n{chain[0]} ->"))
    return Question(prompt, tuple(answer), tuple(scored), wants=tuple(chain[1:]))


_RULER = "RULER, arXiv 2404.06654"

TASKS = (
    Task(
        "needle",
        "one planted sentence to complete, of twenty different ones in the text",
        f"{_RULER}: single needle; several per text, as they are all asked for",
        "1 if every token of the value is the likeliest",
        needles_of,
        _needle,
        binary=True,
    ),
    Task(
        "mkey",
        "the same with two near-duplicates of each, which differ in the name only",
        f"{_RULER}: multi-key needle",
        "1 if every token of the value is the likeliest",
        lambda _: _GROUPS * _SAME,
        _mkey,
        binary=True,
        shortest=1024,
    ),
    Task(
        "mvalue",
        "a sentence that stands in the text three times, each time with another value",
        f"{_RULER}: multi-value needle",
        "share of its 3 values among the 3 likeliest of all 18 planted values",
        lambda _: _GROUPS,
        _mvalue,
        shortest=1024,
    ),
    Task(
        "vt",
        "chains `a -> b`, `b -> c`, ... scattered over the text, followed over four hops",
        f"{_RULER}: variable tracking, the arrow pointing onwards",
        "share of the hops whose next name is the likeliest token",
        lambda _: _CHAINS,
        _chain,
    ),
)
