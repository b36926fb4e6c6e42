"""`python -m kvist demo`: a real model reads a long text once, then decodes through its own cache,
through kvist densely, and through kvist's selectors, over the same prefilled pages.

Every figure is measured in the run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from .._models import missing, smollm2


def main(argv: list[str]) -> int:
    """Runs the demo; the exit status says whether it could."""
    parser = argparse.ArgumentParser(prog="kvist demo", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a shorter text and fewer rows")
    parser.add_argument("--out", type=Path, default=Path("out/kvist-demo.html"), help="report")
    parser.add_argument("--model", type=Path, default=None, help="a Hugging Face model directory")
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        from . import measure, report
    except ImportError as e:
        print(
            f"error: the demo needs torch, transformers, tqdm and matplotlib: {e}", file=sys.stderr
        )
        return 1
    model = args.model or smollm2()
    if problem := missing(model):
        print(problem, file=sys.stderr)
        return 1
    start = time.perf_counter()
    result = measure.run(model, quick=args.quick)
    print("\n" + report.table(result))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(report.html(result, time.perf_counter() - start), encoding="utf-8")
    print(f"\nreport: {args.out.resolve()}  ({time.perf_counter() - start:.0f} s)")
    return 0
