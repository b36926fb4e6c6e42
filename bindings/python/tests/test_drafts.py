"""Draft trees and draft views: against appending and attending, and whole texts drafted and verified."""

import json
import os
import pickle
from pathlib import Path

import kvist
import numpy as np
import pytest
import torch
from kvist.hf import KvistCache
from test_hf import generate, random_ids, tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

ROOT = Path(__file__).resolve().parents[3]
MODELS = Path(os.environ.get("KVIST_MODELS_DIR", ROOT / ".cache" / "models"))
SHAPE = {"layers": 2, "q_heads": 4, "kv_heads": 2, "head_dim": 32, "dtype": "f32"}
PARENTS = [-1, 0, 0, -1, 2]
PATHS = [[0], [0, 1], [0, 2], [3], [0, 2, 4]]


def rows(n, heads, seed):
    return np.random.default_rng(seed).standard_normal((n, heads, 32), dtype=np.float32)


def filled(cache, n=300, seed=1):
    seq = cache.sequence()
    for layer in range(2):
        seq.append(layer, rows(n, 2, seed), rows(n, 2, seed + 1))
    return seq


def nodes(seed=9):
    return rows(5, 4, seed), rows(5, 2, seed + 1), rows(5, 2, seed + 2)


def on_a_path(seq, path, q, k, v, **options):
    """What the last node of a path sees once the path is appended."""
    with seq.fork(select="full") as fork:
        fork.append(1, k[path], v[path])
        return fork.attend(1, q[path[-1]], **options)


@pytest.mark.parametrize("options", [{}, {"window": 40, "soft_cap": 5.0}])
@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
def test_a_node_sees_its_path_as_if_it_were_appended(library, options):
    seq = filled(kvist.Cache(**SHAPE, select="boxed", budget=100))
    options = {**options, "sinks": np.arange(4, dtype=np.float32)}
    q, k, v = (library(x) for x in nodes())
    out, info = seq.attend_tree(1, q, PARENTS, k, v, info=True, **options)
    assert type(out) is type(q) and out.shape == (5, 4, 32) and len(seq) == 300
    for node, path in enumerate(PATHS):
        want, one = on_a_path(seq, path, q, k, v, info=True, **options)
        assert np.allclose(out[node], want, atol=1e-5)
        assert np.allclose(info.lse[node], one.lse, atol=1e-4)
    assert list(info.tokens_read) == ([39, 39] if "window" in options else [300, 300])
    plain = seq.attend_tree(1, q, np.array(PARENTS), k, v, **options)
    assert np.array_equal(plain, out)


def test_trees_of_a_batch_and_the_accepted_path():
    cache = kvist.Cache(**SHAPE)
    base = filled(cache)
    forks = [base, base.fork(), filled(cache, 7, seed=4)]
    forks[1].append(1, rows(3, 2, 5), rows(3, 2, 6))
    trees = [PARENTS, [], [-1, -1]]
    q, k, v = nodes()
    q, k, v = (np.concatenate([x, y[:2]]) for x, y in zip((q, k, v), nodes(20)))
    out, infos = cache.attend_trees(1, q, forks, trees, k, v, info=True)
    assert [info.lse.shape for info in infos] == [(5, 4), (0, 4), (2, 4)]
    for node, path in enumerate(PATHS):
        assert np.allclose(out[node], on_a_path(base, path, q, k, v), atol=1e-5)
    for node in (5, 6):
        assert np.allclose(out[node], on_a_path(forks[2], [node], q, k, v), atol=1e-5)
    base.append(1, k[PATHS[4]], v[PATHS[4]])
    assert base.layer_len(1) == 303 and np.array_equal(base.read(1, 300)[0], k[PATHS[4]])


def test_trees_that_do_not_fit_are_named():
    seq = filled(kvist.Cache(**SHAPE))
    q, k, v = nodes()
    for parents, error, problem in [
        ([-1, 1, 0, 0, 0], kvist.OptionError, "a node before node 1 of its tree, or ROOT, found 1"),
        (
            [-1, 0, 0, 0, -2],
            kvist.OptionError,
            "parents: expected -1 or the number of a node, found -2",
        ),
        ([-1, 0, 0, 0, 2**70], kvist.OptionError, "parents: expected -1 or the number"),
        ([-1, 0], kvist.ShapeError, r"\[2 queries, 4 query heads, 32\]"),
        ([-1, 0, 0, 0, 0.5], TypeError, "float"),
        (3, TypeError, "iterable"),
    ]:
        with pytest.raises(error, match=problem):
            seq.attend_tree(0, q, parents, k, v)
    with pytest.raises(kvist.ShapeError, match=r"keys must have shape \[5 nodes, 2 KV heads, 32\]"):
        seq.attend_tree(0, q, PARENTS, k[:4], v[:4])
    with pytest.raises(kvist.DTypeError, match="f32 as the cache is"):
        seq.attend_tree(0, q, PARENTS, k.astype(np.float16), v.astype(np.float16))
    with pytest.raises(kvist.ShapeError, match="expected 2, found 1"):
        kvist.Cache(**SHAPE).attend_trees(0, q, [seq, seq], [PARENTS], k, v)
    with pytest.raises(kvist.ShapeError, match="another cache"):
        kvist.Cache(**SHAPE).attend_trees(0, q, [seq], [PARENTS], k, v)
    seq.close()
    with pytest.raises(kvist.ClosedError):
        seq.attend_tree(0, q, PARENTS, k, v)


def viewed():
    """A sequence that has drafted a token, before it did, and its view."""
    seq = filled(kvist.Cache(**SHAPE, select="magicdec", budget=64))
    for layer in range(2):
        seq.attend(layer, rows(40, 4, 7))
    draft = seq.fork()
    for layer in range(2):
        draft.append(layer, rows(1, 2, 8), rows(1, 2, 8))
        draft.attend(layer, rows(1, 4, 8)[0])
    return seq, draft.view()


def test_a_view_is_a_small_value():
    seq, view = viewed()
    assert seq.view() is None and (len(view), view.layers, view.kv_heads) == (300, 2, 2)
    positions, start = view.head(1, 0)
    assert start == 268 and positions == sorted(positions) and len(positions) == 64 - 33
    assert positions[-1] < start and repr(view) == "View(tokens=300, layers=2, kv_heads=2)"
    assert pickle.loads(pickle.dumps(view)) == view == kvist.View.from_json(view.to_json())
    assert len(pickle.dumps(view)) < 2000
    with pytest.raises(kvist.RangeError, match=r"0..2 and 0..2, found 2 and 0"):
        view.head(2, 0)

    # Another sequence of the same tokens, whose prompt nobody looked at, reads by it.
    other = filled(kvist.Cache(**SHAPE, select="full")).fork(
        select="magicdec", budget=64, view=view
    )
    assert other.view() == view == other.fork().view()
    other.append(1, rows(1, 2, 8), rows(1, 2, 8))
    _, info = other.attend(1, rows(1, 4, 8)[0], info=True)
    assert list(info.selected[0]) == positions + list(range(start, 301))


def test_views_that_do_not_fit_are_named():
    seq, view = viewed()
    short = filled(kvist.Cache(**SHAPE, select="magicdec", budget=64), 299)
    with pytest.raises(kvist.PositionError, match="view: the sequence has 299 tokens in layer 0"):
        short.fork(view=view)
    with pytest.raises(kvist.OptionError, match=r'choose once.*select "full"'):
        seq.fork(select="full", view=view)
    with pytest.raises(kvist.OptionError, match="of 1 layers, 2 KV heads, found of 2 layers"):
        kvist.Cache(**{**SHAPE, "layers": 1}, select="magicdec").sequence().fork(view=view)
    good = json.loads(view.to_json())
    for change in [{"len": 267}, {"kvist_view": 9}, {"heads": [[None, None], [None]]}, {"more": 1}]:
        with pytest.raises(kvist.OptionError, match="view: "):
            kvist.View.from_json(json.dumps({**good, **change}))
    with pytest.raises(kvist.OptionError, match="view: "):
        kvist.View.from_json("[" * 10_000)


def speculate(model, ids, new, drafted, select, refresh=None):
    """Greedy self-speculation: a fork drafts by its view, the whole cache verifies. New tokens, rounds and
    the tokens each draft step read; with `refresh` a new view every so many rounds, chosen by the queries
    that were verified last."""
    cache = KvistCache.for_model(model, select=select, dense_layers=())
    with cache, torch.inference_mode():
        text = [int(model(ids, past_key_values=cache).logits[0, -1].argmax())]
        views, rounds, read = None, 0, []
        while len(text) < new:
            if refresh and rounds % refresh == 0:
                views = None
            with cache.fork(views=views) as draft:
                chain = [text[-1]]
                for _ in range(drafted):
                    step = model(torch.tensor([chain[-1:]]), past_key_values=draft)
                    chain.append(int(step.logits[0, -1].argmax()))
                views = [row.view() for row in draft.sequences]
                read.append(draft.report().tokens_read)
            length = cache.get_seq_length()
            logits = model(torch.tensor([chain]), past_key_values=cache).logits[0]
            best = logits.argmax(-1).tolist()
            agree = [a == b for a, b in zip(chain[1:], best)] + [False]
            accepted = agree.index(False)
            text += best[: accepted + 1]
            cache.crop(length + accepted + 1)
            rounds += 1
        assert cache.get_seq_length() == ids.shape[1] + len(text) - 1
    return text[:new], rounds, read


@pytest.mark.parametrize("refresh", [None, 2])
def test_drafts_that_are_verified_say_what_the_model_says(refresh):
    model, ids = tiny_llama(), random_ids(1, 200)
    want = generate(model, ids, DynamicCache(config=model.config), max_new_tokens=40)[0, 200:]
    select = kvist.Select("magicdec", budget=48, window=16)
    text, rounds, read = speculate(model, ids, 40, 3, select, refresh)
    assert text == want.tolist() and rounds >= 10
    # The draft steps really left something out, the first and the last.
    assert max(read) < 100


def test_a_real_model_drafts_for_itself():
    directory = MODELS / "smollm2-135m"
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    words = (ROOT / "README.md").read_text()
    ids = AutoTokenizer.from_pretrained(directory)(words, return_tensors="pt").input_ids[:, :700]
    assert ids.shape[1] == 700
    want = generate(model, ids, DynamicCache(config=model.config), max_new_tokens=32)[0, 700:]
    text, rounds, read = speculate(model, ids, 32, 3, "magicdec")
    assert text == want.tolist()
    assert max(read) < 320, "257 of the prompt, and what came later"
    # Most drafts of a view of a third of the tokens are right.
    assert rounds < 20
