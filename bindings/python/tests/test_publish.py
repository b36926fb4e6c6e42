"""`Space.publish` and `Space.start`: a sequence's pages found by content, without a copy."""

import threading

import kvist
import numpy as np
import pytest
import torch

LAYERS, HEADS, GROUP, DIM, PAGE = 2, 2, 2, 16, 64
MODEL = bytes(range(32))


def cache_of(dtype="f32", host="32MiB", **options):
    shape = {"layers": LAYERS, "q_heads": HEADS * GROUP, "kv_heads": HEADS, "head_dim": DIM}
    return kvist.Cache(**{**shape, "dtype": dtype, "host": host, **options})


def space_of(store, dtype="f32", **changes):
    shape = {"layers": LAYERS, "kv_heads": HEADS, "head_dim": DIM, "dtype": dtype}
    return store.space(**{"model": MODEL, **shape, **changes})


def rows_of(tokens, layer, kind):
    """Rows that follow from the tokens, as a model's do."""
    states = np.cumsum(np.asarray(tokens, np.float64) + 1) * 0.37 + layer + 2 * kind
    waves = np.arange(1, HEADS * DIM + 1) * 0.11
    return np.sin(states[:, None] * waves).reshape(-1, HEADS, DIM).astype(np.float32)


def append(sequence, tokens, dtype="f32", step=50):
    names = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    for start in range(len(sequence), len(tokens), step):
        stop = min(start + step, len(tokens))
        for layer in range(LAYERS):
            k, v = (rows_of(tokens, layer, kind)[start:stop] for kind in (0, 1))
            k, v = (torch.from_numpy(x).to(names[dtype]) for x in (k, v))
            sequence.append(layer, k, v)
    return sequence


def check(sequence, tokens, dtype="f32"):
    assert len(sequence) == len(tokens)
    names = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    for layer in range(LAYERS):
        for kind, got in enumerate(sequence.read(layer)):
            want = torch.from_numpy(rows_of(tokens, layer, kind)).to(names[dtype]).float()
            np.testing.assert_array_equal(np.asarray(got), want.numpy())


@pytest.fixture
def store():
    with kvist.PrefixStore(host="16MiB") as store:
        yield store


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_a_request_starts_where_another_one_was(store, dtype):
    cache, space = cache_of(dtype), space_of(store, dtype)
    tokens = list(range(300))
    sequence = append(cache.sequence(), tokens, dtype)
    pages = cache.stats().page_bytes
    published = space.publish(sequence, tokens)
    assert published and published == kvist.Published(blocks=4, new=4, present=0, refused=None)
    assert space.publish(sequence, np.arange(300, dtype=np.int32)).present == 4
    sequence.close()

    other = [*tokens[:200], *range(1000, 1100)]
    started = space.start(cache, torch.tensor(other))
    assert not started and started.miss.reason == "absent"
    assert (len(started.sequence), started.shared, started.from_disk) == (192, 3, 0)
    assert cache.stats().page_bytes <= pages
    check(append(started.sequence, other, dtype), other, dtype)
    # An engine's own memory still gets the same bytes.
    out = np.zeros(4 * space.block_bytes, np.uint8)
    assert space.get(space.prefix(tokens), 0, list(out.reshape(4, -1))).blocks == 4
    check(space.start(cache, tokens).sequence, tokens[:256], dtype)
    stats = store.stats()
    assert (stats.published, stats.shared, stats.lent_blocks) == (4, 7, 4)


def test_it_survives_a_restart(tmp_path):
    tokens, cache = list(range(200)), cache_of()
    with kvist.PrefixStore(host="8MiB", disk=(tmp_path, "32MiB")) as store:
        assert space_of(store).publish(append(cache.sequence(), tokens), tokens).new == 3
        assert store.flush(30)
    with kvist.PrefixStore(host="8MiB", disk=(tmp_path, "32MiB")) as store:
        space = space_of(store)
        first, second = space.start(cache, tokens), space.start(cache, tokens)
        assert (first.from_disk, first.shared) == (3, 0) and first
        assert (second.from_disk, second.shared) == (0, 3)
        check(second.sequence, tokens[:192])
    check(first.sequence, tokens[:192])


def test_memory_goes_back_to_live_sequences(store):
    cache, space = cache_of(host="1MiB"), space_of(store)
    for family in range(20):
        tokens = [family, *range(199)]
        sequence = append(cache.sequence(), tokens)
        assert space.publish(sequence, tokens).refused is None
        sequence.close()
    assert 0 < store.stats().lent_blocks < 60
    assert store.stats().host_evicted > 0


def test_tenants_find_only_their_own(store):
    cache, tokens = cache_of(), list(range(100))
    one, two = space_of(store, salt=b"one"), space_of(store, salt=b"two")
    sequence = append(cache.sequence(), tokens)
    one.publish(sequence, tokens)
    assert len(two.start(cache, tokens).sequence) == 0
    assert store.erase_tenant(b"one")["records"] == 1
    assert len(one.start(cache, tokens).sequence) == 0


def test_threads_publish_and_start(store):
    cache, space, failed = cache_of(host="8MiB"), space_of(store), []

    def work(thread):
        try:
            for turn in range(12):
                tokens = [turn % 3, *range(150), thread, *range(turn)]
                sequence = space.start(cache, tokens).sequence
                append(sequence, tokens)
                space.publish(sequence, tokens)
                check(sequence, tokens)
        except Exception as error:  # to be seen by the test
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_what_does_not_fit_says_so(store):
    cache, space, tokens = cache_of(), space_of(store), list(range(100))
    sequence = append(cache.sequence(), tokens)
    for other in (space_of(store, block_tokens=16), space_of(store, "bf16")):
        with pytest.raises(kvist.OptionError, match="layout of the space"):
            other.publish(sequence, tokens)
        with pytest.raises(kvist.OptionError, match="layout of the space"):
            other.start(cache, tokens)
    with pytest.raises(TypeError):
        space.publish(cache, tokens)
    with pytest.raises(TypeError):
        space.start(cache, "tokens")
    with pytest.raises(kvist.OptionError, match="token ids"):
        space.start(cache, [-1])
    sequence.close()
    with pytest.raises(kvist.ClosedError, match="sequence"):
        space.publish(sequence, tokens)
    cache.close()
    with pytest.raises(kvist.ClosedError, match="cache"):
        space.start(cache, tokens)
    sequence = cache_of().sequence()
    assert space.publish(sequence, tokens).blocks == 0
    store.close()
    with pytest.raises(kvist.ClosedError):
        space.publish(sequence, tokens)
