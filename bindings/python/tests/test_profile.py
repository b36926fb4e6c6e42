"""Profiles: made, kept, refused, and followed head by head."""

import json
import pickle

import kvist
import numpy as np
import pytest
import torch
from kvist.hf import KvistCache, calibrate
from test_hf import generate, random_ids, tiny_gemma, tiny_llama

SHAPE = {"layers": 2, "q_heads": 4, "kv_heads": 2, "head_dim": 32, "dtype": "f32"}
STREAM = {"class": "streaming", "sinks": 4, "recent": 96}
DENSE = {"class": "dense"}


def share(of):
    return {"class": "select", "share": of}


def written(heads, model="tiny", **shape):
    """A profile as `docs/formats.md` describes it."""
    sizes = {"layers": len(heads), "q_heads": 4, "kv_heads": len(heads[0]), "dim_k": 32, **shape}
    return json.dumps({"kvist_profile": 1, "model": model, "shape": sizes, "heads": heads})


def mixed(**more):
    return kvist.Profile.from_json(written([[STREAM, share(1.5)], [DENSE, share(0.5)]], **more))


def filled(cache, n=600):
    rows = np.random.default_rng(1).standard_normal((n, 2, 32), dtype=np.float32)
    seq = cache.sequence()
    for layer in range(2):
        seq.append(layer, rows, -rows)
    return seq


def read(seq, layer=0):
    """Tokens each KV head reads, and the output."""
    q = np.random.default_rng(2).standard_normal((4, 32), dtype=np.float32)
    out, info = seq.attend(layer, q, info=True)
    return list(info.tokens_read), out


def test_a_profile_is_a_small_file(tmp_path):
    profile = mixed()
    assert (profile.model, profile.layers, profile.q_heads, profile.kv_heads) == ("tiny", 2, 4, 2)
    assert profile.head_dim == 32 and profile.report is None
    assert profile.heads == [[STREAM, share(1.5)], [DENSE, share(0.5)]]
    path = tmp_path / "tiny.json"
    profile.save(path)
    assert kvist.Profile.load(path) == profile == kvist.Profile.load(str(path))
    assert pickle.loads(pickle.dumps(profile)) == profile
    assert repr(profile) == 'Profile(model="tiny", layers=2, kv_heads=2)'
    assert path.stat().st_size < 1000


def test_heads_read_what_the_profile_says(tmp_path):
    path = tmp_path / "tiny.json"
    mixed().save(path)
    for profile in (mixed(), path):
        cache = kvist.Cache(**SHAPE, select="boxed", budget=200, profile=profile)
        assert cache.profile == mixed()
        seq = filled(cache)
        # Three heads have 200 each; the stream takes 100, the others share 500 as 3 to 1.
        assert read(seq)[0] == [100, 375] and read(seq, 1)[0] == [600, 125]
        assert seq.fork(budget=300).profile == mixed()
        plain = seq.fork(select="boxed", budget=200)
        assert plain.profile is None and read(plain)[0] == [200, 200]
        again = plain.fork(profile=path)
        assert again.profile == mixed() and (read(again)[1] == read(seq)[1]).all()


def test_duoattention_streams_the_lowest_gates():
    gates = [[0.9, 0.1], [0.2, 0.8]]
    profile = kvist.Profile.duo(gates, model="tiny", q_heads=4, head_dim=32, sparsity=0.25)
    cache = kvist.Cache(**SHAPE, select="duoattention", profile=profile)
    assert read(filled(cache))[0] == [600, 384] and read(filled(cache), 1)[0] == [600, 600]
    with pytest.raises(kvist.OptionError, match=r"needs a profile.*kvist calibrate"):
        kvist.Cache(**SHAPE, select="duoattention")
    with pytest.raises(kvist.OptionError, match="sparsity must be 0 to 1, found 2"):
        kvist.Profile.duo(gates, model="tiny", q_heads=4, head_dim=32, sparsity=2)
    with pytest.raises(kvist.OptionError, match="layers must be"):
        kvist.Profile.duo([], model="tiny", q_heads=4, head_dim=32)


def test_sessions_come_back_with_the_profile_of_their_cache(tmp_path):
    def cache(model="org/tiny", **more):
        return kvist.Cache(
            **SHAPE, select="boxed", budget=200, disk=(tmp_path, "64MiB"), model=model, **more
        )

    with cache(profile=mixed()) as c:
        seq = filled(c)
        want = [read(seq, layer) for layer in range(2)]
        seq.save("chat")
        seq.close()
    with cache(profile=mixed()) as c:
        seq = c.open_session("chat")
        assert seq.profile == mixed()
        # Pages that are not near are read whole.
        assert read(seq, 1)[0][0] == 600 and seq.restore() > 0
        for layer, (tokens, out) in enumerate(want):
            got, same = read(seq, layer)
            assert got == tokens and (same == out).all()
        seq.close()
    with cache() as c:
        seq = c.open_session("chat")
        assert seq.restore() >= 0
        assert seq.profile is None and read(seq)[0] == [200, 200]
        seq.close()
    with pytest.raises(kvist.OptionError, match=r'made for model "tiny", this cache has "other"'):
        cache(model="other", profile=mixed())


def test_what_does_not_fit_is_named(tmp_path):
    for text, problem in [
        ("", "profile: "),
        ("{}", "profile: "),
        (written([[STREAM, share(-1.0)]]), "share must be finite and above 0"),
        (written([[STREAM, DENSE]], layers=3), "expected 3 layers, found 1"),
        (written([[{"class": "steaming"}, DENSE]]), "unknown variant"),
    ]:
        with pytest.raises(kvist.OptionError, match=problem):
            kvist.Profile.from_json(text)
    with pytest.raises(FileNotFoundError):
        kvist.Profile.load(tmp_path / "none.json")
    with pytest.raises(TypeError, match="expected a Profile or the path of one, found int"):
        kvist.Cache(**SHAPE, profile=3)
    wide = kvist.Profile.from_json(written([[DENSE, DENSE]] * 3))
    with pytest.raises(kvist.OptionError, match="3 layers, 4 query and 2 KV heads"):
        kvist.Cache(**SHAPE, profile=wide)
    with pytest.raises(kvist.OptionError, match="with this profile"):
        kvist.Cache(**SHAPE, select="boxed", budget=85, profile=mixed())
    with pytest.raises(kvist.OptionError, match="several heads or layers"):
        kvist.Cache(**SHAPE, select="arkvale", profile=mixed())


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma])
def test_a_model_is_calibrated_and_decodes_by_its_profile(make, tmp_path):
    model, ids = make(), random_ids(1, 500)
    before = model.config._attn_implementation
    profile = calibrate(model, ids, budget=160, queries=20, steps=4, streaming=None, dense=None)
    assert model.config._attn_implementation == before
    assert profile == calibrate(
        model, ids[0], budget=160, queries=20, steps=4, streaming=None, dense=None
    )
    report = profile.report
    assert report["steps"] == 4 and report["after"]["missed"] <= report["before"]["missed"] + 1e-9
    tokens = [h["tokens"] for h in report["heads"]]
    assert sum(tokens) == 160 * len(tokens) == 160 * profile.layers * profile.kv_heads
    assert report["after"]["tokens"] == 160
    path = tmp_path / "profile.json"
    profile.save(path)
    cache = KvistCache.for_model(model, select="boxed", budget=160, profile=path)
    assert generate(model, ids, cache, max_new_tokens=5).shape[1] == 505
    layers = [layer for layer in cache.report().layers if layer.kind.startswith("kvist")]
    each = [sum(row) / len(row) for row in split(tokens, profile.kv_heads)]
    assert [layer.tokens_read for layer in layers] == pytest.approx(each)


def split(x, n):
    return [x[i : i + n] for i in range(0, len(x), n)]


def test_forks_of_a_models_cache_read_by_another_rule():
    model, ids = tiny_llama(), random_ids(1, 400)
    heads = [[share(1.0), {**STREAM, "recent": 60}]] * 4
    profile = kvist.Profile.from_json(written(heads, "LlamaForCausalLM", q_heads=6, dim_k=16))
    cache = KvistCache.for_model(model, select="boxed", budget=128, dense_layers=())
    with torch.inference_mode():
        model(ids, past_key_values=cache)
    for fork, tokens in [
        (cache.fork(profile=profile), 128),
        (cache.fork(select="duoattention", profile=profile), (401 + 64) / 2),
        (cache.fork(budget=200), 200),
    ]:
        with torch.inference_mode():
            model(ids[:, :1], past_key_values=fork)
        assert fork.report().tokens_read == pytest.approx(tokens)


def test_profiles_of_other_models_are_refused():
    profile = kvist.Profile.from_json(
        written([[DENSE, DENSE]] * 4, "another-model", q_heads=6, dim_k=16)
    )
    model = tiny_llama()
    with pytest.raises(kvist.OptionError, match=r'"another-model", this cache has "Llama'):
        KvistCache.for_model(model, profile=profile)
    with pytest.raises(kvist.OptionError, match="made for geometry 4 layers"):
        KvistCache.for_model(tiny_llama(num_hidden_layers=3), profile=profile)
    KvistCache.for_config(model.config, profile=profile)


def test_calibration_refuses_what_it_cannot_do():
    model, ids = tiny_llama(), random_ids(1, 300)
    for options, problem in [
        ({"budget": 100, "select": "full"}, "budget"),
        ({"budget": 20}, "budget must be"),
        ({"sparsity": 1.5}, "sparsity"),
        ({"streaming": 2.0}, "streaming: expected None or 0 to 1, found 2"),
    ]:
        with pytest.raises(kvist.OptionError, match=problem):
            calibrate(model, ids, queries=4, **options)
    with pytest.raises(kvist.OptionError, match="more tokens than are always read"):
        calibrate(model, ids[:, :60], queries=4)
    with pytest.raises(kvist.OptionError, match="tokenizer"):
        calibrate(model, "some text")
    with pytest.raises(kvist.ShapeError, match=r"\[2, 300\]"):
        calibrate(model, ids.repeat(2, 1))
