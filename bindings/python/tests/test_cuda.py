"""`kvist.cuda`: what the machine has for kernels on GPUs. Without any of it, too."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import kvist
from kvist import cuda

NVRTC = [folder for folder in cuda._compilers() if list(folder.glob("libnvrtc.so.1[23]"))]
"""Of the package that requirements-test.txt has."""


def in_process(code, **env):
    """What `code` prints in a process of its own, where nothing is loaded yet."""
    given = {k: v for k, v in os.environ.items() if k != "KVIST_NVRTC"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**given, **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_probe_says_what_is_there_or_what_to_install():
    found = kvist.cuda.probe()
    assert (found.driver is None) == (found.driver_missing is not None)
    assert found.driver is not None or found.devices == ()
    if found.driver is None:
        assert "install driver" in found.driver_missing
    if found.compiler is None:
        assert "pip install nvidia-cuda-nvrtc" in found.compiler_missing
    for device in found.devices:
        assert device.memory_bytes > 0 and device.multiprocessors > 0


def test_the_compiler_of_the_packages_is_found_without_torch():
    code = """
        import sys, kvist
        found = kvist.cuda.probe().compiler
        print(found.version, found.found, found.file, "torch" in sys.modules, sep="|")
    """
    version, how, file, torch = in_process(code).strip().split("|")
    assert (how, torch) == ("a Python package", "False")
    assert Path(file).parent in NVRTC and version.split(".")[0] in ("12", "13")


def test_the_variable_comes_before_the_packages():
    code = "import kvist; print(kvist.cuda.probe().compiler.found)"
    assert in_process(code, KVIST_NVRTC=str(NVRTC[0])).strip() == "KVIST_NVRTC"


def test_folders_are_those_of_the_packages(tmp_path, monkeypatch):
    for folder in ("a/nvidia/cuda_nvrtc/lib", "b/nvidia/cu13/lib", "b/nvidia/cublas/lib"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "a"), str(tmp_path / "b")])
    found = [str(folder.relative_to(tmp_path)) for folder in cuda._compilers()]
    assert found == ["b/nvidia/cu13/lib", "a/nvidia/cuda_nvrtc/lib"]
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert cuda._compilers() == []


def test_the_cache_is_where_the_variable_says(tmp_path):
    code = "import kvist; print(kvist.cuda.probe().cache)"
    where = tmp_path / "kvist" / "cubin"
    assert in_process(code, KVIST_CACHE_DIR=str(tmp_path)).strip() == str(where)
    assert in_process(code, KVIST_CACHE_DIR="").strip() == "None"


def test_doctor_prints_it_and_json_has_it():
    doctor = [sys.executable, "-m", "kvist", "doctor", "--quick"]
    text = subprocess.run(doctor, capture_output=True, text=True, check=True).stdout
    section = text.split("\ncuda\n")[1].split("\nlinks\n")[0]
    assert [line.split()[0] for line in section.splitlines() if "gpu" not in line.split()[:1]] == [
        "driver",
        "compiler",
        "cache",
    ]
    done = subprocess.run([*doctor, "--json"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert set(found["cuda"]) == set(cuda.Probe.__dataclass_fields__)
    assert any(finding["about"] == "cuda" for finding in found["findings"])
