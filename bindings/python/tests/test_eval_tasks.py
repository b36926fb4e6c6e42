"""The tasks of `kvist eval`: what is asked for can be answered from the document, and only there."""

import os
from collections import Counter
from pathlib import Path

import kvist
import pytest
import torch
from kvist.eval.corpus import Corpus, entries
from kvist.eval.score import greedy, holds, recall, score
from kvist.eval.tasks import ROOM, TASKS, Maker, Question
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[3]
MODELS = Path(os.environ.get("KVIST_MODELS_DIR", ROOT / ".cache" / "models"))
LENGTH = 2048


@pytest.fixture(scope="module", params=["smollm2-135m", "gemma3-270m"])
def maker(request):
    if request.param == "gemma3-270m" and not (MODELS / request.param).exists():
        pytest.skip("the Gemma weights are fetched only when asked (KVIST_GEMMA=1)")
    return Maker(Corpus(AutoTokenizer.from_pretrained(MODELS / request.param)), seed=3)


def texts(maker, document):
    """The document, and prompt and answer of every question."""
    decode = maker.corpus.decode
    asked = [(decode(q.prompt), decode(q.answer)) for q in document.questions]
    return decode(document.context), asked


@pytest.mark.parametrize("name", TASKS)
def test_documents_are_the_same_every_time_and_fit(maker, name):
    task = TASKS[name]
    document = task.document(maker, LENGTH, 1)
    assert document == task.document(maker, LENGTH, 1)
    assert document.context != task.document(maker, LENGTH, 2).context
    assert document.context != task.document(Maker(maker.corpus, seed=4), LENGTH, 1).context
    assert LENGTH * 0.8 < len(document.context) <= LENGTH - ROOM
    assert len(document.questions) == task.per_document(LENGTH)
    with pytest.raises(kvist.OptionError, match=rf"expected at least {task.shortest} tokens"):
        task.document(maker, task.shortest - 1, 0)
    shortest = task.document(maker, task.shortest, 0)
    assert len(shortest.questions) == task.per_document(task.shortest)


@pytest.mark.parametrize("name", ["needle", "mkey"])
def test_a_needle_stands_once_where_its_depth_says(maker, name):
    document = TASKS[name].document(maker, LENGTH, 0)
    text, asked = texts(maker, document)
    for question, (prompt, answer) in zip(document.questions, asked):
        assert text.count(f"{prompt.strip()}{answer}.") == 1
        assert text.count(prompt.strip()) == 1
        assert question.whole and answer == f" {question.wants[0]}"
        after = maker.corpus.decode(
            document.context[round(question.depth * len(document.context)) :]
        )
        assert after.startswith(f"{prompt.strip()}{answer}.")
    depths = sorted(q.depth for q in document.questions)
    assert depths[0] < 0.15 and depths[-1] > 0.85
    assert len(set(w for q in document.questions for w in q.wants)) == len(asked)


def test_near_duplicates_differ_in_the_name_only(maker):
    _, asked = texts(maker, TASKS["mkey"].document(maker, LENGTH, 0))
    prompts = [prompt.split() for prompt, _ in asked]
    for mine in prompts:
        near = [p for p in prompts if len(p) == len(mine)]
        near = [sum(a != b for a, b in zip(mine, p)) for p in near]
        assert near.count(0) == 1 and near.count(1) == 2


def test_each_of_several_values_is_in_the_text(maker):
    document = TASKS["mvalue"].document(maker, LENGTH, 0)
    text, asked = texts(maker, document)
    for question, (prompt, _) in zip(document.questions, asked):
        assert text.count(prompt.strip()) == len(question.right) == 3
        assert all(f"{prompt.strip()} {value}." in text for value in question.wants)
        assert set(question.right) < set(question.candidates) and len(question.candidates) == 18


def test_chains_can_be_followed(maker):
    document = TASKS["vt"].document(maker, LENGTH, 0)
    text, asked = texts(maker, document)
    for question, (prompt, answer) in zip(document.questions, asked):
        links = (prompt + answer).strip().split("\n\n")
        assert len(links) == 4 and all(text.count(f"{link}\n\n") == 1 for link in links)
        scored = [maker.corpus.decode([t]).strip() for t in question.targets]
        assert scored == [link.split(" -> ")[1] for link in links] == list(question.wants)
        assert len(question.positions) == 4


@pytest.mark.parametrize("name, marks", [("cwe", "0123456789."), ("fwe", "")])
def test_common_words_are_those_that_stand_most_often(maker, name, marks):
    document = TASKS[name].document(maker, 4096, 0)
    text, _ = texts(maker, document)
    question = document.questions[0]
    counts = Counter(word for word in (w.strip(marks) for w in text.split()) if word)
    common = [word for word, _ in counts.most_common(len(question.wants))]
    assert set(common) == set(question.wants)
    assert len(question.right) == len(set(question.right)) == (10 if name == "cwe" else 3)
    assert len(question.candidates) == len(counts)


@pytest.mark.parametrize("number", [0, 1])
def test_documentation_answers_its_questions(maker, number):
    document = TASKS["qa"].document(maker, LENGTH, number)
    text, asked = texts(maker, document)
    flat = " ".join(text.split())
    known = {entry.name: entry.summary for entry in entries()}
    for question, (prompt, answer) in zip(document.questions, asked):
        (want,) = question.wants
        if number == 1:
            sentence = (prompt + answer).removeprefix("\n\nQuote: ")
            assert sentence.endswith(f'"{want}"') and flat.count(sentence) == 1
        elif prompt.startswith("\n\nQuestion"):
            summary = prompt.partition("does this: ")[2].partition("\n")[0]
            module = prompt.rpartition(" ")[2].removesuffix(".")
            assert known[f"{module}.{want}"] == summary in text
        else:
            name, _, start = (prompt + answer).strip().partition(" - ")
            assert known[name].startswith(start) and start.endswith(want) and name in text


def test_the_continuation_is_the_text_that_follows(maker):
    document = TASKS["lm"].document(maker, LENGTH, 0)
    (question,) = document.questions
    assert len(question.answer) == 64 == len(question.positions)
    words = maker.corpus.decode(document.context[-40:]) + maker.corpus.decode(
        [*question.prompt, *question.answer]
    )
    everything = "".join(maker.corpus.texts) * 2
    assert words in everything


def test_the_split_is_where_running_text_has_it(maker):
    prompt, answer = maker.corpus.split('said "', "yes")
    assert maker.corpus.decode([*prompt, *answer]) == 'said "yes'
    assert [*prompt, *answer] == maker.corpus.encode('said "yes') and answer


# --- Scores: no model is needed ------------------------------------------------------------------


def log_probs(*rows):
    return torch.tensor(rows).float().log_softmax(-1)


WHOLE = Question((1,), (2, 0), (True, True), wants=("two zero",), whole=True)
HOPS = Question((1,), (2, 9, 0, 9, 1), (True, False, True, False, True), wants=("a", "b", "c"))
SET = Question((1,), wants=("a", "b"), candidates=(3, 1, 0), right=(0, 1))


def test_a_whole_answer_needs_every_token():
    right, half = log_probs([0, 0, 5.0], [5.0, 0, 0]), log_probs([0, 0, 5.0], [0, 5.0, 0])
    full = score(WHOLE, right, right)
    assert (full.score, full.agree, full.kl, full.kl_max) == (1, 1, 0, 0)
    assert full.log_prob == pytest.approx(float(right[0, 2] + right[1, 0]) / 2)
    got = score(WHOLE, half, right)
    assert (got.score, got.agree) == (0, 0.5)
    p = right.exp()
    want = (p * (right - half)).sum(-1)
    assert got.kl == pytest.approx(float(want.mean())) and got.kl_max == pytest.approx(want.max())


def test_hops_count_one_by_one_but_a_greedy_chain_ends_at_the_first_wrong_one():
    said = log_probs([0, 0, 5.0], [0, 5.0, 0], [0, 5.0, 0])
    assert HOPS.positions == [0, 2, 4] and HOPS.targets == [2, 0, 1]
    assert score(HOPS, said, said).score == pytest.approx(2 / 3)
    assert greedy(HOPS, said, None) == pytest.approx(1 / 3)


def test_a_set_is_looked_for_among_the_candidates():
    said = log_probs([1.0, 0.0, 9.0, 0.5])
    assert score(SET, said, said).score == 0.5
    assert score(SET, said, said).log_prob == pytest.approx(float(said[0, 0] + said[0, 1]) / 2)
    assert recall(torch.tensor([1.0, 0.9, 0.0, 0.5]), (3, 1, 0), (0, 1)) == 1
    assert recall(torch.tensor([0.0, 0.0, 0.0, 0.0]), (3, 1, 0), (0, 1)) == 0.5


def test_greedy_answers():
    right, wrong = log_probs([0, 0, 5.0], [5.0, 0, 0]), log_probs([5.0, 0, 0], [5.0, 0, 0])
    assert greedy(WHOLE, right, None) == 1
    assert greedy(WHOLE, wrong, "\n It is **Two  zero**.\nnothing") == 1
    assert greedy(WHOLE, wrong, "nothing\ntwo zero") == 0
    assert greedy(SET, wrong[:1], "x, b and more") == 0.5
    assert greedy(Question((1,), (2,), (True,)), right[:1], None) is None


def test_words_are_found_whole():
    assert holds('the "str.zfill()" method', "str.zfill()")
    assert holds("Harbor.", "harbor")
    assert not holds("harbors", "harbor")
    assert not holds("", "harbor")
