"""Texts for the engine, and what it says without kvist."""

import random

import pytest
from engine import MODEL, run

WORDS = [
    "river",
    "stone",
    "lantern",
    "quiet",
    "harbour",
    "winter",
    "engine",
    "paper",
    "copper",
    "meadow",
    "signal",
    "thread",
]


def pytest_configure():
    if not (MODEL / "config.json").exists():
        raise pytest.UsageError(f"no model in {MODEL}: run `make models`")


def text(seed, words):
    """A text that no other seed begins with."""
    draw = random.Random(seed)
    return f"Note {seed}. " + " ".join(draw.choice(WORDS) for _ in range(words))


LONG = text(1, 700)
"""A little over 700 tokens: five full blocks of 128."""
SHARED = text(2, 400)
PROMPTS = [text(100 + i, 30 + 25 * i) for i in range(16)] + [
    SHARED + f" Question {i}: what was said first?" for i in range(4)
]


@pytest.fixture(scope="session")
def plain():
    """Tokens of an engine without a connector, by prompt."""
    prompts = [*PROMPTS, LONG]
    (out,) = run(["generate", prompts], enable_prefix_caching=False)["steps"]
    return {prompt: tokens for prompt, tokens in zip(prompts, out["tokens"], strict=True)}
