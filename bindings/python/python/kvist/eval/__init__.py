"""`python -m kvist eval`: how well a real model answers when it reads only what a selector picks.

Every document is read once; its questions are then asked over forks, one per selector and budget, and
compared with full attention on the same questions.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from .._errors import KvistError, OptionError
from .options import Settings, known, parse_budget, parse_list, parse_samples


def main(argv: list[str]) -> int:
    """Runs what is missing and writes the report; the exit status says whether it could."""
    args = _parser().parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from . import report, runner
    except ImportError as e:
        print(f"error: eval needs torch, transformers, tqdm and matplotlib: {e}", file=sys.stderr)
        return 1
    if args.list:
        print(_listing())
        return 0
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        return _measure(args, report, runner)


def _measure(args: argparse.Namespace, report: Any, runner: Any) -> int:
    from .records import Results

    try:
        if args.out is None:
            raise OptionError("out: expected a directory for results, found none")
        settings = _settings(args)
        runner.check(settings, None)
        with Results(args.out) as results:
            stopped = not args.report_only and _run(args, settings, results)
            files = report.write(results, args.out)
    except (KvistError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    for path in files:
        print(path)
    if not files:
        print("no results yet", file=sys.stderr)
    if stopped:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvist eval", description=(__doc__ or "").replace("`", ""), epilog="see docs/eval.md"
    )
    parser.add_argument("--out", type=Path, help="directory of results, continued if it has some")
    parser.add_argument(
        "--model", default="smollm2", help="smollm2, gemma3, or a directory (default: %(default)s)"
    )
    parser.add_argument(
        "--select",
        default="boxed,quest",
        help="selectors: names, all, or NAME(KEY=VALUE, ...) for one with settings of its own "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--budget", default="1/8,1/16", help="tokens or shares of the length (default: %(default)s)"
    )
    parser.add_argument(
        "--length", default="4096", help="tokens of document and question (default: %(default)s)"
    )
    parser.add_argument("--task", default="all", help="tasks (default: %(default)s)")
    parser.add_argument(
        "--samples",
        default="20,needle=40",
        help="questions per task and length: N, or N,TASK=N (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the documents (default: 0)")
    parser.add_argument(
        "--dense-layers", default="0,1", help="layers that read everything (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, help="of torch and kvist (default: torch's)")
    parser.add_argument("--report-only", action="store_true", help="write the report, run nothing")
    parser.add_argument("--list", action="store_true", help="list tasks and selectors")
    return parser


def _settings(args: argparse.Namespace) -> Settings:
    from .tasks import TASKS

    names = parse_list(args.task)
    if names == ["all"]:
        names = list(TASKS)
    tasks = tuple(dict.fromkeys(known("task", name, TASKS) for name in names))
    return Settings(
        tasks=tasks,
        selectors=tuple(parse_list(args.select)),
        budgets=tuple(parse_budget(text) for text in parse_list(args.budget)),
        lengths=tuple(dict.fromkeys(_numbers("length", args.length))),
        samples=parse_samples(args.samples, tasks, TASKS),
        seed=args.seed,
        dense_layers=tuple(_numbers("dense-layers", args.dense_layers)),
    )


def _numbers(what: str, text: str) -> list[int]:
    items = parse_list(text)
    if not all(item.isdecimal() for item in items):
        raise OptionError(f"{what}: expected numbers with commas between, found {text!r}")
    return [int(item) for item in items]


def _run(args: argparse.Namespace, settings: Settings, results: Any) -> bool:
    """Runs what is missing; whether it was interrupted."""
    import torch

    from . import models, runner

    if args.threads is not None:
        if args.threads < 1:
            raise OptionError(f"threads: expected at least 1, found {args.threads}")
        torch.set_num_threads(args.threads)
    try:
        runner.run(models.load(models.find(args.model)), settings, results)
    except KeyboardInterrupt:
        return True
    return False


def _warn(message: Any, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _listing() -> str:
    import kvist

    from .tasks import TASKS

    lines = ["tasks:"]
    lines += [f"  {task.name:<8} {task.about}" for task in TASKS.values()]
    lines.append("selectors:")
    lines += [f"  {preset['name']:<8} {preset['about']}" for preset in kvist.selection_presets()]
    return "\n".join(lines)


__all__ = ["main"]
