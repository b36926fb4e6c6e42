"""What this machine has for kernels on NVIDIA GPUs: driver, GPUs, run-time compiler, cache.

    found = kvist.cuda.probe()
    found.devices            # what this process may use
    found.compiler_missing   # why kernels cannot be compiled, and what to install

NVRTC, the compiler, is taken from where CUDA's Python packages put it (`pip install
nvidia-cuda-nvrtc`, or with torch), unless the process has one or `KVIST_NVRTC` names one. Nothing of
torch is imported.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from . import _kvist as _k

__all__ = ["Compiler", "Device", "Probe", "probe"]

_PARTS = (("cu13", "lib"), ("cuda_nvrtc", "lib"))
"""Where CUDA's packages keep NVRTC, below `nvidia`: of CUDA 13, of CUDA 12."""


@dataclass(frozen=True)
class Device:
    """One GPU."""

    name: str
    capability: str
    """Compute capability, such as "9.0"."""
    memory_bytes: int
    multiprocessors: int
    refused: str | None
    """Why kernels cannot be compiled for it."""


@dataclass(frozen=True)
class Compiler:
    """NVRTC."""

    version: str
    file: Path
    found: str
    """How it was found: "loaded already", "KVIST_NVRTC", "a Python package" or "the system"."""


@dataclass(frozen=True)
class Probe:
    """What was found; of what is missing, why, and what to install."""

    driver: str | None
    """The newest CUDA that the driver supports, such as "13.0"."""
    driver_missing: str | None
    devices: tuple[Device, ...]
    compiler: Compiler | None
    compiler_missing: str | None
    cache: Path | None
    """Where compiled kernels are kept; `None` if only in memory."""


def probe() -> Probe:
    """Looks for driver, GPUs and compiler.

    It starts the driver in this process: one that is forked off later cannot use CUDA. No GPU memory
    is taken. Nothing is raised for what is missing.
    """
    found = json.loads(_k.cuda_json())
    devices = tuple(Device(**device) for device in found.pop("devices"))
    compiler, cache = found.pop("compiler"), found.pop("cache")
    if compiler is not None:
        compiler = Compiler(**{**compiler, "file": Path(compiler["file"])})
    cache = None if cache is None else Path(cache)
    return Probe(**found, devices=devices, compiler=compiler, cache=cache)


def _compilers() -> list[Path]:
    """Folders of `nvidia` packages that may hold NVRTC, best first."""
    spec = PathFinder.find_spec("nvidia")
    roots = [] if spec is None else spec.submodule_search_locations or []
    folders = [Path(root, *parts) for parts in _PARTS for root in roots]
    return [folder for folder in folders if folder.is_dir()]


_k.cuda_folders(_compilers(), [Path(__file__).parent / "cubin"])
