"""Where the models of `make models` are."""

from __future__ import annotations

import os
from pathlib import Path


def smollm2() -> Path:
    """SmolLM2's directory: in `KVIST_MODELS_DIR`, else in `.cache/models` here or above."""
    if given := os.environ.get("KVIST_MODELS_DIR"):
        return Path(given) / "smollm2-135m"
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".cache" / "models" / "smollm2-135m").exists():
            return folder / ".cache" / "models" / "smollm2-135m"
    return here / ".cache" / "models" / "smollm2-135m"


def missing(model: Path) -> str | None:
    """What to tell the user if there is no model in this directory."""
    if (model / "config.json").exists():
        return None
    return f"error: no model in {model}: run `make models` or pass --model"
