"""`kvist.kernels` over tensors the caller keeps, against plain NumPy."""

import kvist
import ml_dtypes
import numpy as np
import pytest
import torch
from kvist import kernels
from test_cache import reference

DIM, HEADS, GROUP, PAGE = 32, 2, 3, 16


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def paged(rng, lens, dtype=np.float32):
    """Shuffled frames of several sequences: pools `[frames, page, heads, dim]`, lists, rows."""
    pages = [-(-n // PAGE) for n in lens]
    frames = rng.permutation(sum(pages) + 3)[: sum(pages)]
    k, v = (rng.standard_normal((sum(pages) + 3, PAGE, HEADS, DIM)).astype(dtype) for _ in range(2))
    indptr = np.cumsum([0, *pages])
    rows = []
    for i, n in enumerate(lens):
        mine = frames[indptr[i] : indptr[i + 1]]
        rows.append(tuple(x[mine].reshape(-1, HEADS, DIM)[:n] for x in (k, v)))
    return k, v, indptr, frames, rows


def query(rng, n, dtype=np.float32):
    return rng.standard_normal((n, HEADS * GROUP, DIM)).astype(dtype)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_pages_equal_the_reference(rng, layout):
    lens = [40, 1, 64]
    k, v, indptr, frames, rows = paged(rng, lens)
    if layout == "HND":
        k, v = (x.swapaxes(1, 2) for x in (k, v))
    q = rng.standard_normal((3, HEADS * GROUP, DIM)).astype(np.float32)
    o, lse = kernels.attend_pages(q, k, v, indptr, frames, lens, layout=layout)
    for i, (kk, vv) in enumerate(rows):
        want, want_lse = reference(q[i : i + 1], kk, vv)
        assert np.allclose(o[i], want[0], atol=1e-5)
        assert np.allclose(lse[i], want_lse[0], atol=1e-5)


def test_causal_chunks_and_windows(rng):
    k, v, indptr, frames, [(kk, vv)] = paged(rng, [50])
    q = rng.standard_normal((7, HEADS * GROUP, DIM)).astype(np.float32)
    at = np.arange(43, 50)
    args = (q, k, v, indptr, frames, [50])
    o, _ = kernels.attend_pages(*args, query_positions=at, causal=True)
    assert np.allclose(o, reference(q, kk, vv)[0], atol=1e-5)
    o, _ = kernels.attend_pages(*args, query_positions=at, causal=True, window=8)
    for i, p in enumerate(at):
        want, _ = reference(q[i : i + 1], kk[p - 7 : p + 1], vv[p - 7 : p + 1])
        assert np.allclose(o[i], want[0], atol=1e-5)


def test_several_queries_per_sequence(rng):
    k, v, indptr, frames, rows = paged(rng, [40, 33])
    q = query(rng, 5)
    o, lse = kernels.attend_pages(
        q, k, v, indptr, frames, [40, 33], query_indptr=[0, 2, 5],
        query_positions=[38, 39, 30, 31, 32], causal=True,
    )  # fmt: skip
    want = [reference(q[:2], *rows[0]), reference(q[2:], *rows[1])]
    assert np.allclose(o, np.concatenate([w[0] for w in want]), atol=1e-5)
    assert np.allclose(lse, np.concatenate([w[1] for w in want]), atol=1e-5)


def test_a_list_per_head_reads_other_pages_for_each(rng):
    k, v, _indptr, frames, [(kk, vv)] = paged(rng, [64])
    q = query(rng, 1)
    mine = [frames[[0, 2]], frames[[1]]]
    o, _ = kernels.attend_pages(
        q, k, v, [0, 2, 3], np.concatenate(mine), [20, 16], per_head=True,
        query_positions=[63], first_positions=[0, 16],
    )  # fmt: skip
    tokens = [np.r_[0:16, 32:36], np.r_[16:32]]
    for head, at in enumerate(tokens):
        part = slice(head * GROUP, (head + 1) * GROUP)
        want, _ = reference(q[:, part], kk[at][:, [head]], vv[at][:, [head]])
        assert np.allclose(o[:, part], want, atol=1e-5)


def test_first_positions_move_the_window(rng):
    """A list may begin anywhere in the text: here its first page is gone."""
    k, v, _indptr, frames, [(kk, vv)] = paged(rng, [48])
    q = query(rng, 1)
    o, _ = kernels.attend_pages(
        q, k, v, [0, 2], frames[1:], [32], first_positions=[16], query_positions=[47], window=20
    )
    assert np.allclose(o, reference(q, kk[28:], vv[28:])[0], atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_comes_back_rounded_once(rng, dtype):
    k, v, indptr, frames, [(kk, vv)] = paged(rng, [200], dtype)
    q = query(rng, 1, dtype)
    o, lse = kernels.attend_pages(q, k, v, indptr, frames, [200])
    want, want_lse = reference(q, kk, vv)
    assert o.dtype == dtype and lse.dtype == np.float32
    step = float(ml_dtypes.finfo(dtype).eps)
    assert np.allclose(o.astype(np.float64), want, atol=step, rtol=step)
    assert np.allclose(lse, want_lse, atol=2e-2)


def test_threads_give_the_same_bits(rng):
    k, v, indptr, frames, _ = paged(rng, [3000, 70, 500])
    q = query(rng, 3)
    one, *others = [
        kernels.attend_pages(q, k, v, indptr, frames, [3000, 70, 500], threads=n) for n in (1, 2, 5)
    ]
    for other in others:
        assert all(np.array_equal(a, b) for a, b in zip(one, other))


def test_nothing_to_read_gives_zeros_that_merge_away(rng):
    k, v, indptr, frames, [(kk, vv)] = paged(rng, [40])
    q = query(rng, 1)
    nothing = kernels.attend_pages(q, k, v, [0, 0], [], [0])
    assert not nothing[0].any() and np.isneginf(nothing[1]).all()
    o, lse = kernels.merge([nothing, kernels.attend_pages(q, k, v, indptr, frames, [40])])
    want, want_lse = reference(q, kk, vv)
    assert np.allclose(o, want, atol=1e-5) and np.allclose(lse, want_lse, atol=1e-5)


def test_slots_equal_their_tokens_and_parts_merge(rng):
    k, v, _, frames, [(kk, vv)] = paged(rng, [60])
    chosen = np.sort(rng.permutation(60)[:23])
    slots = frames[chosen // PAGE] * PAGE + chosen % PAGE
    q = rng.standard_normal((1, HEADS * GROUP, DIM)).astype(np.float32)
    o, lse = kernels.attend_slots(q, k, v, [0, 23], slots)
    want, want_lse = reference(q, kk[chosen], vv[chosen])
    assert np.allclose(o, want, atol=1e-5)
    assert np.allclose(lse, want_lse, atol=1e-5)
    parts = [kernels.attend_slots(q, k, v, [0, len(part)], part) for part in (slots[:9], slots[9:])]
    merged, merged_lse = kernels.merge(parts)
    assert np.allclose(merged, o, atol=1e-6)
    assert np.allclose(merged_lse, lse, atol=1e-6)
    near = chosen > 59 - 30
    o, _ = kernels.attend_slots(
        q, k, v, [0, 23], slots, positions=chosen, query_positions=[59], causal=True, window=30
    )
    assert np.allclose(o, reference(q, kk[chosen[near]], vv[chosen[near]])[0], atol=1e-5)


def test_one_frame_pool_of_torch_is_borrowed_with_soft_cap_and_sinks(rng):
    """An engine's `[batch, heads, tokens, dim]` tensors are pools of one frame per row."""
    k, v = torch.randn(2, HEADS, 20, DIM), torch.randn(2, HEADS, 20, DIM)
    q = torch.randn(2, HEADS * GROUP, DIM)
    sinks = torch.randn(HEADS * GROUP)
    o, lse = kernels.attend_pages(
        q, k, v, [0, 1, 2], [0, 1], [20, 20], layout="HND", soft_cap=3.0, sinks=sinks, threads=2
    )  # fmt: skip
    assert isinstance(o, torch.Tensor)
    scores = torch.einsum("bhd,bhtd->bht", q, k.repeat_interleave(GROUP, 1)) * DIM**-0.5
    scores = torch.cat([3 * torch.tanh(scores / 3), sinks.expand(2, -1)[..., None]], -1)
    want = torch.einsum(
        "bht,bhtd->bhd", scores.softmax(-1)[..., :-1], v.repeat_interleave(GROUP, 1)
    )
    assert torch.allclose(o, want, atol=1e-5)
    assert np.allclose(lse, scores.logsumexp(-1), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_scores_equal_plain_ones(rng, dtype):
    keys = rng.standard_normal((83, HEADS, DIM)).astype(dtype)
    q = rng.standard_normal((HEADS * GROUP, DIM)).astype(np.float32)
    wide = keys.astype(np.float64)
    units = [wide[i : i + 16] for i in range(0, 83, 16)]
    box, mean, moment2 = [], [], []
    scale = DIM**-0.5
    for head in range(HEADS * GROUP):
        mine = [u[:, head // GROUP] for u in units]
        x = q[head].astype(np.float64)
        box.append([np.maximum(x * u.max(0), x * u.min(0)).sum() for u in mine])
        mean.append([x @ u.mean(0) for u in mine])
        moment2.append([x @ u.mean(0) + scale / 2 * (x * x) @ u.var(0) for u in mine])
    tolerance = {"atol": 2e-4} if dtype == np.float32 else {"atol": 0.08, "rtol": 0.02}
    assert np.allclose(kernels.box_bound(q, keys), box, **tolerance)
    assert np.allclose(kernels.mean(q, keys), mean, **tolerance)
    assert np.allclose(kernels.moment2(q, keys), moment2, **tolerance)


def test_boxed_codes_estimate_every_token(rng):
    keys = rng.standard_normal((140, HEADS, DIM)).astype(np.float32)
    q = rng.standard_normal((HEADS * GROUP, DIM)).astype(np.float32)
    true = np.einsum("hd,thd->ht", q, keys.repeat(GROUP, axis=1))[:, :128]
    errors = []
    for planes in (2, 3, 4):
        summary = kernels.Summary(keys, "boxed", planes=planes)
        assert summary.units == 128
        errors.append(np.abs(summary.score(q) - true).mean())
    assert errors[0] > 1.7 * errors[1] > 1.7 * 1.7 * errors[2]
    assert errors[2] < 0.6


def test_selection(rng):
    weights = rng.random(1000).astype(np.float32)
    ids = kernels.top_k(weights, 50)
    assert np.array_equal(ids, np.sort(np.argsort(-weights, kind="stable")[:50]))
    forced = kernels.top_k(weights, 50, forced=[(0, 4), (990, 1000)])
    assert len(forced) == 50 and set(range(4)) | set(range(990, 1000)) <= set(forced.tolist())
    ids, mass = kernels.top_p(weights, 100.0)
    assert mass >= 100 and mass - weights[ids].min() < 100
    assert np.isclose(mass, weights[ids].sum(), rtol=1e-5)
    ids, _ = kernels.top_p(weights, 100.0, least=300)
    assert np.array_equal(ids, kernels.top_k(weights, 300))
    ids, mass = kernels.top_p(weights, 100.0, most=20)
    assert np.array_equal(ids, kernels.top_k(weights, 20)) and mass < 100
    assert len(kernels.top_k(weights, 5000)) == 1000
    weights[7] = np.nan
    assert 7 in kernels.top_k(weights, 1)


def test_mistakes_are_named(rng):
    k, v, indptr, frames, _ = paged(rng, [40])
    q = rng.standard_normal((1, HEADS * GROUP, DIM)).astype(np.float32)
    with pytest.raises(kvist.RangeError, match=r"expected 0\.\..*found 99"):
        kernels.attend_pages(q, k, v, [0, 3], [0, 1, 99], [40])
    with pytest.raises(kvist.RangeError, match=r"slot: expected"):
        kernels.attend_slots(q, k, v, [0, 1], [100000])
    with pytest.raises(kvist.RangeError, match=r"frames: expected 0\.\.2\^32, found -1"):
        kernels.attend_pages(q, k, v, [0, 3], [0, 1, -1], [40])
    with pytest.raises(kvist.DTypeError, match="expected integers, found float64"):
        kernels.attend_pages(q, k, v, [0, 3], [0.5, 1, 2], [40])
    with pytest.raises(kvist.ShapeError, match="3 pages for 40 tokens"):
        kernels.attend_pages(q, k, v, [0, 2], frames[:2], [40])
    with pytest.raises(kvist.ShapeError, match="page_tokens"):
        kernels.attend_pages(q, k[0], v[0], indptr, frames, [40])
    with pytest.raises(kvist.DTypeError, match="expected f32, found bf16"):
        kernels.attend_pages(q, k, v.astype(ml_dtypes.bfloat16), indptr, frames, [40])
    with pytest.raises(kvist.UnknownNameError, match="'NHD' or 'HND'"):
        kernels.attend_pages(q, k, v, indptr, frames, [40], layout="DHN")
    with pytest.raises(kvist.UnknownNameError, match='did you mean "mean"'):
        kernels.Summary(k[0], "maen")
    with pytest.raises(kvist.OptionError, match="disjoint"):
        kernels.top_k(np.ones(10, np.float32), 3, forced=[(4, 6), (5, 8)])
    with pytest.raises(kvist.ShapeError, match=r"a multiple of 2, 32"):
        kernels.box_bound(np.ones((3, DIM), np.float32), k[0])
    with pytest.raises(kvist.OptionError, match=r"threads: expected 1\.\.=1024, found 1000000"):
        kernels.attend_pages(q, k, v, indptr, frames, [40], threads=10**6)
    with pytest.raises(kvist.OptionError, match="window: expected 0 or more, found -1"):
        kernels.attend_pages(q, k, v, indptr, frames, [40], window=-1)
    with pytest.raises(kvist.OptionError, match=r"scale: expected finite .*found NaN"):
        kernels.attend_pages(q, k, v, indptr, frames, [40], scale=float("nan"))
    with pytest.raises(TypeError, match="scale: must be real number, not str"):
        kernels.attend_pages(q, k, v, indptr, frames, [40], scale="1")
    with pytest.raises(kvist.ShapeError, match="query positions: expected one per row"):
        kernels.attend_pages(q, k, v, indptr, frames, [40], causal=True)
    with pytest.raises(
        kvist.ShapeError, match=r"q: expected \[queries, q_heads, dim\], found \[6, 32\]"
    ):
        kernels.attend_pages(q[0], k, v, indptr, frames, [40])
    with pytest.raises(kvist.DTypeError, match=r"q: expected a tensor .*found NoneType"):
        kernels.attend_pages(None, k, v, indptr, frames, [40])
    with pytest.raises(kvist.ShapeError, match="at least one KV head"):
        kernels.Summary(k[0][:, :0])
    with pytest.raises(kvist.OptionError, match="scale: expected finite"):
        kernels.moment2(q[0], k[0], scale=float("nan"))
    with pytest.raises(kvist.OptionError, match="k: expected 0 or more, found -1"):
        kernels.top_k(np.ones(3, np.float32), -1)
    with pytest.raises(kvist.OptionError, match="most: expected at least 4, as least, found 2"):
        kernels.top_p(np.ones(5, np.float32), 1.0, least=4, most=2)
    with pytest.raises(kvist.OptionError, match="target: expected a number, found NaN"):
        kernels.top_p(np.ones(5, np.float32), float("nan"))


def test_lists_of_any_kind_and_tensors_off_their_step_are_read(rng):
    k, v, indptr, frames, [(kk, vv)] = paged(rng, [40])
    q = query(rng, 1)
    want = reference(q, kk, vv)[0]
    off = np.frombuffer(b"x" + frames.astype(np.uint32).tobytes(), np.uint32, offset=1)
    assert not off.flags.aligned
    packed = np.frombuffer(b"x" + k.tobytes(), np.float32, offset=1).reshape(k.shape)
    for lists, keys in [
        (frames.tolist(), k), (tuple(frames), k), (torch.from_numpy(frames), k),
        (np.repeat(frames, 2)[::2], k), (frames.astype(">i8"), k), (off, k), (frames, packed),
    ]:  # fmt: skip
        o, _ = kernels.attend_pages(q, keys, v, indptr, lists, [40])
        assert np.allclose(o, want, atol=1e-5)


def test_parts_that_do_not_fit_are_not_merged(rng):
    k, v, _indptr, frames, _ = paged(rng, [40])
    o, lse = kernels.attend_pages(query(rng, 2), k, v, [0, 3], frames, [40])
    with pytest.raises(kvist.ShapeError, match="at least one"):
        kernels.merge([])
    # As other libraries have it, heads first: as many numbers, each at another place.
    with pytest.raises(kvist.ShapeError, match=r"lse: expected \[2, 6\] as o, found \[6, 2\]"):
        kernels.merge([(o, lse.T)])
    with pytest.raises(kvist.ShapeError, match=r"expected \[2, 6, 32\], found \[1, 6, 32\]"):
        kernels.merge([(o, lse), (o[:1], lse[:1])])
