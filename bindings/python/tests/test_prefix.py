"""`kvist.PrefixStore`: blocks go in and come back bit for bit, from memory, disk and after a restart."""

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import threading

import kvist
import ml_dtypes
import numpy as np
import pytest
import torch

LAYERS, HEADS, DIM, TOKENS = 3, 2, 8, 16
MODEL = bytes(range(32))
DTYPES = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8-e4m3": torch.float8_e4m3fn,
    "fp8-e5m2": torch.float8_e5m2,
    "i8": torch.int8,
    "u8": torch.uint8,
}


def space_of(store, **changes):
    options = {
        "model": MODEL, "layers": LAYERS, "kv_heads": HEADS, "head_dim": DIM, "dtype": "bf16",
        "block_tokens": TOKENS,
    }  # fmt: skip
    return store.space(**{**options, **changes})


def disk_store(path, **options):
    return kvist.PrefixStore(host="8MiB", disk=(path, "32MiB"), **options)


def random_kv(blocks, dtype=torch.bfloat16, order="nhd"):
    """An engine's cache `[layers, 2, blocks, ...]` of random bits."""
    inner = (TOKENS, HEADS) if order == "nhd" else (HEADS, TOKENS)
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 256, (LAYERS, 2, blocks, *inner, DIM * size), dtype=torch.uint8)
    return raw.view(dtype)


def same(a, b):
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def canonical(kv, block, order="nhd"):
    """A block's bytes in canonical order: `[layer][head]` pages of K tile, V tile."""
    one = kv[:, :, block]
    one = one.permute(0, 3, 1, 2, 4) if order == "nhd" else one.permute(0, 2, 1, 3, 4)
    return one.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.fixture
def store():
    with kvist.PrefixStore(host="16MiB") as store:
        yield store


@pytest.mark.parametrize("order", ["nhd", "hnd"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(store, dtype, order):
    space = space_of(store, dtype=dtype)
    kv = random_kv(6, DTYPES[dtype], order)
    prefix = space.prefix(list(range(4 * TOKENS)))
    assert len(prefix) == 4 and len(prefix.keys) == 4
    stored = space.put(prefix, 0, kv=kv, block_ids=[5, 0, 3, 1], layout=order)
    assert stored.each == ("stored",) * 4 and stored.blocks == 4 and not stored.refused
    assert space.contains(prefix) == 4
    out = torch.zeros_like(kv)
    restored = space.get(prefix, 0, kv=out, block_ids=[0, 1, 2, 4], layout=order)
    assert restored and restored.blocks == 4 and restored.miss is None and restored.from_disk == 0
    assert same(out[:, :, [0, 1, 2, 4]], kv[:, :, [5, 0, 3, 1]])
    assert not out[:, :, [3, 5]].view(torch.uint8).any()


def test_canonical_blocks_are_what_engines_put(store):
    space, kv = space_of(store), random_kv(3)
    prefix = space.prefix(np.arange(3 * TOKENS, dtype=np.int32))
    space.put(prefix, 0, kv=kv)
    assert space.block_bytes == LAYERS * 2 * HEADS * TOKENS * DIM * 2
    outs = [bytearray(space.block_bytes), np.zeros(space.block_bytes, np.uint8)]
    outs.append(torch.zeros(LAYERS, HEADS, 2, TOKENS, DIM, dtype=torch.bfloat16))
    assert space.get(prefix, 0, outs).blocks == 3
    assert bytes(outs[0]) == canonical(kv, 0)
    assert outs[1].tobytes() == canonical(kv, 1)
    assert outs[2].view(torch.uint8).numpy().tobytes() == canonical(kv, 2)
    other = space_of(store, salt=b"other")
    prefix = other.prefix(range(3 * TOKENS))
    other.put(prefix, 0, [bytes(outs[0]), memoryview(outs[1]), outs[2]])
    again = torch.zeros_like(kv)
    assert other.get(prefix, 0, kv=again)
    assert same(again, kv)


@pytest.mark.parametrize("dtype", ["fp8-e4m3", "fp8-e5m2"])
def test_8_bit_floats_also_come_as_bytes_and_numpy(store, dtype):
    space = space_of(store, dtype=DTYPES[dtype])
    kv, prefix = random_kv(1, DTYPES[dtype]), space.prefix(range(TOKENS))
    space.put(prefix, 0, kv=kv.view(torch.uint8))
    name = {"fp8-e4m3": ml_dtypes.float8_e4m3fn, "fp8-e5m2": ml_dtypes.float8_e5m2}[dtype]
    out = np.zeros(kv.shape, name)
    assert space.get(prefix, 0, kv=out)
    assert np.array_equal(out.view(np.uint8), kv.view(torch.uint8).numpy())


def test_any_strides_are_read_and_written_in_place(store):
    space, prefix = space_of(store), None
    kv = random_kv(4)
    prefix = space.prefix(range(4 * TOKENS))
    space.put(prefix, 0, kv=kv)
    # One tensor per layer, K and V apart, of different allocations.
    k = [torch.zeros(4, TOKENS, HEADS, DIM, dtype=torch.bfloat16) for _ in range(LAYERS)]
    v = [torch.zeros(4, TOKENS, HEADS, DIM, dtype=torch.bfloat16) for _ in range(LAYERS)]
    assert space.get(prefix, 0, k=k, v=v)
    assert all(same(k[i], kv[i, 0]) and same(v[i], kv[i, 1]) for i in range(LAYERS))
    # vLLM's list of [2, blocks, ...]; blocks first; a slice of a wider tensor; heads first inside.
    lists = [torch.zeros(2, 4, TOKENS, HEADS, DIM, dtype=torch.bfloat16) for _ in range(LAYERS)]
    assert space.get(prefix, 0, kv=lists)
    assert same(torch.stack(lists), kv)
    wide = torch.zeros(9, LAYERS, 2, TOKENS + 3, HEADS, 3 * DIM, dtype=torch.bfloat16)
    view = wide.permute(1, 2, 0, 3, 4, 5)[:, :, 1:8:2, 2 : TOKENS + 2, :, DIM : 2 * DIM]
    assert space.get(prefix, 0, kv=view)
    assert same(view, kv) and wide.view(torch.uint8).any()
    assert not wide[:, :, :, :2].any() and not wide[..., :DIM].any()
    heads = torch.zeros(LAYERS, 2, 4, HEADS, TOKENS, DIM, dtype=torch.bfloat16)
    assert space.get(prefix, 0, kv=heads.transpose(3, 4))
    assert same(heads.transpose(3, 4), kv)
    both = torch.zeros(LAYERS, 4, TOKENS, HEADS, 2, DIM, dtype=torch.bfloat16)
    k, v = both.unbind(4)
    assert space.get(prefix, 0, k=k, v=v)
    assert same(k, kv[:, 0]) and same(v, kv[:, 1])
    # Reading also takes rows that run backwards or are repeated.
    numpy = kv.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    turned = space_of(store, salt=b"turned")
    other = turned.prefix(range(4 * TOKENS))
    turned.put(other, 0, kv=numpy[:, :, ::-1])
    out = torch.zeros_like(kv)
    assert turned.get(other, 0, kv=out)
    assert same(out.flip(2), kv)


def test_some_layers_alone(store):
    space, kv = space_of(store), random_kv(2)
    prefix, out = space.prefix(range(2 * TOKENS)), torch.zeros_like(random_kv(2))
    space.put(prefix, 0, kv=kv)
    assert space.get(prefix, 0, kv=out, layers=(1, 3)).blocks == 2
    assert same(out[1:], kv[1:]) and not out[0].any()


def test_latent_attention_has_one_row(store):
    space = space_of(store, kv_heads=1, head_dim=40, attention="mla")
    kv = torch.randn(LAYERS, 2, TOKENS, 40).bfloat16()
    prefix = space.prefix(range(2 * TOKENS))
    assert space.put(prefix, 0, kv=list(kv)).blocks == 2
    out = torch.zeros_like(kv)
    assert space.get(prefix, 0, kv=out)
    assert same(out, kv)


def test_values_of_another_dimension(store):
    space = space_of(store, value_dim=4)
    k, v = torch.randn(LAYERS, 2, TOKENS, HEADS, DIM), torch.randn(LAYERS, 2, TOKENS, HEADS, 4)
    k, v = k.bfloat16(), v.bfloat16()
    prefix = space.prefix(range(2 * TOKENS))
    space.put(prefix, 0, k=k, v=v)
    outs = torch.zeros_like(k), torch.zeros_like(v)
    assert space.get(prefix, 0, k=outs[0], v=outs[1])
    assert same(outs[0], k) and same(outs[1], v)


def test_keys_depend_on_everything_they_should(store):
    tokens = list(range(2 * TOKENS + 5))
    base = space_of(store).prefix(tokens).keys
    assert len(base) == 2 and len(set(base)) == 2 and all(len(key) == 32 for key in base)
    assert space_of(store).prefix(torch.tensor(tokens)).keys == base
    assert space_of(store).prefix(np.array(tokens, np.uint32)).keys == base
    assert space_of(store, codec="raw").prefix(tokens).keys == base
    others = [
        {"salt": b"x"}, {"adapter": b"x" * 32}, {"extra": b"x" * 32}, {"salt": b"x" * 32},
        {"model": b"x" * 32}, {"dtype": "f16"}, {"layer_range": (1, 3)}, {"head_range": (1, 2)},
        {"attention": ("window", 128)}, {"value_dim": 4},
    ]  # fmt: skip
    keys = [tuple(space_of(store, **other).prefix(tokens).keys) for other in others]
    assert len({tuple(base), *keys}) == len(others) + 1
    tail = space_of(store).prefix(tokens[TOKENS:], parent=base[0])
    assert tail.keys == base[1:]
    assert space_of(store).prefix(tokens[:15]).keys == [] and not space_of(store).prefix([])


def test_the_first_gap_ends_a_restore(store):
    space, kv = space_of(store), random_kv(5)
    prefix = space.prefix(range(5 * TOKENS))
    space.put(prefix, 0, kv=kv, block_ids=[0, 1])
    space.put(prefix, 3, kv=kv, block_ids=[3, 4])
    assert space.contains(prefix) == 2
    restored = space.get(prefix, 0, kv=torch.zeros_like(kv))
    assert (restored.blocks, restored.miss.reason) == (2, "absent")
    assert not restored and not restored.miss and restored.miss.text == "never stored"
    assert space.get(prefix, 3, kv=torch.zeros_like(kv), block_ids=[3, 4]).blocks == 2
    assert store.stats().misses == {"absent": 1}
    assert (
        space.put(prefix, 0, kv=random_kv(5)).each
        == ("present",) * 2 + ("stored",) + ("present",) * 2
    )


def test_keys_travel_and_blocks_are_evicted(store):
    space, kv = space_of(store), random_kv(3)
    prefix = space.prefix(range(3 * TOKENS))
    space.put(prefix, 0, kv=kv)
    same_keys = space.prefix_of_keys(prefix.keys)
    assert space.contains(same_keys) == 3
    assert space.evict(prefix.keys[2:]) == 1 and space.contains(prefix) == 2
    assert space.evict(prefix) == 2 and space.contains(prefix) == 0


def test_a_restart_keeps_what_was_flushed(tmp_path):
    kv = random_kv(8)
    with disk_store(tmp_path / "store") as store:
        space = space_of(store)
        prefix = space.prefix(range(8 * TOKENS))
        space.put(prefix, 0, kv=kv)
        assert store.flush(60)
        assert store.stats().disk.records == 8
    with disk_store(tmp_path / "store") as store:
        space = space_of(store)
        prefix, out = space.prefix(range(8 * TOKENS)), torch.zeros_like(kv)
        assert space.contains(prefix) == 8
        restored = space.get(prefix, 0, kv=out)
        assert (restored.blocks, restored.from_disk) == (8, 8) and same(out, kv)
        assert space.get(prefix, 0, kv=out).from_disk == 0
    assert kvist.verify(tmp_path / "store", strict=True)["clean"]
    assert kvist.inspect(tmp_path / "store")["records"] == 8


def test_a_script_that_never_closes_keeps_its_blocks(tmp_path):
    code = f"""
import kvist, numpy as np
store = kvist.PrefixStore(host="8MiB", disk=({str(tmp_path)!r}, "32MiB"))
space = store.space(model=bytes(32), layers=1, kv_heads=1, head_dim=8, dtype="u8", block_tokens=16)
space.put(space.prefix(range(16)), 0, [np.ones(256, np.uint8)])
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert kvist.inspect(tmp_path)["records"] == 1


def test_sealed_records_open_with_their_key_alone(tmp_path):
    kv, key = random_kv(2), b"k" * 32
    with disk_store(tmp_path, seal=key) as store:
        space = space_of(store)
        space.put(space.prefix(range(2 * TOKENS)), 0, kv=kv)
        assert store.flush(60) and store.stats().authenticated
    for seal, reason in [(b"w" * 32, "decrypt"), (None, "decrypt"), (key, None)]:
        with disk_store(tmp_path, seal=seal) as store:
            space, out = space_of(store), torch.zeros_like(kv)
            restored = space.get(space.prefix(range(2 * TOKENS)), 0, kv=out)
            if reason is None:
                assert restored and restored.miss is None and same(out, kv)
            else:
                assert not restored and restored.miss.reason == reason
    assert kvist.verify(tmp_path)["sealed"] == 2


def test_an_erased_tenant_is_gone_in_every_tier(tmp_path):
    kv = random_kv(4)
    with disk_store(tmp_path) as store:
        a, b = space_of(store, salt=b"a"), space_of(store, salt=b"b")
        for space in (a, b):
            space.put(space.prefix(range(4 * TOKENS)), 0, kv=kv)
        assert store.flush(60)
        assert store.erase_tenant(b"a")["records"] == 4
        assert a.contains(a.prefix(range(4 * TOKENS))) == 0
        assert b.contains(b.prefix(range(4 * TOKENS))) == 4
        key = a.prefix(range(TOKENS)).keys[0]
    with disk_store(tmp_path) as store:
        assert space_of(store, salt=b"a").contains(a_prefix(store)) == 0
    assert kvist.why(tmp_path, key)["answer"]["is"] == "miss"


def a_prefix(store):
    return space_of(store, salt=b"a").prefix(range(4 * TOKENS))


def test_several_tenants_need_salts():
    with kvist.PrefixStore(host="4MiB", multi_tenant=True) as store:
        with pytest.raises(kvist.OptionError, match="salt must be one for every tenant"):
            space_of(store)
        space_of(store, salt=b"tenant")


def test_stores_with_one_secret_agree_on_keys(tmp_path):
    secret = b"s" * 32
    with (
        kvist.PrefixStore(host="4MiB", key_secret=secret) as a,
        disk_store(tmp_path, key_secret=secret) as b,
        kvist.PrefixStore(host="4MiB") as c,
    ):
        keys = [space_of(store).prefix(range(64)).keys for store in (a, b, c)]
        assert keys[0] == keys[1] != keys[2]


def test_prefetch_brings_blocks_into_memory(tmp_path):
    kv = random_kv(8)
    with disk_store(tmp_path) as store:
        space = space_of(store)
        space.put(space.prefix(range(8 * TOKENS)), 0, kv=kv)
    with disk_store(tmp_path) as store:
        space = space_of(store)
        prefix = space.prefix(range(10 * TOKENS))
        ticket = space.prefetch(prefix, 0, 4)
        assert ticket.wait(60) == 4 and ticket.done and ticket.wait() == 4

        async def rest():
            ticket = space.prefetch(prefix, 4)
            both = await asyncio.gather(ticket, asyncio.sleep(0, "other"))
            return [*both, await ticket]

        assert asyncio.run(rest()) == [4, "other", 4]
        assert space.get(prefix, 0, kv=torch.zeros_like(kv), block_ids=range(8)).from_disk == 0
        cancelled = space.prefetch(prefix)
        cancelled.cancel()
        assert cancelled.wait(60) in (0, 8, *range(8)) and repr(cancelled) == "Ticket(done=True)"


def test_a_lease_is_the_memory_itself(store):
    space, kv = space_of(store), random_kv(1)
    prefix = space.prefix(range(TOKENS))
    assert space.lease(prefix.keys[0]) is None
    space.put(prefix, 0, kv=kv)
    lease = space.lease(prefix.keys[0])
    array = lease.array
    assert len(lease) == space.block_bytes == array.nbytes and not array.flags.writeable
    assert array.tobytes() == canonical(kv, 0) == bytes(memoryview(array))
    assert np.shares_memory(array, space.lease(prefix.keys[0]).array)
    del lease
    store.close()
    assert array.tobytes() == canonical(kv, 0)


def test_a_closed_store_refuses_everything(tmp_path):
    store = disk_store(tmp_path)
    space = space_of(store)
    prefix, kv = space.prefix(range(TOKENS)), random_kv(1)
    with pytest.raises(kvist.InUseError, match=f"in use by another process .pid {os.getpid()}"):
        disk_store(tmp_path)
    store.close()
    store.close()
    assert store.closed and repr(store) == "PrefixStore(closed)"
    for call in [
        lambda: space_of(store), store.stats, store.flush, lambda: store.erase_tenant(b""),
        lambda: space.prefix([1]), lambda: space.prefix_of_keys([]), lambda: space.contains(prefix),
        lambda: space.put(prefix, 0, kv=kv), lambda: space.get(prefix, 0, kv=kv),
        lambda: space.prefetch(prefix), lambda: space.evict(prefix), lambda: space.lease(b"0" * 32),
    ]:  # fmt: skip
        with pytest.raises(kvist.ClosedError, match="the store is closed"):
            call()
    disk_store(tmp_path).close()


def test_a_forked_child_is_refused(tmp_path):
    kv = random_kv(4)
    with disk_store(tmp_path) as store:
        space = space_of(store)
        prefix = space.prefix(range(4 * TOKENS))
        space.put(prefix, 0, kv=kv)
        lease, ticket = space.lease(prefix.keys[0]), space.prefetch(prefix)
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            refused = 0
            for call in [
                store.stats, store.flush, store.close, lambda: space.contains(prefix),
                lambda: space.get(prefix, 0, kv=kv), lambda: space.put(prefix, 0, kv=kv),
                lambda: space.evict(prefix), ticket.wait, lambda: len(lease),
                lambda: space_of(store), lambda: space.prefix([1]),
            ]:  # fmt: skip
                try:
                    call()
                except kvist.ForkedError:
                    refused += 1
            # Dropped here as at any exit: they may not touch what the parent's threads hold.
            del store, space, lease, ticket
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 11
        assert space.contains(prefix) == 4 and store.flush(60)
    assert kvist.verify(tmp_path)["records"] == 4


def test_threads_share_a_store(tmp_path):
    kv, errors = random_kv(8), []
    with disk_store(tmp_path) as store:

        def work(n):
            space = space_of(store, salt=bytes([n % 3]))
            prefix = space.prefix(range(n, n + 8 * TOKENS))
            for _ in range(20):
                space.put(prefix, 0, kv=kv)
                out = torch.zeros_like(kv)
                if not space.get(prefix, 0, kv=out) or not same(out, kv):
                    errors.append(n)
                space.prefetch(prefix).wait(10)
                space.evict(prefix.keys[:1])

        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert not errors


def test_handles_cannot_be_pickled(store):
    space = space_of(store)
    prefix = space.prefix(range(TOKENS))
    space.put(prefix, 0, kv=random_kv(1))
    for handle in (store, space, prefix, space.prefetch(prefix), space.lease(prefix.keys[0])):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(handle)


def test_looking_at_a_directory(tmp_path):
    with disk_store(tmp_path / "store") as store:
        space = space_of(store, codec="raw")
        prefix = space.prefix(range(2 * TOKENS))
        space.put(prefix, 0, kv=random_kv(2))
        assert store.flush(60)
        assert kvist.verify(tmp_path / "store")["in_use"]
    path, key = tmp_path / "store", prefix.keys[1]
    report = kvist.verify(path, raise_on_damage=True)
    assert report["clean"] and report["records"] == 2 and report["damage"] == []
    [group] = kvist.inspect(path)["groups"]
    assert (group["records"], group["tokens"], group["codec"]) == (2, 2 * TOKENS, "raw")
    assert group["model"] == MODEL.hex()
    found = kvist.why(path, key)
    assert found["answer"] == {"is": "hit"} and found["key"] == key.hex()
    [segment] = path.glob("seg-*.kv")
    data = bytearray(segment.read_bytes())
    data[found["copies"][0]["offset"] + 1030] ^= 1
    segment.write_bytes(data)
    with pytest.raises(kvist.CorruptError, match="1 flaws; the first in seg-"):
        kvist.verify(path, raise_on_damage=True)
    [damage] = kvist.verify(path)["damage"]
    assert damage["key"] == key.hex() and "section of layer" in damage["check"]
    assert kvist.why(path, key)["answer"] == {"is": "miss", "reason": "checksum"}
    with pytest.raises(kvist.StoreError, match="No such file"):
        kvist.verify(tmp_path / "nowhere")
    with pytest.raises(kvist.OptionError, match="key: expected 32 bytes, found 3 bytes"):
        kvist.why(path, b"abc")


def test_directories_that_cannot_be_used(tmp_path):
    (tmp_path / "alien").mkdir(mode=0o700)
    (tmp_path / "alien" / "thesis.txt").write_text("do not touch")
    with pytest.raises(kvist.StoreError, match=r"not a kvist store.*thesis\.txt"):
        disk_store(tmp_path / "alien")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(kvist.StorePermissionError, match="others may write"):
        disk_store(shared)
    with disk_store(shared, required=False) as store:
        assert store.stats().disk is None
    with disk_store(tmp_path / "newer") as store:
        pass
    (tmp_path / "newer" / "kvist.meta").write_text("kvist store 7.0\n")
    with pytest.raises(kvist.VersionError, match="format 7"):
        disk_store(tmp_path / "newer")
    (tmp_path / "newer" / "kvist.meta").write_text("garbage\n")
    with pytest.raises(kvist.CorruptError, match="damaged; nothing was changed"):
        disk_store(tmp_path / "newer")
