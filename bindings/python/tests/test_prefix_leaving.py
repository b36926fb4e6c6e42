"""Which blocks of a `PrefixStore` leave memory, by name and by hints, and which are written."""

import time

import kvist
import numpy as np
import pytest

TOKENS = 16
BLOCK = 2 * 2 * 2 * 8 * TOKENS * 2  # K and V, 2 layers, 2 heads, 8 channels, 16 tokens of bf16


def space_of(store, **changes):
    return store.space(
        model=bytes(32),
        layers=2,
        kv_heads=2,
        head_dim=8,
        dtype="bf16",
        block_tokens=TOKENS,
        **changes,
    )


def store_of(blocks, **options):
    return kvist.PrefixStore(host=blocks * (BLOCK + 400), **options)


def prefix_of(space, n):
    return space.prefix([n] * TOKENS)


def put(space, n):
    bytes_ = np.full(space.block_bytes, n % 251, np.uint8)
    return space.put(prefix_of(space, n), blocks=[bytes_])


def there(space, numbers):
    return [n for n in numbers if space.contains(prefix_of(space, n))]


@pytest.mark.parametrize("replace", ["lru", "slru", "arc", "sieve", "s3fifo", "adaptive"])
def test_hints_and_pins(replace):
    with store_of(8, replace=replace) as store:
        space = space_of(store)
        for n in range(8):
            put(space, n)
        space.session_closed(prefix_of(space, 5), source=2)
        space.wanted(prefix_of(space, 0), within=3600.0)
        with space.pin(prefix_of(space, 1)) as pinned:
            assert len(pinned) == 1
            put(space, 100)
            put(space, 101)
            assert 5 not in there(space, range(8))
            for n in range(102, 140):
                put(space, n)
            assert there(space, [0, 1]) == [0, 1]
        assert len(pinned) == 0
        closed, wanted = store.hint_precision(2)
        assert closed > 0.9 and wanted > 0.9


def test_what_is_used_once_leaves_before_what_is_used_again():
    kept = {}
    for replace in ["lru", "adaptive"]:
        with store_of(20, replace=replace) as store:
            space = space_of(store)
            for n in range(10):
                put(space, n)
            out = np.empty(space.block_bytes, np.uint8)
            for n in range(10):
                assert space.get(prefix_of(space, n), blocks=[out]).blocks == 1
            for n in range(100, 160):
                put(space, n)
            kept[replace] = len(there(space, range(10)))
    assert kept["lru"] == 0 and kept["adaptive"] >= 8, kept


def test_shares_and_priorities():
    with store_of(20) as store:
        store.set_share(b"small", ceiling=0.25)
        space = space_of(store, salt=b"small")
        for n in range(12):
            put(space, n)
        assert len(there(space, range(12))) <= 5
        with pytest.raises(kvist.OptionError, match="floor and ceiling"):
            store.set_share(b"small", floor=0.5, ceiling=0.2)
    with store_of(8, replace="lru") as store:
        low, high = space_of(store), space_of(store, priority=3)
        for n in range(4):
            put(high, n)
        for n in range(10, 60):
            put(low, n)
        assert there(high, range(4)) == [0, 1, 2, 3]


def test_only_what_comes_again_is_written_and_comes_back_in_time(tmp_path):
    with store_of(8, replace="lru", disk=(tmp_path, "16MiB"), admit=2, backpressure=5.0) as store:
        space = space_of(store)
        for n in range(8):
            put(space, n)
        out = np.empty(space.block_bytes, np.uint8)
        assert space.get(prefix_of(space, 3), blocks=[out]).blocks == 1
        assert store.flush(30)
        stats = store.stats()
        assert (stats.disk.records, stats.not_admitted) == (1, 8)
        for n in range(20, 40):
            put(space, n)
        assert there(space, range(8)) == [3]
        key = prefix_of(space, 3).keys[0]
        assert space.lease(key) is None
        space.next_use(prefix_of(space, 3), after=0.2)
        until = time.monotonic() + 30
        while space.lease(key) is None:
            assert time.monotonic() < until, "it was not brought"
            time.sleep(0.01)


def test_room_is_made_ahead():
    with store_of(100, watermarks=(0.9, 0.5)) as store:
        space = space_of(store)
        until = time.monotonic() + 30
        n = 0
        while store.stats().host_evicted == 0:
            put(space, n)
            n += 1
            assert n <= 95 and time.monotonic() < until
            time.sleep(0.001)


def test_wrong_settings():
    with pytest.raises(kvist.UnknownNameError, match='did you mean "adaptive"'):
        kvist.PrefixStore(replace="adaptiv")
    with pytest.raises(kvist.OptionError, match="low, high and reserve"):
        kvist.PrefixStore(watermarks=(0.5, 0.9))
    with pytest.raises(kvist.OptionError, match="admit"):
        kvist.PrefixStore(admit=2)
    with pytest.raises(kvist.OptionError, match="sightings must be at least 1"):
        kvist.PrefixStore(disk=("/nonexistent", "1MiB"), admit=0)
    with store_of(4) as store:
        space = space_of(store)
        prefix = prefix_of(space, 1)
        with pytest.raises(kvist.OptionError, match="below 8"):
            space.session_closed(prefix, source=8)
        with pytest.raises(kvist.OptionError, match="0 or more seconds"):
            space.wanted(prefix, within=-1.0)
        with pytest.raises(kvist.OptionError, match="another space"):
            space.pin(prefix_of(space_of(store, salt=b"x"), 1))
        with pytest.raises(OverflowError):
            space_of(store, priority=1000)
