"""Whatever a caller passes to the prefix store ends in a value or in an error of the known kinds; the
store is as it was, and works on."""

import gc
import threading

import kvist
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_prefix import DIM, DTYPES, HEADS, LAYERS, TOKENS, disk_store, random_kv, same, space_of

KNOWN = (kvist.KvistError, TypeError, ValueError, BufferError, MemoryError, IndexError)
SHAPE = (LAYERS, 2, 2, TOKENS, HEADS, DIM)


class OnDevice:
    """A tensor that says it is on a GPU."""

    def __dlpack_device__(self):
        return (2, 1)

    def __dlpack__(self, **_options):
        raise AssertionError("nobody may ask for the bytes")


class Lying:
    """An object whose interface fails in the middle."""

    def __init__(self, error):
        self.error = error

    def __dlpack_device__(self):
        return (1, 0)

    def __dlpack__(self, **_options):
        raise self.error


def released():
    view = memoryview(bytearray(LAYERS * 2 * HEADS * TOKENS * DIM * 2))
    view.release()
    return view


def consumed():
    """A capsule whose tensor somebody took before."""
    capsule = torch.zeros(SHAPE, dtype=torch.bfloat16).__dlpack__()
    torch.utils.dlpack.from_dlpack(capsule)
    return capsule


def huge():
    one = np.zeros(1, ml_dtypes.bfloat16)
    return np.lib.stride_tricks.as_strided(one, (LAYERS, 2, 2**40, TOKENS, HEADS, DIM), (0,) * 6)


def bf16(*shape):
    return torch.zeros(shape, dtype=torch.bfloat16)


BAD = {
    "nothing": lambda: None,
    "a number": lambda: 7,
    "text": lambda: "kv",
    "an object": object,
    "0-d": lambda: bf16(),
    "1-d": lambda: bf16(4),
    "one dimension less": lambda: bf16(*SHAPE[1:]),
    "one more": lambda: bf16(1, *SHAPE),
    "fewer layers": lambda: bf16(LAYERS - 1, *SHAPE[1:]),
    "more tokens": lambda: bf16(LAYERS, 2, 2, TOKENS + 1, HEADS, DIM),
    "heads and tokens exchanged": lambda: bf16(LAYERS, 2, 2, HEADS, TOKENS, DIM),
    "another dimension": lambda: bf16(LAYERS, 2, 2, TOKENS, HEADS, DIM * 2),
    "f16": lambda: torch.zeros(SHAPE, dtype=torch.float16),
    "f32": lambda: torch.zeros(SHAPE),
    "f64": lambda: np.zeros(SHAPE),
    "complex": lambda: np.zeros(SHAPE, np.complex64),
    "bool": lambda: np.zeros(SHAPE, bool),
    "objects": lambda: np.full(SHAPE, None, object),
    "big-endian": lambda: np.zeros(SHAPE, ">f2"),
    "structured": lambda: np.zeros(SHAPE, [("a", np.uint8), ("b", np.uint8)]),
    "sparse": lambda: bf16(*SHAPE).to_sparse(),
    "on a GPU": OnDevice,
    "meta": lambda: torch.zeros(SHAPE, dtype=torch.bfloat16, device="meta"),
    "an exporter that fails": lambda: Lying(RuntimeError("no")),
    "an exporter out of memory": lambda: Lying(MemoryError()),
    "a released view": released,
    "a capsule used before": consumed,
    "bytes of another length": lambda: bytes(100),
    "a list of few layers": lambda: [bf16(*SHAPE[1:])],
    "a list of different layers": lambda: [bf16(*SHAPE[1:])] * 2 + [bf16(2, 2, TOKENS, HEADS, 2 * DIM)],
    "a list of anything": lambda: [None] * LAYERS,
}  # fmt: skip
BAD_OUTPUTS = {
    "read-only": lambda: np.broadcast_to(np.zeros(SHAPE, ml_dtypes.bfloat16), SHAPE),
    "bytes": lambda: [bytes(LAYERS * 2 * HEADS * TOKENS * DIM * 2)],
    "repeated rows": lambda: bf16(*SHAPE[:-1], 1).expand(SHAPE),
    "overlapping rows": lambda: torch.as_strided(bf16(9999), SHAPE, (700, 300, 100, 16, 4, 1)),
    "huge": huge,
}


@pytest.fixture
def filled(tmp_path):
    """A store with one prefix of two blocks, which must be there afterwards as it was."""
    kv = random_kv(2)
    with disk_store(tmp_path) as store:
        space = space_of(store)
        prefix = space.prefix(range(2 * TOKENS))
        assert space.put(prefix, 0, kv=kv).blocks == 2
        yield store, space, prefix
        if not store.closed:
            unharmed(space, prefix, kv)


def unharmed(space, prefix, kv):
    out = torch.zeros_like(kv)
    assert space.get(prefix, 0, kv=out) and same(out, kv)


@pytest.mark.parametrize("bad", BAD)
def test_bad_tensors_are_refused(filled, bad):
    _, space, prefix = filled
    fresh = space.prefix(range(100, 100 + 2 * TOKENS))
    for call in (
        lambda: space.put(fresh, 0, kv=BAD[bad]()),
        lambda: space.get(prefix, 0, kv=BAD[bad]()),
        lambda: space.put(fresh, 0, k=BAD[bad](), v=BAD[bad]()),
        lambda: space.put(fresh, 0, [BAD[bad]()]),
        lambda: space.get(prefix, 0, [BAD[bad]()]),
    ):
        with pytest.raises((*KNOWN, RuntimeError)) as caught:
            call()
        assert type(caught.value) in KNOWN or isinstance(caught.value, KNOWN) or "fails" in bad
        assert "panic" not in str(caught.value).lower()
    assert space.contains(fresh) == 0


@pytest.mark.parametrize("bad", BAD_OUTPUTS)
def test_bad_outputs_are_refused(filled, bad):
    _, space, prefix = filled
    out = BAD_OUTPUTS[bad]()
    with pytest.raises(KNOWN):
        space.get(prefix, 0, out) if isinstance(out, list) else space.get(prefix, 0, kv=out)


def test_blocks_that_are_named_twice_or_not_there(filled):
    _, space, prefix = filled
    kv = bf16(*SHAPE)
    for ids in (
        [0, 2],
        [-1, 0],
        [0, 2**63],
        [0.5, 1],
        ["0", 1],
        [None, 0],
        7,
        object(),
        [[0], [1]],
    ):
        with pytest.raises(KNOWN):
            space.get(prefix, 0, kv=kv, block_ids=ids)
        with pytest.raises(KNOWN):
            space.put(prefix, 0, kv=kv, block_ids=ids)
    with pytest.raises(KNOWN):
        space.get(prefix, 0, kv=kv, block_ids=[1, 1])
    for start in (-1, 3, 2**70, 0.5, "0", None):
        with pytest.raises(KNOWN):
            space.get(prefix, start, kv=kv)


def test_bad_token_ids_and_keys(filled):
    _, space, _ = filled
    for tokens in (
        [-1],
        [2**31],
        [2**70],
        [0.5],
        ["a"],
        [None],
        7,
        None,
        torch.zeros(2, 2),
        object(),
    ):
        with pytest.raises(KNOWN):
            space.prefix(tokens)
    for key in (b"", b"k" * 31, b"k" * 33, "k" * 32, 7, None, bytearray(3)):
        with pytest.raises(KNOWN):
            space.lease(key)
        with pytest.raises(KNOWN):
            space.prefix([1], parent=key if key is not None else b"")
        with pytest.raises(KNOWN):
            space.prefix_of_keys([key])


def test_bad_spaces(filled):
    store, _, _ = filled
    for options in (
        {"model": b"short"}, {"model": "m" * 32}, {"layers": 0}, {"layers": -1}, {"layers": 2**40},
        {"layers": 1.5}, {"kv_heads": 0}, {"head_dim": 2**33}, {"block_tokens": 0},
        {"block_tokens": 10**6}, {"dtype": "f64"}, {"dtype": None}, {"dtype": 7},
        {"salt": b"s" * 65}, {"salt": "text"}, {"extra": b"e" * 4097}, {"adapter": b"a"},
        {"codec": "zip"}, {"codec": None}, {"layer_range": (2, 1)}, {"layer_range": (0, 9)},
        {"layer_range": (-1, 2)}, {"head_range": (0,)}, {"attention": "some"},
        {"attention": ("window", -1)}, {"layers": 2**19, "head_dim": 2**9, "block_tokens": 4096},
    ):  # fmt: skip
        with pytest.raises(KNOWN) as caught:
            space_of(store, **options)
        assert str(caught.value), options


def test_bad_stores(tmp_path):
    for options in (
        {"host": 0}, {"host": -1}, {"host": "much"}, {"host": 2**70}, {"disk": "path"},
        {"disk": (tmp_path, "0")}, {"disk": (tmp_path, "1KiB")}, {"disk": ("a\0b", "32MiB")},
        {"disk": (7, 7)}, {"seal": b"k" * 32}, {"key_secret": b"short"}, {"backpressure": -1.0},
        {"backpressure": float("nan")},
        {"disk": (tmp_path, "32MiB"), "deadline": -1}, {"disk": (tmp_path, "32MiB"), "seal": b"k"},
        {"disk": (tmp_path, "32MiB"), "segment": "1GiB"},
    ):  # fmt: skip
        with pytest.raises(KNOWN) as caught:
            kvist.PrefixStore(**options).close()
        assert str(caught.value), options


def patterns(dtype):
    """Blocks with every bit pattern of a type, or many of a wide one: NaN, infinities, -0, subnormals."""
    size = torch.empty(0, dtype=dtype).element_size()
    values = LAYERS * 2 * TOKENS * HEADS * DIM
    if size == 1:
        raw = np.arange(256, dtype=np.uint8)
    elif size == 2:
        raw = np.arange(2**16, dtype=np.uint16)
    else:
        signs, exponents = np.meshgrid([0, 1], [0, 1, 127, 254, 255])
        ends = [0, 1, 2**22, 2**22 + 1, 2**23 - 1]
        words = [s << 31 | e << 23 | m for s, e in zip(signs.flat, exponents.flat) for m in ends]
        raw = np.array(words, np.uint32)
    blocks = -(-len(raw) // values)
    raw = np.resize(raw, blocks * values).reshape(LAYERS, 2, blocks, TOKENS, HEADS, DIM)
    return torch.from_numpy(raw.view(np.uint8).copy()).view(dtype)


@pytest.mark.parametrize("codec", ["raw", "lossless"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_pattern_comes_back(tmp_path, dtype, codec):
    kv = patterns(DTYPES[dtype])
    tokens = range(kv.shape[2] * TOKENS)
    with disk_store(tmp_path) as store:
        space = space_of(store, dtype=dtype, codec=codec)
        space.put(space.prefix(tokens), 0, kv=kv)
    with disk_store(tmp_path) as store:
        space, out = space_of(store, dtype=dtype, codec=codec), torch.zeros_like(kv)
        restored = space.get(space.prefix(tokens), 0, kv=out)
        assert restored.from_disk == kv.shape[2] and same(out, kv)


def test_memory_that_its_owner_lets_go_of(filled):
    _, space, _ = filled
    prefix = space.prefix(range(500, 500 + 2 * TOKENS))
    kv = random_kv(2)
    kept = kv.clone()
    space.put(prefix, 0, kv=kv)
    kv.view(torch.uint8).fill_(0xAB)
    del kv
    gc.collect()
    out = torch.zeros_like(kept)
    assert space.get(prefix, 0, kv=out) and same(out, kept)
    raw = bytearray(space.block_bytes)
    assert space.get(prefix, 0, [raw])
    raw.extend(b"no longer borrowed")


junk = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=40),
    st.lists(st.integers(-5, 5), max_size=4), st.tuples(st.integers(-2, 4), st.integers(-2, 4)),
    st.sampled_from(sorted(BAD)).map(lambda name: BAD[name]()),
)  # fmt: skip
CALLS = ("prefix", "prefix_of_keys", "contains", "put", "get", "prefetch", "evict", "lease")


@pytest.fixture(scope="module")
def module_store(tmp_path_factory):
    with disk_store(tmp_path_factory.mktemp("junk")) as store:
        yield store


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.sampled_from(CALLS),
            st.booleans(),
            st.lists(junk, max_size=3),
            st.dictionaries(st.sampled_from(["kv", "k", "v", "block_ids", "layout", "layers", "stop"]), junk),
        ),
        min_size=5,
        max_size=10,
    )
)  # fmt: skip
def test_any_call_ends_in_a_value_or_a_known_error(module_store, calls):
    space = space_of(module_store)
    kept = space.prefix(range(2 * TOKENS))
    kv = torch.arange(LAYERS * 2 * 2 * TOKENS * HEADS * DIM).to(torch.bfloat16).reshape(SHAPE)
    other = space.prefix(range(900, 900 + TOKENS))
    space.put(kept, 0, kv=kv)
    for name, right_first, args, options in calls:
        if right_first and name != "prefix_of_keys":
            args = [other, *args]
        try:
            getattr(space, name)(*args, **options)
        except KNOWN:
            pass
        except RuntimeError as e:
            assert str(e) == "no", e
    unharmed(space, kept, kv)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.permutations(range(5)), st.lists(st.integers(1, 3), min_size=5, max_size=5))
def test_any_strides_come_back(module_store, order, steps):
    """All axes but the last in any order in memory, each a slice of a longer one."""
    space = space_of(module_store, salt=b"strides")
    shape, order, steps = [LAYERS, 2, 2, TOKENS, HEADS, DIM], [*order, 5], [*steps, 1]
    wide = random_kv(1).new_zeros([shape[axis] * steps[axis] for axis in order])
    back = [order.index(axis) for axis in range(6)]
    view = wide.permute(back)[tuple(slice(None, None, step) for step in steps)]
    kv = random_kv(2)
    view.copy_(kv)
    kv = view.clone()
    prefix = space.prefix(range(2 * TOKENS))
    space.evict(prefix)
    space.put(prefix, 0, kv=view)
    out = torch.zeros_like(kv)
    assert space.get(prefix, 0, kv=out) and same(out, kv)
    untouched = wide.clone()
    view.zero_()
    assert space.get(prefix, 0, kv=view) and same(wide, untouched)


def test_threads_that_misuse_it_at_once(filled):
    store, space, prefix = filled
    wrong = []

    def abuse(n):
        for bad in BAD:
            try:
                space.get(prefix, n % 3, kv=BAD[bad]())
                wrong.append(bad)
            except KNOWN:
                pass
            except RuntimeError as e:
                if str(e) != "no":
                    wrong.append((bad, e))
            store.stats()

    threads = [threading.Thread(target=abuse, args=(n,)) for n in range(4)]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    assert not wrong
