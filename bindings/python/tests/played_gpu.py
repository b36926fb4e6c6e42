"""What a process does whose only GPU is played: `python played_gpu.py CASE`, started by test_cuda_tensors.py."""

import ctypes
import gc
import os
import sys
from ctypes import c_int64, c_void_p

import kvist
import kvist.kernels
import numpy as np
import pytest
from played_tensors import (
    BF16,
    CUDA,
    TYPES,
    Ancient,
    Careless,
    DataType,
    Device,
    DLTensor,
    Exchanged,
    Old,
    Result,
    Tensor,
    Used,
    call,
    from_dlpack,
    memory_left,
)

DTYPES = [(np.dtype("f4"), "f32"), (np.dtype("f2"), "f16"), (BF16, "bf16")]


def cache(dtype="f32", dim=32, **options):
    return kvist.Cache(
        layers=1, q_heads=4, kv_heads=2, head_dim=dim, dtype=dtype, host="4MiB", threads=1, **options
    )  # fmt: skip


RANDOM = np.random.default_rng(7)


def rows(n, heads=2, dim=32, dtype="f4"):
    return RANDOM.standard_normal((n, heads, dim)).astype(dtype)


def layouts(dtype):
    """Views, and the arrays that they are views of."""
    plain, wide = rows(12, dtype=dtype), rows(12, 4, 64, dtype)
    yield plain, plain
    heads_first = rows(2, 12, dtype=dtype)
    yield heads_first.transpose(1, 0, 2), heads_first
    yield wide[:, 1:3, 16:48], wide
    yield wide[:, :2, ::2], wide
    yield wide[::2, :2, :32], wide
    yield wide[::-1, :2, :32], wide
    odd = rows(12, 2, 35, dtype)
    yield odd[:, :, 1:33], odd
    yield np.broadcast_to(wide[:1, :2, :32], (12, 2, 32)), wide


def tensors_of_all_strides_and_types():
    for dtype, name in DTYPES:
        for kind in (Tensor, Old, Exchanged):
            for view, base in layouts(dtype):
                seq = cache(name).sequence()
                seq.append(0, kind(view, base), kind(view, base))
                for stored in seq.read(0):
                    assert np.array_equal(stored, view.astype("f4")), (view.strides, name)
    gc.collect()
    assert not Tensor.alive


def results_are_those_of_host_tensors():
    sinks = rows(1, 1, 4)[0, 0]
    for dtype, name in DTYPES:
        for kind in (Tensor, Exchanged):
            here, there = cache(name).sequence(), cache(name).sequence()
            k, v = rows(90, dtype=dtype), rows(90, dtype=dtype)
            here.append(0, k, v)
            there.append(0, kind(k), kind(v))
            left = memory_left()
            for shape, options in [
                ((4, 32), {}), ((3, 4, 32), {"info": True}), ((1, 4, 32), {"sinks": sinks}),
            ]:  # fmt: skip
                q = RANDOM.standard_normal(shape).astype(dtype)
                want = here.attend(0, q, **options)
                if "sinks" in options:
                    options = {"sinks": Tensor(sinks)}
                got = there.attend(0, kind(q), **options)
                if "info" in options:
                    assert np.array_equal(got[1].lse, want[1].lse)
                    got, want = got[0], want[0]
                assert isinstance(got, Result) and got.device == (CUDA, 0)
                assert got.shape == shape and np.array_equal(got.numpy(), want)
            q, k, v = rows(3, 4, dtype=dtype), rows(3, dtype=dtype), rows(3, dtype=dtype)
            want = here.attend_tree(0, q, [-1, 0, 0], k, v)
            got = there.attend_tree(0, kind(q), [-1, 0, 0], kind(k), kind(v))
            assert np.array_equal(got.numpy(), want)
            assert there.hint(0, kind(q[0])) == 0
            own = cache(name)
            pair = [own.sequence(), own.sequence()]
            for seq in pair:
                seq.append(0, kind(k), kind(v))
            got = own.attend_batch(0, kind(q[:2]), pair)
            want = np.concatenate([seq.attend(0, q[i : i + 1]) for i, seq in enumerate(pair)])
            assert np.array_equal(got.numpy(), want)
            assert own.hint_batch(0, kind(q[:2]), pair) == 0
            # A result of a host tensor stays there; a stranger's comes as what speaks DLPack.
            assert isinstance(here.attend(0, q), np.ndarray)
            result = there.attend(0, type("Stranger", (kind,), {"__module__": "nobody"})(q))
            if kind is Tensor:
                assert type(result).__name__ == "Buffer"
                assert np.array_equal(from_dlpack(result).numpy(), here.attend(0, q))
            got = result = options = None
            gc.collect()
            assert not Tensor.alive and memory_left() == left, "results keep memory"


def producers_are_waited_for():
    seq = cache().sequence()
    k = rows(5)
    # Nothing was waited for, and nothing else waits in its place.
    seq.append(0, Careless(k), Careless(k))
    assert np.isnan(seq.read(0)[0]).all()
    seq.append(0, Tensor(k), Old(k))
    assert np.array_equal(seq.read(0, start=5)[0], k)
    with pytest.raises(BufferError, match=r"^keys: .* whose __dlpack__ takes stream="):
        seq.append(0, Ancient(k), Tensor(k))
    assert len(seq) == 10


def what_is_refused():
    seq = cache().sequence()
    k = rows(5)
    good = Tensor(k)
    other = Tensor(k)
    other.device.id = other.tensor.device.id = 1
    host = Tensor(k)
    host.tensor.device = Device(1, 0)
    for bad, error, text in [
        (Tensor(k, device=(CUDA, 5)), kvist.DeviceError, r"no GPU 5: the driver shows 2"),
        (Tensor(k, device=(CUDA, -1)), BufferError, r"keys: expected a CPU or CUDA tensor, found cuda:-1"),
        (Tensor(k, device=(8, 0)), BufferError, r"keys: expected a CPU or CUDA tensor, found metal:0"),
        (other, BufferError, r"keys: expected a tensor on cuda:0, as __dlpack_device__ says, found cuda:1"),
        (host, BufferError, r"keys: expected a tensor on cuda:0, .* found one of the CPU"),
        (Used(k), BufferError, r"keys: expected an unused capsule"),
        (Tensor(k.astype("f8")), kvist.DTypeError, r"keys: expected f32, f16 or bf16, found f64"),
        (Tensor(k[None, None, None]), kvist.ShapeError, r"keys: expected at most 4 dimensions"),
        (Tensor(k[0]), kvist.ShapeError, r"keys: expected \[tokens, kv_heads, head_dim\]"),
        (Tensor(k.astype("f2")), kvist.DTypeError, r"keys must be f32 .* found f16"),
    ]:  # fmt: skip
        with pytest.raises(error, match=text):
            seq.append(0, bad, good)
    # What the driver refuses: memory that nobody has.
    lost = Tensor(k)
    lost.tensor.data = 4096
    with pytest.raises(kvist.DeviceError, match="copying from a GPU: the driver says"):
        seq.append(0, lost, good)
    assert len(seq) == 0
    # Large arrays are not copied unasked.
    with pytest.raises(BufferError, match="q: expected a CPU tensor, found cuda:0"):
        kvist.kernels.attend_pages(Tensor(rows(1, 4)), k, k, [0, 1], [0], [5])
    with pytest.raises(BufferError, match="expected a CPU tensor, found cuda:0"):
        kvist.kernels.Summary(Tensor(k), "box")
    store = kvist.PrefixStore(host="8MiB")
    space = store.space(
        model=bytes(32), layers=1, kv_heads=2, head_dim=32, dtype="f32", block_tokens=16
    )
    blocks = Tensor(rows(2 * 16).reshape(2, 1, 16, 2, 32))
    with pytest.raises(BufferError, match="expected a CPU tensor, found cuda:0"):
        space.put(space.prefix(list(range(16))), 0, blocks=[blocks])


def near(got, want):
    off = np.linalg.norm(got.astype("f4") - want.astype("f4"), axis=-1)
    assert (off <= 1e-2 * np.linalg.norm(want.astype("f4"), axis=-1)).all(), off.max()


class Twins:
    """A cache with a GPU and one without, told the same."""

    def __init__(self, dtype=BF16, select="full", **device):
        name = "bf16" if dtype == BF16 else "f32"
        both = {"page_tokens": 16, "select": select}
        self.dtype, self.gpu = dtype, cache(name, 64, **both, **device)
        self.pair = self.gpu.sequence(), cache(name, 64, **both).sequence()

    def append(self, n, wrap=Tensor):
        k, v = rows(n, 2, 64, self.dtype), rows(n, 2, 64, self.dtype)
        self.pair[0].append(0, wrap(k), wrap(v))
        self.pair[1].append(0, k, v)

    def attend(self, n=1, wrap=Tensor):
        q = rows(n, 4, 64, self.dtype)
        got, want = self.pair[0].attend(0, wrap(q)), self.pair[1].attend(0, q)
        near(got.numpy() if wrap is Tensor else got, want)


def a_cache_with_a_gpu():
    for dtype in (BF16, np.dtype("f4")):
        twins = Twins(dtype, device=0, device_bytes="1MiB")
        assert twins.gpu.device.name == "Fake 0" and twins.gpu.device.calls == 0
        for step in range(4):
            twins.append(7)
            twins.attend()
            twins.attend(wrap=np.asarray)
            twins.append(1, np.asarray)
            twins.attend(2 if step else 7)
        used = twins.gpu.device
        assert used.calls == 12 and used.calls_on_cpu == 0 and used.degraded is None
        assert used.page_hits > 0 and used.copied_bytes > 0 and used.pages_on_cpu == 0
        assert 0 < used.used_bytes <= used.budget_bytes <= 1 << 20
        assert used.degraded_seconds is None
    assert cache("bf16", 64, device="cuda:1", device_bytes=0).device.name == "Fake 1"
    assert cache("bf16", 64, device="cuda", device_bytes=0).device.name == "Fake 0"
    assert cache().device is None


def a_gpu_that_chooses():
    twins = Twins(select=kvist.Select("quest", budget=48), device=0, device_bytes="1MiB")
    twins.append(150)
    for step in range(1, 4):
        twins.append(1)
        twins.attend()
        assert twins.gpu.device.selections == twins.gpu.device.calls == step


def impossible_options():
    for options, text in [
        ({"device": "gpu"}, 'device: expected a GPU\'s number, "cuda" or "cuda:1", found gpu'),
        ({"device": "cuda:x"}, "device: .* found cuda:x"),
        ({"device": -1}, "device: .* found -1"),
        ({"device": 1.5}, "device: .* found 1.5"),
        ({"device_bytes": 1}, "device_bytes: expected device= beside it, found none"),
        ({"device_optional": True}, "device_optional: expected device= beside it, found none"),
        ({"device": 0, "device_bytes": 1, "device_memory": Tensor(np.zeros(256, "u1"))},
         "device_bytes: expected it or device_memory, found both"),
        ({"device": 0, "dim": 32}, "dim on the device"),
    ]:  # fmt: skip
        with pytest.raises(kvist.OptionError, match=text):
            cache("bf16", **options)
    with pytest.raises(kvist.DeviceError, match="no GPU 9: the driver shows 2"):
        cache("bf16", 64, device=9)
    os.environ["FAKE_MEMORY"] = "65536"
    with pytest.raises(kvist.DeviceError, match="out of GPU memory"):
        cache("bf16", 64, device=0, device_bytes="100GiB")
    twins = Twins(device=0, device_bytes="100GiB", device_optional=True)
    twins.append(20)
    twins.attend()
    used = twins.gpu.device
    assert "out of GPU memory" in used.degraded and (used.calls, used.calls_on_cpu) == (0, 1)
    assert used.degraded_seconds >= 0 and used.name == ""


def memory_of_the_caller():
    gc.collect()
    assert not Tensor.alive
    memory = Tensor(np.zeros(40 * 16 * 64 * 2 * 2 + 100, "u1"))
    twins = Twins(device=0, device_memory=memory)
    assert len(Tensor.alive) == 1
    assert twins.gpu.device.budget_bytes == 40 * 16 * 64 * 2 * 2
    twins.append(50)
    twins.attend()
    pages = ctypes.string_at(memory.memory.value, 4096)
    assert any(pages), "no page is in it"
    twins.gpu.close()
    rest = twins.pair[0].fork()
    twins = None
    gc.collect()
    assert len(Tensor.alive) == 1, "a sequence uses it"
    rest.close()
    assert not Tensor.alive
    flat = np.zeros((64, 512), "u1")
    for bad, error, text in [
        (flat, BufferError, "device_memory: expected a CUDA tensor, found one of the CPU"),
        (Tensor(flat, device=(CUDA, 1)), kvist.OptionError, "memory of cuda:0, as device, found cuda:1"),
        (Tensor(flat.astype("f4")), kvist.DTypeError, "device_memory: expected uint8, found f32"),
        (Tensor(flat[:, :9], flat), BufferError, "expected a contiguous tensor, found strides"),
        (Tensor(flat, flags=1), BufferError, "may be written, found one that is read-only"),
        (Tensor(flat, shift=16), BufferError, "an address that is a multiple of 256, found 0x"),
    ]:  # fmt: skip
        with pytest.raises(error, match=text):
            cache("bf16", 64, device=0, device_memory=bad)


def a_gpu_that_is_lost():
    twins = Twins(device=0, device_bytes="1MiB")
    twins.append(20)
    twins.attend()
    assert twins.gpu.device.calls == 1
    os.environ["FAKE_FAIL_AT"] = "9=719"
    q = rows(1, 4, 64, BF16)
    for _ in range(6):
        near(twins.pair[0].attend(0, q), twins.pair[1].attend(0, q))
    used = twins.gpu.device
    assert used.degraded.startswith("GPU lost") and used.budget_bytes == 0 and used.calls_on_cpu > 0
    # What is there cannot come to the host.
    with pytest.raises(kvist.DeviceError, match=r"GPU lost|the driver says"):
        twins.pair[0].attend(0, Tensor.__new__(Lost))
    os.environ["FAKE_FAIL_AT"] = ""
    twins.attend()


class Lost(Tensor):
    """On a GPU that does not answer."""

    def __dlpack__(self, *, stream=None, max_version=None):
        array = np.zeros((1, 4, 64), BF16)
        self.source, self.flags = array, 0
        self.shape, self.strides = (c_int64 * 3)(1, 4, 64), (c_int64 * 3)(256, 64, 1)
        kind = DataType(*TYPES[BF16], 1)
        self.tensor = DLTensor(
            array.ctypes.data, Device(CUDA, 0), 3, kind, self.shape, self.strides, 0
        )
        return self.export()

    def __del__(self):
        pass


def a_thread_keeps_its_gpu():
    """A framework's current GPU is the thread's current context."""
    mine, found = c_void_p(0x70), c_void_p()
    call("cuCtxSetCurrent", mine)
    twins = Twins(device=0, device_bytes="1MiB")
    for act in (
        lambda: twins.append(20),
        twins.attend,
        lambda: twins.pair[0].hint(0, Tensor(rows(1, 4, 64, BF16))),
        twins.gpu.close,
        twins.pair[0].close,
        gc.collect,
    ):
        act()
        call("cuCtxGetCurrent", ctypes.byref(found))
        assert found.value == 0x70, act


def transformers_beside_a_gpu():
    import torch
    from kvist.hf import KvistCache
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99, hidden_size=128, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 99, (2, 20))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    answers = []
    for options in ({}, {"device": "cuda", "device_bytes": "2MiB"}):
        cache = KvistCache.for_model(model, host="16MiB", page_tokens=16, threads=1, **options)
        out = model.generate(
            ids, attention_mask=mask, past_key_values=cache, max_new_tokens=4, do_sample=False,
            output_logits=True, return_dict_in_generate=True, pad_token_id=0,
        )  # fmt: skip
        answers.append((out.sequences, torch.stack(out.logits)))
        if options:
            used = cache._store.cache.device
            assert used.name == "Fake 0" and used.calls > 0 and used.degraded is None
    assert torch.equal(answers[0][0], answers[1][0])
    torch.testing.assert_close(answers[0][1], answers[1][1], rtol=1e-3, atol=1e-3)


CASES = [
    tensors_of_all_strides_and_types,
    results_are_those_of_host_tensors,
    producers_are_waited_for,
    what_is_refused,
    a_cache_with_a_gpu,
    a_gpu_that_chooses,
    impossible_options,
    memory_of_the_caller,
    a_gpu_that_is_lost,
    a_thread_keeps_its_gpu,
    transformers_beside_a_gpu,
]

if __name__ == "__main__":
    chosen = next(case for case in CASES if case.__name__ == sys.argv[1])
    chosen()
    print("played", chosen.__name__)
