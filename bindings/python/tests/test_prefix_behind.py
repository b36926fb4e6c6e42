"""The prefix store behind its callers' backs: tickets, changes, keys of other systems, tensors in any order."""

import kvist
import numpy as np
import pytest
import torch
from test_prefix import DIM, HEADS, LAYERS, TOKENS, disk_store, random_kv, same, space_of


@pytest.fixture
def store():
    with kvist.PrefixStore(host="16MiB") as store:
        yield store


def test_blocks_go_and_come_in_the_background(store):
    space, kv = space_of(store), random_kv(4)
    prefix = space.prefix(range(3 * TOKENS))
    stored = space.put_behind(prefix, kv=kv, block_ids=[3, 0, 1]).wait(60)
    assert stored.each == ("stored",) * 3
    assert space.put_behind(prefix, kv=kv, block_ids=[3, 0, 1]).wait(60).each == ("present",) * 3
    out = torch.zeros_like(kv)
    ticket = space.get_behind(prefix, 1, kv=out, block_ids=[0, 3])
    restored = ticket.wait(60)
    assert ticket.done and restored.blocks == 2 and restored.miss is None
    assert same(out[:, :, [0, 3]], kv[:, :, [0, 1]])
    other = space.prefix(range(TOKENS, 2 * TOKENS))
    missed = space.get_behind(other, kv=out, block_ids=[0]).wait(60)
    assert missed.blocks == 0 and missed.miss.reason == "absent"


def test_memory_is_held_until_the_work_is_done(store):
    space = space_of(store)
    prefix = space.prefix(range(TOKENS))
    ticket = space.put_behind(prefix, kv=random_kv(1))  # Nobody else holds the tensor.
    assert ticket.wait(60).blocks == 1
    called = []
    ticket.add_done_callback(lambda: called.append(1))
    assert called == [1]


def test_what_cannot_be_is_said_at_once(store):
    space, kv = space_of(store), random_kv(2)
    prefix = space.prefix(range(2 * TOKENS))
    with pytest.raises(kvist.ShapeError, match="expected 2, found 1"):
        space.put_behind(prefix, kv=kv, block_ids=[0])
    with pytest.raises(kvist.OptionError):
        space.get_behind(prefix, 1, kv=kv, block_ids=[0, 1])
    with pytest.raises(BufferError):
        space.get_behind(prefix, 0, [bytes(space.block_bytes)])
    with pytest.raises(kvist.OptionError, match="at most 2, found 3"):
        space.put(prefix, 0, kv=random_kv(3))
    store.close()
    for call in (space.put_behind, space.get_behind):
        with pytest.raises(kvist.ClosedError):
            call(prefix, kv=kv)


def test_a_store_says_what_came_and_left(tmp_path):
    with disk_store(tmp_path) as store:
        space, kv = space_of(store), random_kv(2)
        prefix = space.prefix(range(2 * TOKENS))
        assert store.changes() == (True, [])
        space.put(prefix, 0, kv=kv)
        assert store.flush()
        reset, changes = store.changes()
        a, b = prefix.keys
        assert not reset and sorted(changes) == sorted(
            [(a, "host", True), (b, "host", True), (a, "disk", True), (b, "disk", True)]
        )
        space.evict([a])
        assert sorted(store.changes()[1]) == [(a, "disk", False), (a, "host", False)]
        assert store.changes() == (False, [])
    with disk_store(tmp_path) as again:
        # Evicted blocks leave the disk with their segment, and may come back with a restart.
        reset, changes = again.changes()
        assert (
            reset
            and (b, "disk", True) in changes
            and all(change[1:] == ("disk", True) for change in changes)
        )
    with pytest.raises(kvist.ClosedError):
        again.changes()


def test_stores_with_one_secret_compute_the_same_keys(store):
    assert len(store.key_secret) == 32
    with (
        kvist.PrefixStore("16MiB", key_secret=store.key_secret) as twin,
        kvist.PrefixStore("16MiB") as other,
    ):
        keys = [space_of(s).prefix(range(TOKENS)).keys for s in (store, twin, other)]
    assert keys[0] == keys[1] != keys[2]


def test_hashes_of_other_systems_are_keys_of_their_own(store):
    space = space_of(store)
    hashes = [b"a" * 32, b"a" * 33, b"b" * 32, b""]
    keys = space.prefix_of_hashes(hashes).keys
    assert len({*keys, *space.prefix(range(TOKENS)).keys}) == 5
    assert keys == space.prefix_of_hashes(hashes).keys
    assert keys[0] != space_of(store, salt=b"t").prefix_of_hashes(hashes).keys[0]
    assert keys[0] != space_of(store, extra=b"x").prefix_of_hashes(hashes).keys[0]
    block = np.arange(space.block_bytes, dtype=np.uint8)
    assert space.put(space.prefix_of_hashes(hashes[:1]), 0, [block]).blocks == 1
    out = np.zeros_like(block)
    assert space.get(space.prefix_of_hashes(hashes[:1]), 0, [out]) and np.array_equal(out, block)
    assert space.contains(space.prefix_of_hashes(hashes[1:2])) == 0


def cut(x, tokens, channels):
    """`[blocks, heads, tokens, dim]` with tokens and channels in pieces, in memory of another order."""
    pieces = x.unflatten(2, (-1, tokens)).unflatten(4, (-1, channels))
    memory = pieces.permute(0, 1, 4, 2, 5, 3).contiguous()
    return memory.permute(0, 1, 3, 5, 2, 4)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "u8"])
@pytest.mark.parametrize("pieces", [(16, 8), (8, 2), (2, 4), (16, 1)])
def test_tiles_may_be_cut_in_pieces(store, dtype, pieces):
    kinds = {"f32": torch.float32, "bf16": torch.bfloat16, "u8": torch.uint8}
    space = space_of(store, dtype=dtype)
    shape = (LAYERS, 2, 3, HEADS, TOKENS, DIM)
    kv = torch.randint(0, 255, shape).to(kinds[dtype])
    k, v = (list(side) for side in kv.unbind(1))
    prefix = space.prefix(range(3 * TOKENS))
    transposed = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in v]
    tiles = [cut(x, *pieces) for x in k]
    assert space.put(prefix, 0, k=tiles, v=transposed, layout="hnd").blocks == 3
    out = [torch.zeros_like(x) for x in (*k, *v)]
    assert space.get(prefix, 0, k=out[:LAYERS], v=out[LAYERS:], layout="hnd")
    assert all(torch.equal(a, b) for a, b in zip(out, [*k, *v], strict=True))
    # And into such memory, whatever is in it.
    back = [torch.empty_like(x).fill_(7) for x in tiles]
    assert all(a.stride() == b.stride() for a, b in zip(back, tiles, strict=True))
    other = [torch.empty_like(x).fill_(7) for x in transposed]
    assert space.get(prefix, 0, k=back, v=other, layout="hnd")
    for a, b in zip([*back, *other], [*tiles, *transposed], strict=True):
        assert torch.equal(a, b)


def test_tokens_before_heads_may_be_cut_too(store):
    space = space_of(store)
    x = torch.randn(2, TOKENS, HEADS, DIM).to(torch.bfloat16)
    tiles = x.unflatten(1, (4, TOKENS // 4)).unflatten(4, (2, DIM // 2))
    assert tiles.shape == (2, 4, TOKENS // 4, HEADS, 2, DIM // 2)
    prefix = space.prefix(range(2 * TOKENS))
    assert space.put(prefix, 0, k=[tiles] * LAYERS, v=[x] * LAYERS, layout="nhd").blocks == 2
    k = [torch.zeros_like(x) for _ in range(LAYERS)]
    v = [torch.zeros_like(x) for _ in range(LAYERS)]
    assert space.get(prefix, 0, k=k, v=v, layout="nhd")
    assert all(torch.equal(out, x) for out in [*k, *v])


def test_pieces_that_do_not_make_the_block_are_refused(store):
    space = space_of(store)
    prefix = space.prefix(range(TOKENS))
    wrong = torch.zeros(1, HEADS, 3, 4, 2, DIM // 2, dtype=torch.bfloat16)
    with pytest.raises(kvist.ShapeError):
        space.put(prefix, 0, k=[wrong] * LAYERS, v=[wrong] * LAYERS, layout="hnd")
    # Channels apart, and rows over each other: memory that is written twice.
    tangled = torch.zeros(4096, dtype=torch.bfloat16).as_strided(
        (1, HEADS, TOKENS, DIM), (TOKENS * DIM, TOKENS, 1, 1)
    )
    k = torch.zeros(1, HEADS, TOKENS, DIM, dtype=torch.bfloat16)
    space.put(prefix, 0, k=[k] * LAYERS, v=[k] * LAYERS, layout="hnd")
    with pytest.raises(kvist.ShapeError, match="overlap"):
        space.get(prefix, 0, k=[tangled] * LAYERS, v=[k] * LAYERS, layout="hnd")


def between(dims):
    """Tensors of two blocks whose rows lie in the gaps of the other's: `[layers]` of K and of V, in memory
    in the order of the named dimensions."""
    shape = {"layer": LAYERS, "side": 2, "block": 2, "token": TOKENS, "head": HEADS}
    whole = torch.zeros(*(shape[dim] for dim in dims), DIM, dtype=torch.bfloat16)
    whole = whole.permute(*(dims.index(dim) for dim in shape), len(dims))
    return [list(side) for side in whole.unbind(1)]


@pytest.mark.parametrize("dims", [
    ["layer", "block", "head", "token", "side"],
    ["token", "block", "side", "layer", "head"],
    ["block", "token", "layer", "side", "head"],
    ["side", "head", "token", "block", "layer"],
])  # fmt: skip
def test_rows_may_lie_between_those_of_other_blocks(store, dims):
    space = space_of(store)
    prefix = space.prefix(range(2 * TOKENS))
    shape = (2, TOKENS, HEADS, DIM)
    k, v = ([torch.randn(shape).to(torch.bfloat16) for _ in range(LAYERS)] for _ in range(2))
    space.put(prefix, 0, k=k, v=v, layout="nhd")
    out_k, out_v = between(dims)
    assert space.get(prefix, 0, k=out_k, v=out_v, layout="nhd")
    for wanted, found in zip([*k, *v], [*out_k, *out_v], strict=True):
        assert torch.equal(wanted, found)
    # The same memory, once more: each block would be written twice.
    with pytest.raises(kvist.ShapeError, match="overlap"):
        space.get(prefix, 0, k=out_k, v=out_v, block_ids=[1, 1], layout="nhd")
    with pytest.raises(kvist.ShapeError, match="overlap"):
        space.get(prefix, 0, k=out_k, v=out_k, layout="nhd")
