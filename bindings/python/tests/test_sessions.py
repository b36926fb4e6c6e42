"""Saved sessions: from one process to the next."""

import subprocess
import sys

import kvist
import numpy as np
import pytest

SHAPE = {"layers": 2, "q_heads": 4, "kv_heads": 2, "head_dim": 32, "dtype": "f32"}


def cache(path, **more):
    options = {"host": "16MiB", "select": kvist.Select("boxed", budget=128), "model": "weights 1"}
    return kvist.Cache(**SHAPE, disk=(path, "64MiB"), **{**options, **more})


def rows(n):
    return np.random.default_rng(1).standard_normal((n, 2, 32), dtype=np.float32)


def filled(c, n):
    seq = c.sequence()
    for layer in range(2):
        seq.append(layer, rows(n), -rows(n))
    return seq


CHILD = """
import sys
sys.path.insert(0, sys.argv[2])
from test_sessions import cache, filled
with cache(sys.argv[1]) as c:
    print(filled(c, 1000).save("chat").tokens)
"""


def test_another_process_goes_on_where_one_ended(tmp_path):
    here = str(__import__("pathlib").Path(__file__).parent)
    args = [sys.executable, "-c", CHILD, str(tmp_path / "store"), here]
    done = subprocess.run(args, capture_output=True, text=True)
    assert done.stdout == "1000\n", done.stderr
    with cache(tmp_path / "store") as c:
        (info,) = c.sessions()
        assert (info.name, info.tokens, info.model, info.missing) == (
            "chat", 1000, b"weights 1", None,
        )  # fmt: skip
        seq = c.open_session("chat")
        k, v = seq.read(1)
        assert (k == rows(1000)).all() and (v == -rows(1000)).all()
        assert seq.restore(wait=False) >= 0
        assert seq.attend(0, np.ones((4, 32), np.float32)).shape == (4, 32)
        seq.append(0, rows(10), rows(10))
        saved = seq.save("chat")
        assert 0 < saved.written < saved.bytes / 2
        assert seq.offload() > 0 and seq.restore() > 0
        assert c.delete_session("chat") and not c.delete_session("chat")
        assert c.sessions() == []
        seq.close()


def test_refusals_name_what_is_wrong(tmp_path):
    with kvist.Cache(**SHAPE) as plain, pytest.raises(kvist.OptionError, match="disk"):
        plain.sequence().save("a")
    with cache(tmp_path / "store") as c:
        filled(c, 100).save("a")
        with pytest.raises(kvist.OptionError, match="session name"):
            c.open_session("../a")
        with pytest.raises(kvist.StoreError, match="never stored"):
            c.open_session("b")
    other = cache(tmp_path / "store", model=b"weights 2")
    with other as c, pytest.raises(kvist.StoreError, match=r"weights 1.*weights 2"):
        c.open_session("a")
