"""Every selector by its name: objects, errors, and through a model."""

import copy
import pickle

import kvist
import pytest
import torch
from kvist.hf import KvistCache
from test_hf import generate, random_ids, tiny_llama

NAMES = [p["name"] for p in kvist.selection_presets()]
GIVEN = ("nsa", "dsa")
# These need more than a name: scores with each query, or a profile.
NEEDY = (*GIVEN, "duoattention")


def small(name, **settings):
    """The preset with few tokens read, so that a short sequence is not read whole."""
    known = kvist.Select(name).settings
    wanted = {"sinks": 4, "recent": 16, "window": 8, "budget": 128, **settings}
    if name == "infllm":
        wanted["unit_tokens"] = 16
    return kvist.Select(name, **{k: v for k, v in wanted.items() if k in known})


@pytest.mark.parametrize("name", NAMES)
def test_presets_are_objects(name):
    select = kvist.Select(name)
    assert select.name == name and select == kvist.selection(name)
    assert kvist.Select(name, **select.settings) == select
    assert pickle.loads(pickle.dumps(select)) == select and copy.deepcopy(select) == select
    assert all(getattr(select, k) == v for k, v in select.settings.items())
    assert repr(select).startswith(f'Select("{name}"')
    with pytest.raises(AttributeError, match="no setting"):
        _ = select.nothing
    if name != "full":
        assert kvist.selection(name, 4096) != select


def test_wrong_settings_are_named():
    for name, settings, text in [
        ("quest", {"budgets": 1}, 'unknown setting "budgets", did you mean "budget"'),
        ("quest", {"budget": 16}, "at least 32"),
        ("tokenselect", {"theta": 2.0}, "theta"),
        ("tokenselect", {"theta": float("nan")}, "theta"),
        ("tidaldecode", {"anchors": []}, "anchors"),
        ("tidaldecode", {"anchors": object()}, "anchors"),
        ("hshare", {"heads": 2}, "heads"),
        ("leoam", {"flat": 0}, "flat"),
        ("twilight", {"top_p": 1}, "top_p"),
        ("snapkv", {"pool": 2}, "odd"),
        ("streaming", {"sinks": 0, "recent": 0}, "recent"),
        ("full", {"budget": 1}, "budget"),
    ]:
        with pytest.raises(kvist.OptionError, match=text):
            kvist.Select(name, **settings)
    with pytest.raises(kvist.UnknownNameError, match='did you mean "tokenselect"'):
        kvist.Select("tokenselct")


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NEEDY])
def test_models_decode_with_each(name):
    model, ids = tiny_llama(), random_ids(1, 300)
    cache = KvistCache.for_model(model, select=small(name), dense_layers=())
    out = generate(model, ids, cache, max_new_tokens=6)
    assert out.shape[1] == 306
    share = cache.report().layers[2].share_read
    assert share == 1 if name == "full" else share < 0.7, share


def test_rows_of_a_batch_may_read_by_rules_of_their_own():
    model, ids = tiny_llama(), random_ids(1, 300)
    rules = [small(name) for name in NAMES if name not in NEEDY]
    read = KvistCache.for_model(model, dense_layers=(1,))
    token = model(ids, past_key_values=read).logits[:, -1:].argmax(-1)
    alone = []
    for rule in rules:
        with read.fork(select=rule) as fork:
            logits = [model(token, past_key_values=fork).logits[0] for _ in range(3)]
            alone.append((torch.cat(logits), fork.report()))
    many = read.fork()
    many.batch_repeat_interleave(len(rules))
    cache = many.fork(select=rules)
    assert [row.select for row in cache.sequences] == rules
    tokens = token.repeat(len(rules), 1)
    logits = torch.cat([model(tokens, past_key_values=cache).logits for _ in range(3)], 1)
    for i, (want, report) in enumerate(alone):
        assert torch.allclose(logits[i], want, atol=1e-4), rules[i]
        mine = cache.report(i)
        assert (mine.select, mine.tokens_read) == (report.select, report.tokens_read)
        # Those that read everything share what they read.
        shared = report.layers[2].share_read == 1
        assert mine.layers[2].bytes_read == report.layers[2].bytes_read or shared
    steps = [layer.steps for layer in cache.report().layers]
    assert steps == [3 * len(rules)] * 4
    # A row that moves takes what it read along; a copy begins anew.
    cache.batch_select_indices(torch.tensor([1, 1, 0]))
    assert [cache.report(i).layers[0].steps for i in range(3)] == [3, 0, 3]
    assert cache.report(0).select == repr(rules[1]) == cache.report(1).select
    assert [layer.steps for layer in cache.report().layers] == steps
    with pytest.raises(kvist.RangeError, match=r"row: expected 0..3, found 3"):
        cache.report(3)
    with pytest.raises(kvist.ShapeError, match="select: expected one for each of 3 rows, found 1"):
        cache.fork(select=rules[:1])


@pytest.mark.parametrize("name", GIVEN)
def test_models_decode_with_the_scores_they_are_given(name):
    model, ids = tiny_llama(), random_ids(1, 300)
    select = small(name, unit_tokens=16)
    unit = select.settings.get("unit_tokens", 1)
    calls = []

    def scorer(layer, query, tokens):
        calls.append((layer, tuple(query.shape), tokens))
        return torch.arange(-(-tokens // unit)).float().repeat(len(query), 1, 1)

    cache = KvistCache.for_model(model, select=select, dense_layers=(1,), scorer=scorer)
    generate(model, ids, cache, max_new_tokens=3)
    assert calls[0] == (0, (1, 6, 16), 301) and {c[0] for c in calls} == {0, 1, 2, 3}
    cache = KvistCache.for_model(model, select=select, dense_layers=(1,))
    with pytest.raises(kvist.OptionError, match=f'as select "{name}" needs, found none'):
        generate(model, ids, cache, max_new_tokens=3)
