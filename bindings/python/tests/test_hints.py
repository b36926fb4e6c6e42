"""Hints: a predicted query brings pages back from disk before the query itself is there."""

import time

import kvist
import numpy as np
import pytest
from test_sessions import SHAPE, cache, filled

PAGE_BYTES = 64 * 2 * 32 * 4


def query(n=1):
    return np.random.default_rng(2).standard_normal((n, 4, 32), dtype=np.float32)


def arrived(c, seq, bytes):
    """Whether so many bytes of pages are in host memory, soon."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        c.stats()
        if seq.stats().page_bytes == bytes:
            return True
        time.sleep(0.01)
    return False


def test_hints_bring_back_what_would_be_read(tmp_path):
    with cache(tmp_path / "store") as c:
        seq, q = filled(c, 2000), query()
        plain, _ = seq.attend(0, q[0], info=True)
        seq.offload()
        left = seq.stats().page_bytes
        sent = seq.hint(0, q[0])
        assert sent > 0 and seq.hint(0, q, scale=None) == 0
        assert arrived(c, seq, left + sent * PAGE_BYTES)
        again, info = seq.attend(0, q[0], info=True)
        assert np.isfinite(again).all() and again.shape == plain.shape
        # What was read is what was near, or kept: nothing else came.
        assert seq.stats().page_bytes == left + sent * PAGE_BYTES
        assert all(chosen.size > 0 for chosen in info.selected)
        other = filled(c, 2000)
        other.offload()
        seq.offload()
        both = c.hint_batch(0, query(2), [seq, other])
        assert both > sent
        seq.close()
        other.close()


def test_without_a_disk_there_is_nothing_to_hint_at():
    with kvist.Cache(**SHAPE, select="quest") as c:
        seq = filled(c, 2000)
        assert seq.hint(0, query()[0]) == 0
        with pytest.raises(kvist.ShapeError, match="query heads"):
            seq.hint(0, query()[0, :3])
        with pytest.raises(kvist.ShapeError, match="queries"):
            c.hint_batch(0, query(2), [seq])
        with pytest.raises(kvist.KvistError, match="layer"):
            seq.hint(7, query()[0])
        seq.close()
        with pytest.raises(kvist.ClosedError):
            seq.hint(0, query()[0])
