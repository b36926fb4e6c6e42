"""The long text: CPython's own documentation with facts planted at several depths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._documentation import documentation
from .._errors import OptionError

# Names and numbers that the documentation does not contain.
FACTS = (
    ("Amsterdam", "47215"),
    ("Bogota", "80364"),
    ("Cairo", "19573"),
    ("Dakar", "62908"),
    ("Edinburgh", "35147"),
    ("Florence", "91826"),
    ("Geneva", "70439"),
    ("Havana", "28651"),
)


@dataclass(frozen=True)
class Task:
    """A text with facts, questions about them, and what follows the text."""

    context: list[int]
    """Tokens of the text."""
    questions: list[tuple[list[int], str]]
    """Tokens that ask for a fact, and the answer."""
    depths: list[float]
    """Where in the text each fact stands, from 0 to 1."""
    held_out: list[int]
    """Tokens of the documentation that come next."""


def build(tokenizer: Any, tokens: int, held_out: int) -> Task:
    """A text of about `tokens` tokens with every fact in it, evenly spread."""
    # A token is two characters at least: enough text, without encoding all of it.
    ids = tokenizer(documentation()[: 8 * tokens], add_special_tokens=False).input_ids
    if len(ids) < tokens + held_out:
        raise OptionError(
            f"tokens: expected at most {len(ids) - held_out}, as much text as there is, found {tokens}"
        )
    context: list[int] = []
    places = []
    piece = tokens // (len(FACTS) + 1)
    for i, (place, code) in enumerate(FACTS):
        context += ids[i * piece : (i + 1) * piece]
        places.append(len(context))
        fact = f"\n\nNote: the secret code of {place} is {code}.\n\n"
        context += tokenizer(fact, add_special_tokens=False).input_ids
    end = (len(FACTS) + 1) * piece
    context += ids[len(FACTS) * piece : end]
    ask = "\n\nQuestion: what is the secret code of {}?\nAnswer: the secret code of {} is"
    questions = [
        (tokenizer(ask.format(place, place), add_special_tokens=False).input_ids, code)
        for place, code in FACTS
    ]
    depths = [place / len(context) for place in places]
    return Task(context, questions, depths, ids[end : end + held_out])
