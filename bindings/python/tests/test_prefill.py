"""Prompts that read blocks of keys by a pattern: objects, errors, sequences, models."""

import copy
import pickle

import kvist
import numpy as np
import pytest
from kvist.hf import KvistCache
from test_hf import generate, random_ids, tiny_llama

NAMES = [p["name"] for p in kvist.prefill_presets()]


@pytest.mark.parametrize("name", NAMES)
def test_patterns_are_objects(name):
    pattern = kvist.Prefill(name)
    assert pattern.name == name and kvist.Prefill(name, **pattern.settings) == pattern
    assert pickle.loads(pickle.dumps(pattern)) == pattern and copy.deepcopy(pattern) == pattern
    assert all(getattr(pattern, k) == v for k, v in pattern.settings.items())
    assert repr(pattern).startswith(f'Prefill("{name}"')


def test_wrong_settings_are_named():
    for name, settings, text in [
        ("minference", {"share": 2.0}, "share must be above 0 and at most 1"),
        ("minference", {"shares": 0.5}, 'did you mean "share"'),
        ("a-shape", {"local": 0}, "local"),
        ("proxyattn", {"mass": float("nan")}, "mass"),
        ("dense", {"share": 1}, "share"),
    ]:
        with pytest.raises(kvist.OptionError, match=text):
            kvist.Prefill(name, **settings)
    with pytest.raises(kvist.UnknownNameError, match='did you mean "minference"'):
        kvist.Prefill("minferense")


def test_sequences_read_fewer_keys():
    random = np.random.default_rng(1)
    cache = kvist.Cache(layers=1, q_heads=4, kv_heads=2, head_dim=32, dtype="f32", host="64MiB")
    seq = cache.sequence()
    k = random.standard_normal((1000, 2, 32), dtype=np.float32)
    seq.append(0, k, k)
    q = random.standard_normal((500, 4, 32), dtype=np.float32)
    dense = seq.attend(0, q)
    assert np.array_equal(seq.attend(0, q, prefill="dense"), dense)
    pattern = kvist.Prefill("a-shape", sinks=64, local=200)
    out, info = seq.attend(0, q, info=True, prefill=pattern)
    assert out.shape == dense.shape and not np.array_equal(out, dense)
    assert max(info.tokens_read) < 400
    batch = cache.attend_batch(0, q, [seq], queries=[500], prefill=pattern)
    assert np.array_equal(batch, out)
    with pytest.raises(kvist.UnknownNameError, match="a-shape"):
        seq.attend(0, q, prefill="ashape")
    with pytest.raises(TypeError, match="found int"):
        seq.attend(0, q, prefill=3)
    with pytest.raises(kvist.OptionError, match="divisor of 2 KV heads"):
        seq.attend(0, q, prefill=kvist.Prefill("proxyattn", proxies=4))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "dense"])
def test_models_read_prompts_by_patterns(name):
    model, ids = tiny_llama(), random_ids(1, 600)
    settings = {"share": 1.0} if name == "minference" else {}
    whole = KvistCache.for_model(model, prefill=kvist.Prefill(name, **settings))
    plain = KvistCache.for_model(model)
    expected = generate(model, ids, plain, max_new_tokens=4)
    got = generate(model, ids, whole, max_new_tokens=4)
    # Their defaults are for prompts far longer than this: all of it is read.
    assert got.shape == expected.shape and (name == "proxyattn" or (got == expected).all())
