"""`python -m kvist calibrate`: how each KV head of a model is read, measured on a text."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from ._dump_command import add_source, write
from ._errors import KvistError
from ._kvist import _calibrate, selection


def main(argv: list[str]) -> int:
    """Writes one profile and prints what it leads to; the exit status says whether it could."""
    parser = argparse.ArgumentParser(
        prog="kvist calibrate",
        description="Runs a model over a text, measures what each KV head attends to, and writes a profile for "
        "`KvistCache.for_model(model, profile=FILE)`. With --dump FILE instead of a model it "
        "measures what `kvist dump` wrote: `kvist calibrate --dump FILE --help`.",
    )
    parser.add_argument("--out", type=Path, required=True, help="the profile to write")
    add_source(parser)
    parser.add_argument(
        "--budget",
        type=int,
        default=1024,
        help="tokens read per KV head and query, mean over the heads (default: %(default)s)",
    )
    parser.add_argument("--select", default="boxed", help="the selector (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=48, help="steps measured at most (default: %(default)s)"
    )
    parser.add_argument(
        "--streaming",
        type=_share,
        default=0.99,
        help="mass that a window must cover at the worst steps of a head that streams, or never "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--dense",
        type=_share,
        default=0.125,
        help="part of the context that the effective support of a dense head exceeds, or never "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--sparsity", type=float, help="DuoAttention instead: this share of the heads streams"
    )
    args = parser.parse_args(argv)
    try:
        # Before the model runs.
        select = selection(args.select, args.budget)
    except KvistError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calibrate.kvdump"
        if write(args, path) is None:
            return 1
        rules = (args.steps, args.streaming, args.dense, args.sparsity)
        try:
            profile, report = _calibrate(path, select, args.budget, *rules, None)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            profile.save(args.out)
        except (KvistError, OSError) as e:
            print(f"error: {e}", file=sys.stderr)
            return 1
    print(f"{report}\n{args.out}")
    return 0


def _share(text: str) -> float | None:
    share = None if text == "never" else float(text)
    if share is not None and not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"expected 0 to 1 or never, found {text}")
    return share


__all__ = ["main"]
