"""Questions about documentation as it is, and its continuation."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..._errors import OptionError
from ..corpus import Entry, entries
from ._base import ROOM, Document, Maker, Question, Task, whole

_ASKED, _GIVEN = 3, 2
"""Words of a summary that are asked for, after those that are given."""
_TERM = re.compile(r'"([A-Za-z_][\w.]*(?:\(\))?)"')
_CONTINUED = 64


def questions_of(length: int) -> int:
    """Questions about one document."""
    return min(12, max(2, length // 512))


def _qa(maker: Maker, length: int, number: int) -> Document:
    """Functions of the standard library and the language reference take turns."""
    return (_functions if number % 2 == 0 else _reference)(maker, length, number)


def _functions(maker: Maker, length: int, number: int) -> Document:
    """Entries of the standard library; asked is in turn how the summary of a function goes on, and
    which function a summary belongs to."""
    rng = maker.rng("qa", length, number)
    order = list(entries())
    rng.shuffle(order)
    context: list[int] = []
    usable: list[tuple[Entry, float]] = []
    for entry in order:
        tokens = maker.corpus.encode(entry.text)
        if len(context) + len(tokens) > length - ROOM:
            continue
        words = entry.summary.split()
        if len(words) > _GIVEN + _ASKED and len(maker.corpus.encode(entry.summary)) < ROOM // 2:
            usable.append((entry, len(context) / (length - ROOM)))
        context += tokens
    count = questions_of(length)
    if len(usable) < count:
        raise OptionError(f"length: expected more for {count} questions of qa, found {length}")
    chosen = [usable[i] for i in sorted(rng.sample(range(len(usable)), count))]
    kinds = [(_summary, _name)[i % 2] for i in range(count)]
    return Document(context, [kind(maker, *asked) for kind, asked in zip(kinds, chosen)])


def _name(maker: Maker, entry: Entry, depth: float) -> Question:
    module, _, name = entry.name.rpartition(".")
    prompt, answer = maker.corpus.split(
        f"\n\nQuestion: Which function does this: {entry.summary}\nAnswer: The function {module}.",
        name,
    )
    return whole(prompt, answer, name, depth)


def _summary(maker: Maker, entry: Entry, depth: float) -> Question:
    words = entry.summary.split()
    given, want = " ".join(words[:_GIVEN]), " ".join(words[_GIVEN : _GIVEN + _ASKED])
    prompt, answer = maker.corpus.split(f"\n\n{entry.name} - {given}", " " + want)
    return whole(prompt, answer, want, depth)


def _reference(maker: Maker, length: int, number: int) -> Document:
    """Paragraphs of the language reference; asked is a name that one of its sentences quotes."""
    rng = maker.rng("qa", length, number)
    corpus = maker.corpus
    count = questions_of(length)
    # A window may be all grammar or tables; the next one is tried then.
    for start in rng.sample(range(len(corpus.paragraphs)), 64):
        context, places = _window(maker, start, length - ROOM)
        found = list(_quotes(maker, places, len(context)))
        if len(found) >= count:
            chosen = sorted(rng.sample(range(len(found)), count))
            return Document(context, [found[i] for i in chosen])
    raise OptionError(f"length: expected more for {count} questions of qa, found {length}")


def _window(maker: Maker, start: int, room: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Whole paragraphs, at most `room` tokens; and of each its number and place."""
    context: list[int] = []
    places = []
    for number in maker.corpus.from_paragraph(start):
        tokens = maker.corpus.paragraphs[number]
        if len(context) + len(tokens) > room:
            break
        places.append((number, len(context)))
        context += tokens
    return context, places


def _quotes(maker: Maker, places: list[tuple[int, int]], total: int) -> Iterator[Question]:
    """One question for each paragraph that has a sentence to ask for."""
    corpus = maker.corpus
    flat = {number: " ".join(corpus.texts[number].split()) for number, _ in places}
    everything = " ".join(flat.values())
    for number, place in places:
        text = flat[number]
        for match in _TERM.finditer(text):
            begin = (
                max(text.rfind(". ", 0, match.start()) + 2, 0)
                if ". " in text[: match.start()]
                else 0
            )
            before = text[begin : match.start()]
            plain = 6 <= len(before.split()) <= 24 and not set('"|:=*') & set(before)
            if not plain or everything.count(before) > 1 or match.group(1) in before:
                continue
            prompt, answer = corpus.split(f'\n\nQuote: {before}"', match.group(1) + '"')
            if len(prompt) + len(answer) <= ROOM:
                yield whole(prompt, answer, match.group(1), place / total)
                break


def _lm(maker: Maker, length: int, number: int) -> Document:
    """Real text; its last token is the prompt, and what comes next the answer."""
    corpus = maker.corpus
    start = maker.rng("lm", length, number).randrange(len(corpus.paragraphs))
    total = length - ROOM + 1 + _CONTINUED
    text: list[int] = []
    for paragraph in corpus.from_paragraph(start):
        text += corpus.paragraphs[paragraph]
        if len(text) >= total:
            break
    cut = length - ROOM
    answer = tuple(text[cut + 1 : total])
    return Document(text[:cut], [Question((text[cut],), answer, (True,) * len(answer))])


TASKS = (
    Task(
        "qa",
        "documentation as it is: how a function's summary goes on, which function a summary belongs "
        "to, which name a sentence quotes",
        "kvist; CPython's documentation",
        "1 if every token of the answer is the likeliest",
        questions_of,
        _qa,
        binary=True,
        shortest=1024,
    ),
    Task(
        "lm",
        f"the next {_CONTINUED} tokens of the documentation, fed one by one",
        "teacher-forced perplexity",
        "share of the tokens that were the likeliest; perplexity beside it",
        lambda _: 1,
        _lm,
    ),
)
