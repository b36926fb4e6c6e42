"""CUDA tensors in and out, and a cache with a GPU: on one that is played, in processes of their own.

The GPU is a driver that runs kernels on the CPU (kernels/tests/cuda/fake_driver.c); `cargo test` of the kernels
makes it. What the processes do is in played_gpu.py.
"""

import ast
import os
import platform
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import kvist
import pytest
import torch
from kvist.hf import KvistCache
from kvist.hf._gpu import check_device
from kvist.hf._masks import plan_of_tensor
from test_hf import tiny_llama

ROOT = Path(__file__).resolve().parents[3]
PLAY = Path(__file__).with_name("played_gpu.py")


def cases():
    """The names in its list; importing it needs the driver."""
    last = [n for n in ast.parse(PLAY.read_text()).body if isinstance(n, ast.Assign)][-1]
    return [name.id for name in last.value.elts]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A driver and kernels for it."""
    compilers = [name for name in (os.environ.get("CXX"), "c++", "g++") if name]
    if platform.machine() != "x86_64" or not any(map(shutil.which, compilers)):
        pytest.skip("a GPU is played by a C++ compiler on x86-64: one of them is missing")
    made = tmp_path_factory.mktemp("gpu")
    # As `make test-rust` builds it, so that it need not be built again.
    cargo = [
        "cargo",
        "test",
        "--quiet",
        "--workspace",
        "--exclude",
        "kvist-python",
        "--test",
        "emu",
    ]
    env = {**os.environ, "KVIST_EMU_GPU": str(made), "KVIST_EMU_DIM": "64"}
    done = subprocess.run(cargo, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (made / "libcuda.so").exists(), done.stdout
    return made


@pytest.mark.parametrize("case", cases())
def test_played(case, folder):
    env = {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "KVIST_PREBUILT": str(folder),
        "KVIST_CACHE_DIR": "",
        "FAKE_EMULATE": "1",
        "FAKE_DEFER": "1",
    }
    done = subprocess.run([sys.executable, PLAY, case], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and f"played {case}" in done.stdout, done.stdout + done.stderr


def test_without_a_driver_it_says_what_to_install():
    if kvist.cuda.probe().driver is not None:
        pytest.skip("this machine has an NVIDIA driver")
    geometry = {"layers": 1, "q_heads": 2, "kv_heads": 1, "head_dim": 64, "dtype": "f32"}
    with pytest.raises(kvist.DeviceError, match=r"no NVIDIA driver: .*install driver") as e:
        kvist.Cache(**geometry, device=0)
    assert isinstance(e.value, RuntimeError) and isinstance(e.value, kvist.KvistError)
    cache = kvist.Cache(**geometry, device="cuda", device_optional=True)
    seq = cache.sequence()
    seq.append(0, torch.ones(3, 1, 64), torch.ones(3, 1, 64))
    assert torch.equal(seq.attend(0, torch.ones(2, 64)), torch.ones(2, 64))
    used = cache.device
    assert "no NVIDIA driver" in used.degraded and used.calls_on_cpu == 1 and used.calls == 0


def gpu(**more):
    cache = KvistCache.for_model(tiny_llama(), **more)
    return cache._store.options.gpu


def test_a_model_on_a_gpu_without_device_says_so():
    second = torch.device("cuda:1")
    with pytest.warns(UserWarning, match='the model is on cuda:1, .* with device="cuda"') as told:
        assert gpu().beside(second)["device"] is None
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gpu().beside(torch.device("cpu"))["device"] is None
        assert gpu(device="cuda").beside(second)["device"] == 1
        assert gpu(device="cuda:0").beside(second)["device"] == "cuda:0"
        given = gpu(device=0, device_bytes="1GiB", device_optional=True)
        assert given.beside(torch.device("cpu")) == {
            "device": 0, "device_bytes": "1GiB", "device_memory": None, "device_optional": True,
        }  # fmt: skip


def test_models_elsewhere_are_refused():
    for device in ("cpu", "cuda:0"):
        check_device(torch.device(device))
    with pytest.raises(kvist.UnsupportedError, match="CPU or on an NVIDIA GPU, found meta"):
        check_device(torch.device("meta"))


class OnGpu(torch.Tensor):
    """A mask that is somewhere else until it is fetched."""

    fetched = 0

    def cpu(self):
        OnGpu.fetched += 1
        return self.as_subclass(torch.Tensor)


def test_masks_of_a_gpu_are_planned_on_the_cpu():
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0, 0] = False
    plan = plan_of_tensor(mask.as_subclass(OnGpu), 5, 0, None)
    assert OnGpu.fetched == 1 and type(plan.keep) is torch.Tensor
    assert plan.rows[0].tolist() == [1, 2, 3, 4] and plan.rows[1] is None
