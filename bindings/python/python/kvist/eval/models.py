"""The models that are asked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _models
from .._errors import OptionError
from .options import known


@dataclass(frozen=True)
class Model:
    """A model with its tokenizer."""

    name: str
    model: Any
    tokenizer: Any
    digest: str
    """Of its configuration and weights."""

    @property
    def head(self) -> list[int]:
        """What the model wants in front of every text."""
        return list(self.tokenizer("").input_ids)

    @property
    def longest(self) -> int | None:
        """The longest text it can read, in tokens."""
        config = self.model.config.get_text_config(decoder=True)
        return getattr(config, "max_position_embeddings", None)

    @property
    def stop(self) -> set[int]:
        """Tokens that end an answer."""
        return {i for i in (self.tokenizer.eos_token_id,) if i is not None}


def find(name: str) -> Path:
    """The directory of a model: a name or a path.

    Raises `UnknownNameError` for what is neither, `OptionError` if no model is there.
    """
    path = Path(name)
    if not path.is_dir():
        path = _models.directory(known("model", name, _models.NAMES))
    if problem := _models.missing(path):
        raise OptionError(problem.removeprefix("error: "))
    return path


def load(directory: Path) -> Model:
    """Loads a model in f32, as its figures should not depend on rounding."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return Model(directory.resolve().name, model, tokenizer, _digest(directory))


def _digest(directory: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    files = [directory / "config.json", directory / "tokenizer.json"]
    for path in [*files, *sorted(directory.glob("*.safetensors"))]:
        with path.open("rb") as file:
            while part := file.read(1 << 22):
                digest.update(part)
    return digest.hexdigest()
