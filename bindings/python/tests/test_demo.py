"""The demo's text: what is asked for is in it, where the report says."""

import os
from pathlib import Path

import kvist
import pytest
from kvist.demo import text
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[3]
MODELS = Path(os.environ.get("KVIST_MODELS_DIR", ROOT / ".cache" / "models"))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODELS / "smollm2-135m")


def test_every_fact_stands_where_its_depth_says(tokenizer):
    task = text.build(tokenizer, 2000, held_out=32)
    assert len(task.held_out) == 32
    for (place, code), (question, answer), depth in zip(text.FACTS, task.questions, task.depths):
        at = round(depth * len(task.context))
        fact = tokenizer.decode(task.context[at : at + 30])
        assert fact.startswith(f"\n\nNote: the secret code of {place} is {code}.")
        assert answer == code
        assert tokenizer.decode(question).endswith(f"the secret code of {place} is")
    whole = tokenizer.decode(task.context)
    assert all(whole.count(code) == 1 for _, code in text.FACTS)


def test_more_text_than_there_is_is_refused(tokenizer):
    with pytest.raises(kvist.OptionError, match=r"tokens: expected at most .* found 10000000"):
        text.build(tokenizer, 10**7, held_out=1)
