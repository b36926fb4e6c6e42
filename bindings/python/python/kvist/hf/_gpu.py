"""The GPU beside a `KvistCache`, and the device that its model is on."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch

from .._errors import UnsupportedError


@dataclass(frozen=True)
class Gpu:
    """The GPU that keeps copies of pages, as `KvistCache.for_model` was told."""

    device: str | int | None
    device_bytes: str | int | None
    device_memory: torch.Tensor | None
    device_optional: bool

    def beside(self, model: torch.device) -> dict[str, Any]:
        """The options of a `kvist.Cache` for keys that are there: "cuda" is the keys' own GPU.

        Warns if a model on a GPU has its pages in host memory alone.
        """
        device = self.device
        if device is None and model.type == "cuda":
            warnings.warn(
                f"the model is on {model}, and its keys and values go to host memory, where the CPU attends "
                'to them; with device="cuda" the GPU keeps pages and attends',
                stacklevel=2,
            )
        if device == "cuda" and model.type == "cuda" and model.index is not None:
            device = model.index
        return {
            "device": device,
            "device_bytes": self.device_bytes,
            "device_memory": self.device_memory,
            "device_optional": self.device_optional,
        }


def check_device(device: torch.device) -> None:
    """Raises for devices that kvist cannot read."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    if device.type != "cpu" and not nvidia:
        raise UnsupportedError(
            f"device: expected a model on the CPU or on an NVIDIA GPU, found {device}; model.to('cpu')"
        )
