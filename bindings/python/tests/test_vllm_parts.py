"""The parts of the vLLM connector that need no engine: configuration, layouts, identity, index, versions."""

import dataclasses
import json
import random
from types import SimpleNamespace

import kvist
import pytest
import torch
from kvist.vllm import _compat, _engine, _identity, _layout
from kvist.vllm._config import Config
from kvist.vllm._index import Index


def test_every_key_has_a_default_and_dots_or_nesting():
    config = Config.of({"host_bytes": "1GiB"})
    assert config.host_bytes == 1 << 30 and config.admit_min_tokens == 256
    assert Config.of({}).host_bytes <= 8 << 30
    nested = Config.of({"admit": {"min_tokens": 7}, "disk_dir": "/x", "disk_bytes": "2GiB"})
    assert nested.admit_min_tokens == 7 and nested.disk_bytes == 2 << 30
    assert Config.of({"model": "ab" * 32}).model == b"\xab" * 32


@pytest.mark.parametrize(
    ("extra", "error", "words"),
    [
        ({"host_byte": 1}, kvist.UnknownNameError, ["'host_byte'", "'host_bytes'"]),
        ({"admit": {"min_token": 1}}, kvist.UnknownNameError, ["'admit.min_tokens'"]),
        ({"zzz": 1}, kvist.UnknownNameError, ["there are", "disk_dir"]),
        ({"host_bytes": "many"}, kvist.OptionError, ["host_bytes", "'8GiB'", "'many'"]),
        ({"admit.min_tokens": -1}, kvist.OptionError, ["admit.min_tokens", "-1"]),
        ({"admit.decode_tokens": 1}, kvist.OptionError, ["true or false"]),
        ({"disk_dir": "/x"}, kvist.OptionError, ["disk_bytes"]),
        ({"load.margin_ms": "fast"}, kvist.OptionError, ["load.margin_ms", "milliseconds"]),
        ({"load.margin_ms": float("nan")}, kvist.OptionError, ["load.margin_ms", "nan"]),
        ({"disk_deadline": 0}, kvist.OptionError, ["seconds above 0"]),
        ({"verify": "often"}, kvist.OptionError, ["'startup'", "'often'"]),
        ({"canonical": "yes"}, kvist.OptionError, ["canonical"]),
        ({"namespace.extra": 3}, kvist.OptionError, ["text"]),
    ],
)
def test_wrong_settings_name_what_was_expected_and_found(extra, error, words):
    with pytest.raises(error) as raised:
        Config.of(extra)
    assert all(word in str(raised.value) for word in words), raised.value


def test_a_file_the_environment_and_the_engine_say_one_after_the_other(tmp_path, monkeypatch):
    """Section 13: one schema, later wins."""
    pytest.importorskip("tomllib")
    path = tmp_path / "kvist.toml"
    path.write_text(
        'host_bytes = "1GiB"\ndisk_deadline = 3\n[admit]\nmin_tokens = 1\ndecode_tokens = true\n'
    )
    variables = {
        "KVIST_CONFIG": str(path), "KVIST_ADMIT_MIN_TOKENS": "2", "KVIST_CANONICAL": "False",
        "KVIST_NAMESPACE_EXTRA": "12", "KVIST_MODELS_DIR": "another's", "KVIST_LOAD_MARGIN_MS": "-1.5",
    }  # fmt: skip
    config = Config.of({"admit": {"min_tokens": 3}}, variables)
    assert (config.host_bytes, config.disk_deadline, config.admit_min_tokens) == (1 << 30, 3.0, 3)
    assert config.admit_decode_tokens and not config.canonical
    assert (config.namespace_extra, config.load_margin_ms) == ("12", -1.5)
    assert Config.of({}, variables).admit_min_tokens == 2
    # Without a name, the one in the working directory.
    del variables["KVIST_CONFIG"]
    assert not Config.of({}, variables).admit_decode_tokens
    monkeypatch.chdir(tmp_path)
    assert Config.of({}, variables).admit_decode_tokens


@pytest.mark.parametrize(
    ("text", "variables", "error", "words"),
    [
        ("host_byte = 1", {}, kvist.UnknownNameError, ["kvist.toml", "'host_byte'", "'host_bytes'"]),
        ("[admit]\nmin_tokens = -1", {}, kvist.OptionError, ["kvist.toml: admit.min_tokens", "-1"]),
        ("host_bytes =", {}, kvist.OptionError, ["kvist.toml", "TOML"]),
        ("disk_bytes = '1GiB'", {}, kvist.OptionError, ["kvist.toml: disk_bytes", "together"]),
        ("", {"KVIST_HOST_BYTE": "1"}, kvist.UnknownNameError, ["KVIST_HOST_BYTE;", "KVIST_HOST_BYTES?"]),
        ("", {"KVIST_HOST_BYTES": "much"}, kvist.OptionError, ["KVIST_HOST_BYTES: expected", "'much'"]),
        ("", {"KVIST_CANONICAL": "yes"}, kvist.OptionError, ["KVIST_CANONICAL: expected true", "'yes'"]),
        ("", {"KVIST_CONFIG": "/nowhere"}, kvist.OptionError, ["KVIST_CONFIG", "/nowhere", "No such"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(tmp_path, text, variables, error, words):
    path = tmp_path / "kvist.toml"
    path.write_text(text)
    with pytest.raises(error) as raised:
        Config.of({}, {"KVIST_CONFIG": str(path), **variables})
    assert all(word in str(raised.value) for word in words), raised.value


def test_a_secret_comes_from_a_file_and_is_not_shown(tmp_path):
    secret, short = tmp_path / "secret", tmp_path / "short"
    secret.write_bytes(b"s" * 32)
    short.write_bytes(b"s" * 31)
    config = Config.of({"key_secret_file": str(secret)})
    assert config.key_secret_file == b"s" * 32 and "sss" not in repr(config)
    with pytest.raises(kvist.OptionError, match=r"32 bytes, found .*with 31"):
        Config.of({"key_secret_file": str(short)})
    with pytest.raises(kvist.OptionError, match="No such file"):
        Config.of({"key_secret_file": str(tmp_path / "none")})


# --- Layouts -------------------------------------------------------------------------------------


def by_formula(name, tokens, dim):
    """Offsets in a cell, as measured on vLLM's writers: element of K and of V at (token, channel)."""

    def at(t, d):
        if name == "split":
            return t * 2 * dim + d, t * 2 * dim + dim + d
        if name == "cpu-vec-kT-v":
            return d * tokens + t, tokens * dim + t * dim + d
        k = (
            (t // 32) * 32 * dim
            + ((t % 32) // 16) * 16 * dim
            + (d // 2) * 32
            + (t % 16) * 2
            + d % 2
        )
        v = tokens * dim + (d // 16) * tokens * 16 + (t // 2) * 32 + (d % 16) * 2 + t % 2
        return k, v

    return at


@pytest.mark.parametrize("dim", [64, 96, 128, 256])
@pytest.mark.parametrize("tokens", [32, 64, 128, 256])
@pytest.mark.parametrize("name", list(_layout.LAYOUTS))
def test_views_are_where_the_formulas_say(name, tokens, dim):
    cache = torch.arange(2 * 2 * tokens * 2 * dim, dtype=torch.int32)
    cache = cache.view(2, 2, tokens, 2 * dim)
    k, v = (_layout.rows(view) for view in _layout.LAYOUTS[name](cache))
    assert k.shape == v.shape == (2, 2, tokens, dim)
    at, draw = by_formula(name, tokens, dim), random.Random(0)
    for _ in range(200):
        b, h, t, d = (draw.randrange(n) for n in (2, 2, tokens, dim))
        cell = cache[b, h].flatten()
        assert (k[b, h, t, d], v[b, h, t, d]) == tuple(cell[i] for i in at(t, d))
    # Every element once.
    both = torch.cat([k.flatten(), v.flatten()]).sort().values
    assert torch.equal(both, cache.flatten())


def writer(name):
    def write(k, v, cache, slots):
        tokens = cache.shape[2]
        for rows, view in zip((k, v), _layout.LAYOUTS[name](cache), strict=True):
            tiles = rows.unflatten(0, (2, tokens)).transpose(1, 2)
            view.copy_(tiles.reshape(view.shape))

    return write


@pytest.mark.parametrize("name", list(_layout.LAYOUTS))
def test_a_layout_is_found_by_what_the_engine_writes(name):
    cache = torch.zeros(5, 3, 32, 128, dtype=torch.bfloat16)
    assert _layout.detect(cache, writer(name)) == name


def test_a_layout_with_tokens_before_heads_is_found():
    cache = torch.zeros(5, 32, 3, 128, dtype=torch.bfloat16).transpose(1, 2)
    assert _layout.detect(cache, writer("split")) == "split"


def test_an_unknown_layout_is_not_guessed():
    def swapped(k, v, cache, slots):
        writer("split")(v, k, cache, slots)

    assert _layout.detect(torch.zeros(5, 3, 32, 128, dtype=torch.bfloat16), swapped) is None


def test_opaque_blocks_are_their_bytes():
    cache = torch.randn(5, 3, 32, 128).to(torch.bfloat16)
    k, v = _layout.opaque(cache)
    assert k.shape == v.shape == (5, 1, 32, 3 * 128)
    both = torch.cat([k[4].flatten(), v[4].flatten()])
    assert torch.equal(both, cache[4].flatten().view(torch.uint8))
    assert _layout.as_bytes(16 * 2 * 4096, 16) == (8, 512)
    with pytest.raises(kvist.OptionError, match="17"):
        _layout.as_bytes(17, 16)
    heads_inside = torch.randn(5, 32, 3, 128).to(torch.bfloat16).transpose(1, 2)
    assert _layout.opaque(heads_inside) is not None
    assert _layout.opaque(torch.randn(3, 5, 32, 128).transpose(0, 1)) is None
    assert _layout.describe(cache, isa="vec") != _layout.describe(cache, isa="amx")


@pytest.mark.parametrize("name", list(_layout.LAYOUTS))
def test_a_block_in_any_layout_is_canonical_in_the_store(name):
    layers, blocks, heads, tokens, dim = 2, 4, 3, 32, 64
    caches = [torch.randn(blocks, heads, tokens, 2 * dim).to(torch.bfloat16) for _ in range(layers)]
    views = [_layout.LAYOUTS[name](cache) for cache in caches]
    k, v = [k for k, _ in views], [v for _, v in views]
    with kvist.PrefixStore("16MiB") as store:
        space = store.space(
            model=bytes(32), layers=layers, kv_heads=heads, head_dim=dim, dtype="bf16",
            block_tokens=tokens,
        )  # fmt: skip
        prefix = space.prefix(range(2 * tokens))
        assert space.put(prefix, 0, k=k, v=v, block_ids=[3, 1], layout="hnd").blocks == 2
        tiles = torch.from_numpy(space.lease(prefix.keys[0]).array.copy()).view(torch.bfloat16)
        tiles = tiles.view(layers, heads, 2, tokens, dim)
        for layer in range(layers):
            for side, view in enumerate((k[layer], v[layer])):
                assert torch.equal(tiles[layer, :, side], _layout.rows(view)[3])
        # And back, in the background, into zeros.
        zeros = [torch.zeros_like(cache) for cache in caches]
        out = [_layout.LAYOUTS[name](cache) for cache in zeros]
        ticket = space.get_behind(
            prefix, 0, k=[k for k, _ in out], v=[v for _, v in out], block_ids=[0, 2], layout="hnd"
        )
        assert ticket.wait(60).blocks == 2
        for back, cache in zip(zeros, caches):
            assert torch.equal(back[[0, 2]], cache[[3, 1]])
            assert not back[[1, 3]].any()


# --- Index -----------------------------------------------------------------------------------------


def test_the_index_counts_leading_blocks_as_a_list_does():
    draw = random.Random(1)
    for _ in range(200):
        keys = [draw.randbytes(32) for _ in range(draw.randrange(1, 300))]
        chance = draw.choice([0.5, 0.99, 1.0])
        tiers = [("host",), ("disk",), ("host", "disk")]
        there = {key: draw.choice(tiers) for key in keys if draw.random() < chance}
        index = Index(1)
        came = [(key, tier, True) for key, both in there.items() for tier in both]
        index.apply(0, True, came)
        start = draw.randrange(len(keys) + 1)
        stop = draw.randrange(start, len(keys) + 1)
        part = keys[start:stop]
        want = next((i for i, key in enumerate(part) if key not in there), len(part))
        near = ["host" in there[key] for key in part[:want]]
        assert index.leading(keys, start, stop) == (want, sum(near), [*near, False].index(False))
        gone = draw.choice(keys)
        index.doubt([gone])
        assert index.leading(keys, keys.index(gone), len(keys)) == (0, 0, 0)
        index.believe([gone])
        index.apply(0, False, [(key, "host", False) for key in keys])
        far = next((i for i, key in enumerate(part) if "disk" not in there.get(key, ())), len(part))
        assert index.leading(keys, start, stop) == (far, 0, 0)


def test_the_index_follows_a_store():
    tokens = 16
    with kvist.PrefixStore("64KiB") as store:
        space = store.space(
            model=bytes(32), layers=1, kv_heads=1, head_dim=16, dtype="bf16", block_tokens=tokens
        )
        index, draw = Index(1), random.Random(2)
        index.apply(0, *store.changes())
        for _ in range(500):
            prefix = space.prefix([draw.randrange(200)] * tokens)
            if draw.random() < 0.7:
                space.put(prefix, 0, [bytes(space.block_bytes)])
            else:
                space.evict(prefix)
            if draw.random() < 0.2:
                index.apply(0, *store.changes())
        index.apply(0, *store.changes())
        held = [n for n in range(200) if space.contains(space.prefix([n] * tokens))]
        assert len(held) == len(index) == store.stats().host_blocks
        assert all(index.has(space.prefix([n] * tokens).keys[0]) for n in held)


# --- Identity --------------------------------------------------------------------------------------


def model_config(path, **changes):
    hf = SimpleNamespace(to_dict=lambda: {"rope_theta": 1e4, "_name_or_path": str(path)})
    options = {"model": str(path), "revision": None, "dtype": "bf16", "quantization": None}
    options["max_model_len"] = 2048
    return SimpleNamespace(**{**options, "hf_config": hf, **changes})


def test_a_model_is_its_weights_and_not_its_name(tmp_path):
    places = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for place, content in zip(places, [b"one", b"one", b"two"], strict=True):
        place.mkdir()
        (place / "model.safetensors").write_bytes(content)
    a, b, c = (_identity.model_fingerprint(model_config(p), None) for p in places)
    assert a == b != c
    rope = SimpleNamespace(to_dict=lambda: {"rope_theta": 1e6})
    for change in ({"dtype": "f32"}, {"quantization": "fp8"}, {"hf_config": rope}):
        assert _identity.model_fingerprint(model_config(places[0], **change), None) != a
    longer = {"max_model_len": 1 << 17}
    assert _identity.model_fingerprint(model_config(places[0], **longer), None) == a
    long = SimpleNamespace(to_dict=lambda: {"rope_type": "longrope"})
    lengths = [model_config(places[0], hf_config=long, **more) for more in ({}, longer)]
    assert len({_identity.model_fingerprint(config, None) for config in lengths}) == 2
    given = _identity.model_fingerprint(model_config("nowhere"), bytes(32))
    assert given != _identity.model_fingerprint(model_config("nowhere"), bytes([1] * 32))


def engine(spec="FullAttentionSpec", groups=1, **changes):
    """What is read of vLLM's two configurations."""
    kind = type(spec, (), {"non_causal": False, **changes.pop("spec_fields", {})})
    options = {
        "parallel_config": SimpleNamespace(**changes.pop("parallel", {})),
        "model_config": SimpleNamespace(runner_type="generate"),
        "cache_config": SimpleNamespace(),
        "speculative_config": None,
        **changes,
    }
    group = SimpleNamespace(kv_cache_spec=kind())
    return SimpleNamespace(**options), SimpleNamespace(kv_cache_groups=[group] * groups)


def test_engines_that_cannot_be_served_say_why():
    assert _engine.refusal(*engine()) is None
    assert _engine.refusal(*engine(speculative_config=SimpleNamespace(method="ngram"))) is None
    refused = {
        "one KV cache group, found 2": engine(groups=2),
        "found SlidingWindowSpec": engine("SlidingWindowSpec"),
        "look ahead": engine(spec_fields={"non_causal": True}),
        "found one for pooling": engine(model_config=SimpleNamespace(runner_type="pooling")),
        "KV scales": engine(cache_config=SimpleNamespace(calculate_kv_scales=True)),
        "found eagle": engine(speculative_config=SimpleNamespace(method="eagle")),
        "pipeline_parallel_size 1, found 2": engine(parallel={"pipeline_parallel_size": 2}),
    }
    for words, configs in refused.items():
        assert words in _engine.refusal(*configs), words
    cache = torch.zeros(4, 2, 16, 32)
    assert _engine.tensor_refusal({"a": cache, "b": cache.clone()}) is None
    assert "the same shape" in _engine.tensor_refusal({"a": cache, "b": cache[:, :1]})
    assert "[blocks" in _engine.tensor_refusal({"a": cache[0]})
    assert "found meta" in _engine.tensor_refusal({"a": cache.to("meta")})


def test_every_part_of_an_engine_is_part_of_the_key():
    """I5: another model, dtype, layout or instruction set is another key; the same ones are the same."""
    from fake_vllm import Fake, request
    from kvist.vllm._keys import Keys

    fake = Fake()
    hello = fake.worker.hello
    r = request("a", list(range(40)))

    def keys(**changes):
        space = {**hello.space, **changes}
        made = Keys(dataclasses.replace(hello, space=space, block_bytes=1 << 16), False)
        found = made.of(r, r.all_token_ids, [])
        made.close()
        return found

    same = keys()
    assert len(same) == 2 and same == keys()
    layouts = [
        _layout.describe(torch.zeros(2, 3, 16, 16, dtype=dtype), isa=isa, vllm=version).encode()
        for dtype in (torch.float16, torch.bfloat16)
        for isa in ("vec", "amx")
        for version in ("0.32.0", "0.32.1")
    ]
    others = [
        {"model": bytes(32)}, {"dtype": "f16"}, {"kv_heads": 4}, {"head_dim": 16}, {"layers": 3},
        {"block_tokens": 32}, *({"extra": layout} for layout in layouts),
    ]  # fmt: skip
    every = [tuple(keys(**other)) for other in [{}, *others]]
    assert len(set(every)) == len(every)
    assert not any(set(a) & set(b) for a in every for b in every if a != b)
    fake.worker.close()


def test_weights_that_cannot_be_found_say_what_to_set(tmp_path):
    with pytest.raises(kvist.OptionError, match=r'"model".*64 hexadecimal digits'):
        _identity.model_fingerprint(model_config(tmp_path), None)
    with pytest.raises(kvist.OptionError, match="random weights"):
        _identity.model_fingerprint(model_config(tmp_path, load_format="dummy"), None)


def test_salts_and_fields_do_not_run_together():
    long = "x" * 100
    assert _identity.salt_of(long) != _identity.salt_of(long + "y")
    assert len(_identity.salt_of(long)) <= _identity.SALT_MAX
    assert _identity.frame([b"ab", b"c"]) != _identity.frame([b"a", b"bc"])


# --- Versions ----------------------------------------------------------------------------------------


def base(**changes):
    """A class with the hooks that the table lists, some of them changed."""
    members = {}
    for name, names in {**_compat.SIGNATURES, **changes}.items():
        if names is None:
            continue
        scope = {}
        exec(f"def {name}({', '.join(names)}): ...", scope)
        members[name] = scope[name] if names else property(scope[name])
    return type("Base", (), members)


def test_a_tested_version_passes_and_another_is_warned_of(caplog):
    _compat.check(base(), "0.32.1+cpu")
    assert not caplog.records
    _compat.check(base(), "0.33.0")
    _compat.check(base(), "0.33.0")
    assert len(caplog.records) == 1 and "0.33.0" in caplog.text


@pytest.mark.parametrize("changed", [None, ("self", "other")])
def test_a_hook_that_is_called_otherwise_is_refused_by_name(changed):
    with pytest.raises(kvist.UnsupportedError, match="start_load_kv"):
        _compat.check(base(start_load_kv=changed), "0.32.0")


def test_the_package_imports_no_engine():
    import subprocess
    import sys

    code = "import kvist.vllm, kvist.vllm._scheduler, sys; print('vllm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert json.dumps(sorted(kvist.vllm.__all__)) == '["KvistConnector"]'
