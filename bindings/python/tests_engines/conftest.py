"""Texts for the engine, and what it says without kvist."""

import random

import pytest
from engine import MODEL, run
from transformers import AutoTokenizer

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
    """A sentence of its own again and again: no other seed begins like it, and what comes next is clear."""
    draw = random.Random(seed)
    sentence = " ".join(draw.sample(WORDS, 10))
    return f"Note {seed}. " + f"{sentence}. " * (words // 10)


LONG = text(1, 700)
"""A little over 640 tokens: five full blocks of 128."""
SHARED = text(2, 300)
PROMPTS = [text(100 + i, 30 + 10 * i) for i in range(16)] + [
    SHARED + f" Question {i}: what was said first?" for i in range(4)
]


def preempted():
    """Four prompts of 380 tokens that share their first 256."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = [tuple(tokenizer(text(200 + i, 400))["input_ids"]) for i in range(5)]
    return [ids[0][:256] + own[:124] for own in ids[1:]]


PREEMPTED = preempted()


@pytest.fixture(scope="session")
def plain():
    """Tokens of an engine without a connector, by prompt."""
    prompts = [*PROMPTS, LONG, *PREEMPTED]
    (out,) = run(["generate", prompts], enable_prefix_caching=False)["steps"]
    return {prompt: tokens for prompt, tokens in zip(prompts, out["tokens"], strict=True)}
