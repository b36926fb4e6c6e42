"""`python -m kvist dump`: a file of a model's real queries, keys and values, for the benchmarks."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ._errors import KvistError, OptionError
from ._models import missing, smollm2


def main(argv: list[str]) -> int:
    """Writes one dump; the exit status says whether it could."""
    parser = argparse.ArgumentParser(
        prog="kvist dump",
        description="Runs a model over a text and writes the queries, keys and values of its "
        "full-attention layers, for `kvist bench selection-quality --dump FILE`.",
    )
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    add_source(parser)
    args = parser.parse_args(argv)
    header = write(args, args.out)
    if header is None:
        return 1
    print(
        f"{args.out}: {len(header['layers'])} layers, {header['tokens']} tokens, "
        f"{header['queries']} queries, {args.out.stat().st_size / 1e6:.0f} MB"
    )
    return 0


def add_source(parser: argparse.ArgumentParser) -> None:
    """Flags that say which model runs over which text."""
    parser.add_argument("--model", type=Path, help="a Hugging Face model directory, or smollm2")
    parser.add_argument("--text", type=Path, help="a text file; by default the demo's text")
    parser.add_argument("--tokens", type=int, default=6912, help="length (default: %(default)s)")
    parser.add_argument(
        "--queries", type=int, default=96, help="queries, the last ones (default: %(default)s)"
    )


def write(args: argparse.Namespace, out: Path) -> dict[str, Any] | None:
    """Writes a dump of what these flags say and returns its header; says so if it cannot."""
    model = smollm2() if args.model in (None, Path("smollm2")) else args.model
    if problem := missing(model):
        print(problem, file=sys.stderr)
        return None
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return _dump(model, args, out)
    except ImportError as e:
        print(f"error: this needs torch and transformers: {e}", file=sys.stderr)
    except (KvistError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
    return None


def _dump(model_dir: Path, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from .hf import dump

    config = AutoConfig.from_pretrained(model_dir).get_text_config(decoder=True)
    longest = getattr(config, "max_position_embeddings", None) or args.tokens
    if not 1 <= args.tokens <= longest:
        raise OptionError(f"tokens: expected 1..={longest} for this model, found {args.tokens}")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    ids, source = _tokens(tokenizer, args.text, args.tokens)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    return dump(model, torch.tensor([ids]), out, args.queries, source=source)


def _tokens(tokenizer: Any, text: Path | None, tokens: int) -> tuple[list[int], str]:
    """Exactly `tokens` tokens, with what the model wants in front of a text, and where they are from."""
    start = tokenizer("").input_ids
    if text is None:
        from .demo.text import build

        body = build(tokenizer, tokens, held_out=0).context
        source = "CPython documentation with planted facts"
    else:
        body = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False).input_ids
        source = text.name
    ids = [*start, *body][:tokens]
    if len(ids) < tokens:
        raise OptionError(f"tokens: expected at most the text's {len(ids)}, found {tokens}")
    return ids, source


__all__ = ["add_source", "main", "write"]
