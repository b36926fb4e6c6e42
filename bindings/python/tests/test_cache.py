"""The package's own API: caches, sequences, selection, errors."""

import kvist
import ml_dtypes
import numpy as np
import pytest
import torch


def reference(q, k, v, scale=None):
    """Dense causal attention in f64: `q` `[queries, q_heads, d]`, `k`, `v` `[tokens, kv_heads, d]`."""
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    s = np.einsum("qhd,thd->hqt", q, k) * scale
    past = k.shape[0] - q.shape[0]
    hidden = np.arange(k.shape[0])[None, :] > past + np.arange(q.shape[0])[:, None]
    s = np.where(hidden, -np.inf, s)
    top = s.max(-1, keepdims=True)
    p = np.exp(s - top)
    lse = (np.log(p.sum(-1)) + top[..., 0]).T
    return np.einsum("hqt,thd->qhd", p / p.sum(-1, keepdims=True), v), lse


def make(select="full", dtype="f32", **options):
    return kvist.Cache(
        layers=2,
        q_heads=6,
        kv_heads=2,
        head_dim=32,
        dtype=dtype,
        host="64MiB",
        select=select,
        **options,
    )


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def rows(rng, tokens, heads=2, dtype=np.float32):
    return rng.standard_normal((tokens, heads, 32)).astype(dtype)


def test_attention_equals_the_reference(rng):
    seq = make().sequence()
    k, v = rows(rng, 200), rows(rng, 200)
    seq.append(0, k[:150], v[:150])
    seq.append(0, k[150:], v[150:])
    for queries in (1, 7):
        q = rows(rng, queries, 6)
        out, info = seq.attend(0, q, info=True)
        want, lse = reference(q, k, v)
        assert np.allclose(out, want, atol=1e-5)
        assert np.allclose(np.reshape(info.lse, lse.shape), lse, atol=1e-4)
        assert list(info.tokens_read) == [200, 200]
    assert seq.attend(0, rows(rng, 1, 6)[0]).shape == (6, 32)


def test_bf16_from_numpy_and_torch_agree(rng):
    k, v, q = rows(rng, 100), rows(rng, 100), rows(rng, 1, 6)
    outs = []
    for convert in (
        lambda x: x.astype(ml_dtypes.bfloat16),
        lambda x: torch.from_numpy(x).bfloat16(),
    ):
        seq = make(dtype="bf16").sequence()
        seq.append(0, convert(k), convert(v))
        out = seq.attend(0, convert(q))
        outs.append(np.asarray(out.float() if isinstance(out, torch.Tensor) else out, np.float32))
    assert np.array_equal(*outs)


def test_strided_tensors_are_read_in_place(rng):
    seq, other = make().sequence(), make().sequence()
    k, v = (torch.randn(2, 90, 32).transpose(0, 1) for _ in range(2))
    seq.append(0, k, v)
    other.append(0, k.contiguous(), v.contiguous())
    q = torch.randn(6, 32)
    out = seq.attend(0, q)
    assert isinstance(out, torch.Tensor)
    assert torch.equal(out, other.attend(0, q))


@pytest.mark.parametrize("select", ["quest", "boxed"])
def test_a_budget_is_kept_and_a_full_one_is_dense(rng, select):
    k, v, q = rows(rng, 1000), rows(rng, 1000), rows(rng, 1, 6)
    seq = make(select, budget=256).sequence()
    seq.append(0, k, v)
    _, info = seq.attend(0, q, info=True)
    assert max(info.tokens_read) <= 256
    whole = seq.fork(budget=1000)
    assert np.array_equal(whole.attend(0, q), seq.fork(select="full").attend(0, q))


def test_the_certificate_holds(rng):
    k, v = rows(rng, 1500) * 2, rows(rng, 1500)
    seq = make(kvist.Select("boxed", max_missed_mass=0.05)).sequence()
    seq.append(0, k, v)
    for _ in range(5):
        q = rows(rng, 1, 6)
        _, info = seq.attend(0, q, info=True)
        _, lse = reference(q, k, v)
        missed = 1 - np.exp(np.reshape(info.lse, -1) - lse.reshape(-1))
        bound = np.asarray(info.missed_mass_bound)
        assert (bound <= 0.05 + 1e-6).all()
        assert (missed <= bound + 1e-4).all()


def test_forks_share_and_diverge(rng):
    cache = make()
    seq = cache.sequence()
    k, v = rows(rng, 130), rows(rng, 130)
    seq.append(0, k, v)
    used = cache.stats().used_bytes
    fork = seq.fork()
    assert cache.stats().used_bytes == used
    more = rows(rng, 3)
    fork.append(0, more, more)
    q = rows(rng, 1, 6)
    assert np.allclose(seq.attend(0, q), reference(q, k, v)[0], atol=1e-5)
    want = reference(q, np.concatenate([k, more]), np.concatenate([v, more]))[0]
    assert np.allclose(fork.attend(0, q), want, atol=1e-5)


def test_mistakes_are_named_and_change_nothing(rng):
    seq = make().sequence()
    k = rows(rng, 10)
    with pytest.raises(kvist.ShapeError, match=r"2 KV heads"):
        seq.append(0, rows(rng, 10, 3), rows(rng, 10, 3))
    with pytest.raises(kvist.KvistError, match="layer 7"):
        seq.append(7, k, k)
    with pytest.raises(kvist.KvistError, match="f32"):
        seq.append(0, k.astype(np.float16), k.astype(np.float16))
    with pytest.raises(kvist.UnknownNameError, match="boxed"):
        make("boxd")
    with pytest.raises(kvist.BudgetError, match="over budget"):
        small = kvist.Cache(layers=1, q_heads=2, kv_heads=2, head_dim=32, dtype="f32", host="40KiB")
        small.sequence().append(0, rows(rng, 1000), rows(rng, 1000))
    assert len(seq) == 0
    assert seq.layer_len(0) == 0


def test_presets_are_listed():
    assert {"full", "quest", "boxed"} <= {p["name"] for p in kvist.selection_presets()}
