"""`python -m kvist`: the demo, quality and benchmarks, lists, dumps of a model, looks at a store."""

from __future__ import annotations

import sys

USAGE = """usage: python -m kvist COMMAND [ARGS]

commands:
  demo      a real model on a long text: its own cache against kvist (needs torch, transformers)
  eval      how well a real model answers when it reads only what a selector picks
  bench     measure kvist beside the machine's limit and its peers (`bench --list`)
  presets   the selectors that `select=` takes
  doctor    would a store work here, and what would it gain (`--host vllm`: with an engine's configuration)
  inspect   what a prefix store's directory holds
  verify    whether it is undamaged
  why       why a block of it would miss
  calibrate how each KV head of a model is read: a profile, measured on a text or a dump
  dump      a model's real queries, keys and values in one file, for the benchmarks
"""

RUST = ("bench", "doctor", "presets", "inspect", "verify", "why")
"""Commands of the Rust command line."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    args = sys.argv[1:] if argv is None else argv
    command = args[0] if args else "--help"
    if command in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if command == "demo":
        from .demo import main as demo

        return demo(args[1:])
    if command == "eval":
        from .eval import main as evaluate

        return evaluate(args[1:])
    if command == "dump":
        from ._dump_command import main as dump

        return dump(args[1:])
    if command == "calibrate" and not any(a.split("=")[0] == "--dump" for a in args):
        from ._calibrate_command import main as calibrate

        return calibrate(args[1:])
    if command == "doctor" and any(a.split("=")[0] == "--host" for a in args):
        from ._doctor_command import main as doctor

        return doctor(args[1:])
    if command in (*RUST, "calibrate"):
        from ._kvist import run_cli

        return run_cli(["kvist", *args])
    import difflib

    near = difflib.get_close_matches(command, ["calibrate", "demo", "dump", "eval", *RUST], n=1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    print(f"error: unknown command {command!r}{hint}\n\n{USAGE}", file=sys.stderr, end="")
    return 2


if __name__ == "__main__":
    sys.exit(main())
