"""Tensors in and out: DLPack of both kinds, NumPy, strides, dtypes, devices."""

import array
import gc
import resource
import sys
import threading
import time
import types

import kvist
import kvist.kernels
import ml_dtypes
import numpy as np
import pytest
import torch


def sequence(dtype="f32", heads=2, dim=32, **options):
    return kvist.Cache(
        layers=1, q_heads=2 * heads, kv_heads=heads, head_dim=dim, dtype=dtype, host="64MiB", **options
    ).sequence()  # fmt: skip


class Exporter:
    """A tensor that speaks DLPack and nothing else."""

    def __init__(self, tensor, versioned=True, device=None):
        self.tensor, self.versioned, self.device = tensor, versioned, device
        self.exports = []

    def __dlpack_device__(self):
        return self.device or (1, 0)

    def __dlpack__(self, **options):
        if not self.versioned and options:
            raise TypeError("unexpected keyword max_version")
        capsule = self.tensor.__dlpack__(**options)
        self.exports.append(repr(capsule).split('"')[1])
        return capsule


def stored(sequence):
    return tuple(torch.from_numpy(x) for x in sequence.read(0))


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_capsules_of_both_kinds_are_read(versioned, dtype):
    kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    k, v = torch.randn(9, 2, 32).to(kind), torch.randn(9, 2, 32).to(kind)
    seq = sequence(dtype)
    exporter = Exporter(k, versioned)
    seq.append(0, exporter, Exporter(v, versioned))
    assert exporter.exports == ["dltensor_versioned" if versioned else "dltensor"]
    assert torch.equal(stored(seq)[0], k.float())
    assert torch.equal(stored(seq)[1], v.float())


def layouts():
    x = torch.randn(12, 4, 64)
    yield "transposed", torch.randn(2, 12, 32).transpose(0, 1)
    yield "offset and gaps", x[:, 1:3, 16:48]
    yield "every other element", x[:, :2, ::2]
    yield "every other token", torch.randn(24, 2, 32)[::2]
    yield "broadcast", torch.randn(1, 1, 32).expand(12, 2, 32)
    yield "one token", torch.randn(1, 2, 32)


@pytest.mark.parametrize("name, tensor", layouts(), ids=[name for name, _ in layouts()])
def test_any_strides_are_read(name, tensor):
    seq = sequence()
    seq.append(0, tensor, tensor)
    assert torch.equal(stored(seq)[0], tensor)
    seq.append(0, tensor.numpy(), Exporter(tensor))
    assert torch.equal(stored(seq)[0][len(tensor) :], tensor)
    assert torch.equal(stored(seq)[1][len(tensor) :], tensor)


def test_negative_strides_of_numpy_are_read():
    x = np.random.default_rng(0).standard_normal((10, 2, 32)).astype(np.float32)
    seq = sequence()
    seq.append(0, x[::-1], x[:, ::-1, ::-1])
    k, v = seq.read(0)
    assert np.array_equal(k, x[::-1])
    assert np.array_equal(v, x[:, ::-1, ::-1])


def test_read_only_tensors_are_read():
    x = np.random.default_rng(0).standard_normal((10, 2, 32)).astype(np.float32)
    x.setflags(write=False)
    seq = sequence()
    exporter = Exporter(x)
    seq.append(0, x, exporter)
    assert exporter.exports == ["dltensor_versioned"]  # only this kind can say read-only
    assert all(np.array_equal(stored, x) for stored in seq.read(0))


@pytest.mark.parametrize("wrap", [lambda x: x, torch.from_numpy], ids=["numpy", "torch"])
def test_a_layout_that_fits_is_read_without_a_copy(tmp_path, wrap):
    """One frame of a sparse pool of 512 MiB is read: a copy would touch all of it."""
    pool = np.memmap(tmp_path / "pool", np.float32, "w+", shape=(2**15, 2, 64, 32))
    pool[7] = 1.0
    pool = wrap(pool)
    q = wrap(np.ones((1, 4, 32), np.float32))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    o, _ = kvist.kernels.attend_pages(q, pool, pool, [0, 1], [7], [64], layout="HND")
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert np.array_equal(np.asarray(o), np.ones((1, 4, 32), np.float32))
    assert faults < 500, f"{faults} page faults"


def test_buffers_are_read_through_numpy():
    x = np.random.default_rng(0).standard_normal((10, 2, 32)).astype(np.float32)
    seq = sequence()
    flat = array.array("f", x.ravel().tolist())
    seq.append(0, memoryview(flat).cast("B").cast("f", (10, 2, 32)), x)
    assert np.array_equal(seq.read(0)[0], x)


@pytest.mark.parametrize("queries", [None, 1, 5])
@pytest.mark.parametrize("kind", ["torch", "numpy", "exporter"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_results_come_back_in_kind(kind, dtype, queries):
    torch_type = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    seq = sequence(dtype)
    seq.append(0, torch.randn(40, 2, 32).to(torch_type), torch.randn(40, 2, 32).to(torch_type))
    shape = (4, 32) if queries is None else (queries, 4, 32)
    q = torch.randn(shape).to(torch_type)
    want = seq.attend(0, q)
    assert isinstance(want, torch.Tensor)
    assert want.shape == q.shape and want.dtype == torch_type
    if kind == "numpy":
        numpy_type = ml_dtypes.bfloat16 if dtype == "bf16" else q.numpy().dtype
        out = seq.attend(0, q.float().numpy().astype(numpy_type))
        assert isinstance(out, np.ndarray)
        assert out.dtype == numpy_type and out.shape == q.shape
        out[...] = out + 0  # writable
        assert np.array_equal(out.astype(np.float32), want.float().numpy())
    elif kind == "exporter":
        out = np.asarray(seq.attend(0, Exporter(q))).astype(np.float32)
        assert np.array_equal(out, want.float().numpy())


def test_results_outlive_everything():
    seq = sequence()
    seq.append(0, torch.ones(3, 2, 32), torch.ones(3, 2, 32))
    outs = [seq.attend(0, torch.ones(4, 32)), seq.attend(0, np.ones((4, 32), np.float32))]
    seq.close()
    del seq
    gc.collect()
    assert all(float(out.sum()) == 4 * 32 for out in outs)


def test_buffer_speaks_dlpack_itself():
    seq = sequence()
    seq.append(0, torch.ones(3, 2, 32), torch.ones(3, 2, 32))

    class Foreign(Exporter):
        """From a "library" whose from_dlpack keeps what it is given."""

    module = types.ModuleType("foreign")
    module.from_dlpack = lambda buffer: buffer
    sys.modules["foreign"] = module
    Foreign.__module__ = "foreign"
    try:
        buffer = seq.attend(0, Foreign(torch.ones(4, 32)))
    finally:
        del sys.modules["foreign"]
    assert buffer.__dlpack_device__() == (1, 0)
    taken = torch.from_dlpack(buffer)
    assert torch.equal(taken, torch.ones(4, 32))
    assert taken.data_ptr() == np.asarray(buffer).ctypes.data  # handed over, not copied
    assert torch.equal(torch.utils.dlpack.from_dlpack(buffer.__dlpack__()), torch.ones(4, 32))
    for version in (None, (1, 0)):
        capsule = buffer.__dlpack__(max_version=version)
        del capsule  # nobody took it: its tensor is freed with it
    gc.collect()


def test_wrong_dtypes_are_named():
    seq = sequence()
    x = torch.zeros(3, 2, 32)
    for bad, name in [
        (x.double(), "f64"),
        (x.int(), "int32"),
        (x.bool(), "bool"),
        (x.to(torch.complex64), "complex64"),
        (x.numpy().astype(np.float64), "float64"),
        (x.numpy().astype(np.int64), "int64"),
        ([1.0, 2.0], "list"),
        ("text", "str"),
        (None, "NoneType"),
    ]:
        with pytest.raises(kvist.DTypeError, match=f"found {name}") as e:
            seq.append(0, bad, x)
        assert isinstance(e.value, TypeError)
    with pytest.raises(kvist.DTypeError, match=r"keys must be f32 .* found bf16"):
        seq.append(0, x.bfloat16(), x.bfloat16())
    assert seq.layer_len(0) == 0


def test_other_devices_and_byte_orders_are_refused():
    seq = sequence()
    x = torch.zeros(3, 2, 32)
    with pytest.raises(BufferError, match="expected a CPU or CUDA tensor, found metal:1"):
        seq.append(0, Exporter(x, device=(8, 1)), x)
    with pytest.raises(BufferError, match="expected a CPU tensor, found cuda:1"):
        kvist.kernels.Summary(Exporter(x, device=(2, 1)))
    for bad in (torch.zeros(3, 2, 32, device="meta"), x.to_sparse()):
        with pytest.raises(BufferError, match=r"^keys: expected a dense CPU tensor, found .*\)$"):
            seq.append(0, bad, x)
    with pytest.raises(BufferError, match="native byte order"):
        seq.append(0, x.numpy().astype(">f4"), x)
    assert seq.layer_len(0) == 0


def test_strides_inside_an_element_are_refused():
    seq = sequence()
    x = np.ndarray((3, 2, 32), np.float32, buffer=bytearray(1000), strides=(258, 130, 4))
    with pytest.raises(BufferError, match=r"whole elements of 4 bytes, found \[258, 130, 4\]"):
        seq.append(0, x, x)


def test_a_lazily_negated_tensor_is_refused():
    """Its memory holds the negatives of its values, and no exchange format says so."""
    seq = sequence()
    x = torch.randn(3, 2, 32, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    with pytest.raises(BufferError, match="resolve_neg"):
        seq.append(0, x, x)
    seq.append(0, x.resolve_neg(), x.resolve_neg())
    assert torch.equal(stored(seq)[0], x)


def test_wrong_ranks_are_named():
    seq = sequence()
    for bad in (torch.zeros(2, 32), torch.zeros(1, 3, 2, 32), torch.zeros(1, 1, 3, 2, 32)):
        with pytest.raises(kvist.ShapeError, match=r"expected .*found") as e:
            seq.append(0, bad, bad)
        assert isinstance(e.value, ValueError)
    with pytest.raises(kvist.ShapeError):
        seq.attend(0, torch.zeros(32))


def test_gradients_do_not_get_in_the_way():
    seq = sequence()
    x = torch.ones(3, 2, 32, requires_grad=True)
    seq.append(0, x.detach(), x.detach())
    out = seq.attend(0, torch.ones(4, 32, requires_grad=True).detach())
    assert not out.requires_grad


def test_values_are_stored_bit_exact():
    x = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]).repeat(3, 2, 8)
    seq = sequence()
    seq.append(0, x, x)
    assert torch.equal(stored(seq)[0].view(torch.int32), x.view(torch.int32))


def ticks_during(*works):
    """How often this thread ran Python while the first of `works` did, each in a thread of its own."""
    done = threading.Event()

    def first():
        works[0]()
        done.set()

    others = [threading.Thread(target=work, args=(done,)) for work in works[1:]]
    threads = [threading.Thread(target=first), *others]
    for thread in threads:
        thread.start()
    ticks = 0
    while not done.is_set():
        ticks += 1
        time.sleep(0.0005)
    for thread in threads:
        thread.join()
    return ticks


# With the lock held a thread would tick once or twice in all.
FEW = 5


def test_attend_releases_the_gil():
    seq = sequence(heads=4, dim=128, threads=1)
    x = torch.randn(4096, 4, 128)
    seq.append(0, x, x)
    q = torch.randn(4096, 8, 128)
    assert ticks_during(lambda: seq.attend(0, q)) > FEW


def test_append_releases_the_gil_even_if_somebody_waits():
    cache = kvist.Cache(
        layers=1, q_heads=4, kv_heads=4, head_dim=128, dtype="f32", host="256MiB", threads=1,
        select="boxed",
    )  # fmt: skip
    x = torch.randn(16384, 4, 128)
    seq = cache.sequence()
    assert ticks_during(lambda: seq.append(0, x, x)) > FEW
    seq = cache.sequence()

    def ask(done):
        while not done.is_set():
            len(seq)  # waits for the append, and must not hold the lock meanwhile
            time.sleep(0)

    assert ticks_during(lambda: seq.append(0, x, x), ask) > FEW
