"""Every misuse is a typed error that names expected and found, and changes nothing."""

import copy
import threading

import kvist
import numpy as np
import pytest
import torch
from test_cache import make, reference


@pytest.fixture
def filled():
    seq = make().sequence()
    x = torch.randn(100, 2, 32)
    seq.append(0, x, x)
    seq.append(1, x, x)
    before = [seq.read(layer) for layer in (0, 1)]
    yield seq
    if not seq.closed:  # whatever the test did wrong, the sequence is as it was
        after = [seq.read(layer, 0, 100) for layer in (0, 1)]
        assert all(np.array_equal(a, b) for x, y in zip(before, after) for a, b in zip(x, y))


def unchanged(seq):
    return len(seq) == 100 and seq.layer_len(0) == seq.layer_len(1) == 100


def test_error_classes_are_also_the_usual_ones():
    for ours, usual in [
        (kvist.ShapeError, ValueError),
        (kvist.DTypeError, TypeError),
        (kvist.BudgetError, MemoryError),
        (kvist.PositionError, ValueError),
        (kvist.RangeError, IndexError),
        (kvist.OptionError, ValueError),
        (kvist.UnknownNameError, ValueError),
        (kvist.ClosedError, RuntimeError),
        (kvist.UnsupportedError, NotImplementedError),
    ]:
        assert issubclass(ours, usual) and issubclass(ours, kvist.KvistError)


def test_wrong_shapes(filled):
    x = torch.zeros(3, 2, 32)
    for k, v, text in [
        (torch.zeros(3, 3, 32), x, r"2 KV heads, 32\], found \[3, 3, 32\]"),
        (x, torch.zeros(3, 2, 16), r"values must have shape .* found \[3, 2, 16\]"),
        (x, torch.zeros(4, 2, 32), r"as many tokens as the keys, 3"),
    ]:
        with pytest.raises(kvist.ShapeError, match=text):
            filled.append(0, k, v)
    for q in (torch.zeros(5, 32), torch.zeros(6, 31), torch.zeros(1, 7, 32)):
        with pytest.raises(kvist.ShapeError, match=r"6 query heads, 32\], found"):
            filled.attend(0, q)
    assert unchanged(filled)


def test_wrong_layers_and_positions(filled):
    x = torch.zeros(3, 2, 32)
    for layer in (2, -1, 10**12):
        with pytest.raises(kvist.RangeError, match=rf"layer.*{layer}"):
            filled.append(layer, x, x)
        with pytest.raises(kvist.RangeError, match=rf"layer.*{layer}"):
            filled.attend(layer, torch.zeros(6, 32))
    for position in (99, 101, 0):
        with pytest.raises(kvist.PositionError, match=f"position 100, found {position}"):
            filled.append(0, x, x, position=position)
    with pytest.raises(kvist.PositionError, match="found 101"):
        filled.truncate(101)
    with pytest.raises(kvist.PositionError, match="expected 0 or more, found -1"):
        filled.truncate(-1)
    with pytest.raises(kvist.PositionError, match=r"has 100 tokens .* found 101"):
        filled.attend(0, torch.zeros(101, 6, 32))
    for start, stop, text in [
        (90, 120, "has 100 tokens in layer 0, found 120"),
        (0, 10**15, "has 100 tokens"),
        (101, None, "found 101"),
        (50, 20, "stop: expected at least start, 50, found 20"),
        (-1, None, "start: expected 0 or more, found -1"),
    ]:
        with pytest.raises(kvist.PositionError, match=text):
            filled.read(0, start, stop)
    with pytest.raises(kvist.PositionError, match=r"position: expected below 2\^64, found 1180"):
        filled.append(0, x, x, position=2**70)
    assert unchanged(filled)
    filled.append(0, x, x, position=100)


def test_wrong_options():
    for options, error, text in [
        ({"select": "boxd"}, kvist.UnknownNameError, 'did you mean "boxed"'),
        ({"dtype": "bf61"}, kvist.UnknownNameError, 'did you mean "bf16"'),
        ({"dtype": torch.int8}, kvist.UnknownNameError, "expected f32, f16 or bf16"),
        ({"select": 7}, TypeError, "a name or a Select object, found int"),
        ({"budget": 100}, kvist.OptionError, "none with select 'full'.*100"),
        ({"select": "boxed", "budget": 10}, kvist.OptionError, "budget.*found 10"),
        ({"host": "2 gigs"}, kvist.OptionError, "2GiB"),
        ({"host": -1}, kvist.OptionError, "found -1"),
        ({"host": "1KiB"}, kvist.BudgetError, "over budget"),
        ({"kv_heads": 4}, kvist.OptionError, "multiple of kv_heads"),
        ({"head_dim": 0}, kvist.OptionError, "found 0"),
        ({"head_dim": 1000}, kvist.OptionError, "found 1000"),
        ({"page_tokens": 24}, kvist.OptionError, "multiple of 16"),
        ({"dense_layers": (5,)}, kvist.RangeError, "layer 5"),
        ({"dense_layers": (-1,)}, kvist.RangeError, "layer: expected 0 or more, found -1"),
        ({"threads": 0}, kvist.OptionError, r"threads: expected 1\.\.=1024, found 0"),
        ({"threads": 10**9}, kvist.OptionError, "threads.*found 1000000000"),
        ({"layers": 2**40}, kvist.OptionError, "layers"),
        ({"layers": -3}, kvist.OptionError, "layers: expected 0 or more, found -3"),
        ({"head_dim": 2**70}, kvist.OptionError, r"head_dim: expected below 2\^64"),
        ({"budget": -1, "select": "quest"}, kvist.OptionError, "budget: expected 0 or more"),
        ({"host": float("inf")}, kvist.OptionError, "found inf"),
        ({"host": float("nan")}, kvist.OptionError, "found nan"),
        ({"host": "99999999TiB"}, kvist.OptionError, "99999999TiB"),
        ({"layers": 1.0}, TypeError, "'float' object .*\n.*'layers'"),
    ]:
        given = {
            "layers": 2,
            "q_heads": 6,
            "kv_heads": 2,
            "head_dim": 32,
            "dtype": "f32",
            **options,
        }
        with pytest.raises(error, match=text):
            kvist.Cache(**given)
    for bad in (
        {"top_p": 1.5}, {"top_p": float("nan")}, {"max_missed_mass": 0.0}, {"planes": 9},
        {"sinks": -1}, {"budget": 0},
    ):  # fmt: skip
        with pytest.raises(kvist.OptionError, match=next(iter(bad))):
            kvist.Select("boxed", **bad)
    with pytest.raises(kvist.OptionError, match="unit_tokens"):
        kvist.Select("quest", unit_tokens=24)


@pytest.mark.parametrize(
    "dtype", ["bf16", "bfloat16", torch.bfloat16, np.dtype("float16"), np.float32]
)
def test_dtypes_go_by_many_names(dtype):
    cache = kvist.Cache(layers=1, q_heads=1, kv_heads=1, head_dim=8, dtype=dtype, host="1MiB")
    assert cache.dtype in ("bf16", "f16", "f32")


def test_wrong_attend_options(filled):
    q = torch.zeros(6, 32)
    for name, value in [
        ("scale", 0.0), ("scale", float("nan")), ("scale", float("inf")),
        ("soft_cap", -1.0), ("soft_cap", float("nan")),
    ]:  # fmt: skip
        with pytest.raises(kvist.OptionError, match=f"{name} must be finite.*found"):
            filled.attend(0, q, **{name: value})
    with pytest.raises(kvist.ShapeError, match="expected 6, found 5"):
        filled.attend(0, q, sinks=torch.zeros(5))
    with pytest.raises(kvist.OptionError, match="window: expected 0 or more, found -1"):
        filled.attend(0, q, window=-1)
    with pytest.raises(TypeError, match="scal"):
        filled.attend(0, q, scal=1.0)
    assert unchanged(filled)


def test_wrong_forks(filled):
    with pytest.raises(kvist.UnknownNameError, match='did you mean "quest"'):
        filled.fork(select="quset")
    with pytest.raises(kvist.OptionError, match=r"none with select 'full'.*found 10"):
        filled.fork(budget=10)
    with pytest.raises(kvist.OptionError, match="budget: expected 0 or more, found -5"):
        filled.fork(select="quest", budget=-5)
    assert unchanged(filled)


def test_an_append_over_budget_changes_nothing():
    cache = kvist.Cache(layers=1, q_heads=2, kv_heads=2, head_dim=32, dtype="f32", host="200KiB")
    seq = cache.sequence()
    x = torch.randn(128, 2, 32)
    seq.append(0, x, x)
    used = cache.stats().used_bytes
    with pytest.raises(kvist.BudgetError, match=r"bytes needed, \d+ of 204800 free"):
        seq.append(0, torch.zeros(1000, 2, 32), torch.zeros(1000, 2, 32))
    assert seq.layer_len(0) == 128 and cache.stats().used_bytes == used <= 204800
    q = torch.randn(2, 32)
    assert np.allclose(seq.attend(0, q), reference(q[None], x, x)[0][0], atol=1e-5)


def test_use_after_close(filled):
    filled.close()
    filled.close()
    assert filled.closed and repr(filled) == "Sequence(closed)"
    x = torch.zeros(1, 2, 32)
    for use in (
        lambda: filled.append(0, x, x),
        lambda: filled.attend(0, torch.zeros(6, 32)),
        lambda: filled.fork(),
        lambda: filled.truncate(0),
        lambda: filled.stats(),
        lambda: len(filled),
    ):
        with pytest.raises(kvist.ClosedError, match="sequence: expected an open one"):
            use()
    with make() as cache:
        seq = cache.sequence()
    assert cache.closed
    with pytest.raises(kvist.ClosedError, match="cache"):
        cache.sequence()
    seq.append(0, x, x)  # sequences keep the memory they use


def test_what_is_left_outlives_what_was_dropped():
    """Closing or dropping a cache or a parent takes nothing from the sequences that are left."""
    cache = make()
    parent = cache.sequence()
    x = torch.randn(100, 2, 32)
    parent.append(0, x, x)
    child = parent.fork()
    q = torch.randn(6, 32)
    want = parent.attend(0, q)
    parent.close()
    cache.close()
    del cache, parent
    assert torch.equal(child.attend(0, q), want)


def test_wrong_batches(filled):
    cache, q = make(), torch.zeros(2, 6, 32)
    with pytest.raises(kvist.ShapeError, match="another cache"):
        cache.attend_batch(0, q[:1], [filled])
    a, b = cache.sequence(), cache.sequence()
    x = torch.randn(5, 2, 32)
    a.append(0, x, x)
    b.append(0, x, x)
    with pytest.raises(kvist.ShapeError, match=r"1 queries for 1 sequences.*\[2, 6, 32\]"):
        cache.attend_batch(0, q, [a])
    with pytest.raises(kvist.ShapeError, match="queries"):
        cache.attend_batch(0, q, [a, b], queries=[2])
    with pytest.raises(kvist.OptionError, match="queries: expected 0 or more, found -1"):
        cache.attend_batch(0, q, [a, b], queries=[3, -1])
    with pytest.raises(TypeError):
        cache.attend_batch(0, q, [a, "b"])
    b.close()
    with pytest.raises(kvist.ClosedError):
        cache.attend_batch(0, q, [a, b])


def test_a_batch_equals_its_rows_whatever_its_order():
    cache = make()
    root = cache.sequence()
    x = torch.randn(150, 2, 32)
    root.append(0, x, x)
    rows = [root.fork() for _ in range(3)]
    for i, row in enumerate(rows):
        more = torch.randn(1 + 40 * i, 2, 32)
        row.append(0, more, more)
    q = torch.randn(4, 6, 32)
    batch = [rows[2], rows[0], rows[1], rows[0]]
    out, infos = cache.attend_batch(0, q, batch, info=True)
    for i, row in enumerate(batch):
        assert torch.allclose(out[i], row.attend(0, q[i]), atol=1e-6)
        assert infos[i].lse.shape == (6,)
    ragged = cache.attend_batch(0, q, batch[:2], queries=[3, 1])
    assert torch.allclose(ragged[:3], rows[2].attend(0, q[:3]), atol=1e-6)


def test_cannot_be_pickled(filled):
    with pytest.raises(TypeError, match="cannot be pickled"):
        copy.deepcopy(filled)


def test_many_threads_many_sequences():
    """Appends, attends, forks and batches from several threads leave every row right."""
    cache = make()
    failures = []

    def work(seed):
        try:
            torch.manual_seed(seed)
            seq = cache.sequence()
            keys = torch.zeros(0, 2, 32)
            for _ in range(20):
                x = torch.randn(17, 2, 32)
                keys = torch.cat([keys, x])
                seq.append(0, x, x)
                q = torch.randn(6, 32)
                want = reference(q[None], keys, keys)[0][0]
                fork = seq.fork()
                outs = [seq.attend(0, q), fork.attend(0, q)]
                outs += list(cache.attend_batch(0, torch.stack([q, q]), [fork, seq]))
                fork.close()
                if not all(np.allclose(out, want, atol=1e-4) for out in outs):
                    failures.append(seed)
        except Exception as e:
            failures.append(e)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert cache.stats().page_bytes == 0
