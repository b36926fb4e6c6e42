"""Where the models of `make models` are."""

from __future__ import annotations

import os
from pathlib import Path

NAMES = {"smollm2": "smollm2-135m", "gemma3": "gemma3-270m"}
"""The models by name, and their directories."""


def smollm2() -> Path:
    """SmolLM2's directory."""
    return directory("smollm2")


def directory(name: str) -> Path:
    """A model's directory: in `KVIST_MODELS_DIR`, else in `.cache/models` here or above."""
    if given := os.environ.get("KVIST_MODELS_DIR"):
        return Path(given) / NAMES[name]
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".cache" / "models" / NAMES[name]).exists():
            return folder / ".cache" / "models" / NAMES[name]
    return here / ".cache" / "models" / NAMES[name]


def missing(model: Path) -> str | None:
    """What to tell the user if there is no model in this directory."""
    if (model / "config.json").exists():
        return None
    gemma = "KVIST_GEMMA=1 " if model.name == NAMES["gemma3"] else ""
    return f"error: no model in {model}: run `{gemma}make models` or pass --model"
