"""Clustered rows a second time in the order of clusters, and how pages are stored below host memory."""

import kvist
import numpy as np
import pytest

SHAPE = {"layers": 1, "q_heads": 4, "kv_heads": 2, "head_dim": 32, "dtype": "f32"}
SELECT = kvist.Select("clusterkv", budget=256, sinks=4, cluster_tokens=16, window=32)


def rows(n, seed=1):
    return np.random.default_rng(seed).standard_normal((n, 2, 32), dtype=np.float32)


def filled(c, n):
    seq = c.sequence()
    seq.append(0, rows(n), -rows(n))
    return seq


def query():
    return np.random.default_rng(2).standard_normal((1, 4, 32), dtype=np.float32)


def test_the_same_is_read_and_its_bytes_are_told():
    with (
        kvist.Cache(**SHAPE, host="16MiB", select=SELECT, cluster_order=True) as c,
        kvist.Cache(**SHAPE, host="16MiB", select=SELECT) as plain,
    ):
        (out, info), (want, reference) = [
            filled(cache, 1500).attend(0, query(), info=True) for cache in (c, plain)
        ]
        assert all((a == b).all() for a, b in zip(info.selected, reference.selected, strict=True))
        np.testing.assert_allclose(out, want, atol=2e-3)
        assert 0 < c.stats().cluster_bytes < c.stats().page_bytes
        assert plain.stats().cluster_bytes == 0


def test_copies_go_when_pages_need_the_room():
    with kvist.Cache(**SHAPE, host="3MiB", select=SELECT, cluster_order=True) as c:
        seq = filled(c, 1500)
        seq.attend(0, query())
        copied = c.stats().cluster_bytes
        other = filled(c, 2500)
        assert copied > 0 and c.stats().cluster_bytes < copied
        assert c.stats().used_bytes <= c.stats().budget_bytes
        assert np.isfinite(seq.attend(0, query())).all() and len(other) == 2500


@pytest.mark.parametrize("codec", ["raw", "lossless", "dynamic"])
def test_pages_come_back_whatever_they_were_stored_with(tmp_path, codec):
    with kvist.Cache(**SHAPE, disk=(tmp_path, "64MiB"), disk_codec=codec) as c:
        seq = filled(c, 1500)
        want = seq.attend(0, query())
        for _ in range(2):
            assert seq.offload() > 0
            assert (seq.attend(0, query()) == want).all()


def test_a_codec_nobody_knows_is_refused(tmp_path):
    with pytest.raises(kvist.KvistError, match='unknown codec "dinamic", did you mean "dynamic"'):
        kvist.Cache(**SHAPE, disk=(tmp_path, "64MiB"), disk_codec="dinamic")
    with pytest.raises(TypeError):
        kvist.Cache(**SHAPE, cluster_order="yes")
