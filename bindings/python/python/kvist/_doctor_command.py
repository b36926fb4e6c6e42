"""`python -m kvist doctor --host vllm|hf`: an engine's configuration, then everything that the Rust command checks."""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

from ._doctor_report import Report
from ._errors import OptionError
from ._kvist import run_cli

HOSTS = ("vllm", "hf")
VALUES = {
    "--host-bytes": "the store's memory, unless --config says",
    "--disk-bytes": "the most that its files may take, unless --config says",
    "--geometry": "the model's shape: layers,kv_heads,head_dim,dtype",
    "--block-tokens": "the engine's block size (default: 16)",
    "--prefill-rate": "tokens that the engine computes in a second of prefill",
}
"""What goes to the Rust command as it is."""
FLAGS = {
    "--json": "one JSON object",
    "--quick": "measure for one second in place of five, leave out what is stored already",
    "--allow-shared-dir": "accept a directory that other users may write",
}


def main(argv: list[str]) -> int:
    """Prints one report; 0 if a store would work, 1 if not, 2 for arguments that make no sense."""
    parser = argparse.ArgumentParser(
        prog="kvist doctor",
        description="Checks an engine's configuration, the machine and a directory, measures the links, and says "
        "what a store would gain. docs/doctor.md explains the report.",
        allow_abbrev=False,
    )
    parser.add_argument("dir", nargs="?", help="the store's directory, unless --config names it")
    parser.add_argument("--host", required=True, help=f"the engine: {' or '.join(HOSTS)}")
    parser.add_argument(
        "--config", help="vLLM's kv_transfer_config: JSON, or a file that holds it", metavar="JSON"
    )
    parser.add_argument("--model", help="the model's name or directory, or a .gguf file")
    parser.add_argument(
        "--tensor-parallel", type=int, default=1, help="workers of the engine (default: 1)"
    )
    parser.add_argument(
        "--hash-algo", default="sha256", help="vLLM's prefix_caching_hash_algo (default: sha256)"
    )
    parser.add_argument(
        "--fingerprint", action="store_true", help="read the weights: what keys know a model by"
    )
    for name, text in VALUES.items():
        parser.add_argument(name, help=text)
    for name, text in FLAGS.items():
        parser.add_argument(name, action="store_true", help=text)
    args = parser.parse_args(argv)
    if args.host not in HOSTS:
        near = difflib.get_close_matches(args.host, HOSTS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        parser.error(f"--host: expected {' or '.join(HOSTS)}, found {args.host!r}{hint}")
    if args.tensor_parallel < 1:
        parser.error(f"--tensor-parallel: expected 1 or more, found {args.tensor_parallel}")
    report = Report(args.host)
    arguments: list[str] = []
    if args.host == "vllm":
        from .vllm import _doctor

        if args.config is None:
            parser.error("--host vllm: expected --config with the kv_transfer_config, found none")
        try:
            arguments = _doctor.check(_config(args.config), args, report)
        except OptionError as e:
            print(f"error: {e}", file=sys.stderr)
            return 2
    else:
        arguments = _hf(args, report)
    folders = [a.removeprefix("--dir=") for a in arguments if a.startswith("--dir=")]
    if args.dir is not None:
        if folders:
            parser.error(f"expected one directory, found {args.dir} and disk_dir {folders[0]}")
        folders = [args.dir]
    arguments = [a for a in arguments if not a.startswith("--dir=")]
    arguments += _passed_on(args)
    sys.stdout.flush()
    return run_cli(
        ["kvist", "doctor", *arguments, f"--host-report={report.json()}", "--", *folders]
    )


def _passed_on(args: argparse.Namespace) -> list[str]:
    def given(name: str) -> Any:
        return getattr(args, name[2:].replace("-", "_"))

    values = [f"{name}={given(name)}" for name in VALUES if given(name) is not None]
    return values + [name for name in FLAGS if given(name)]


def _config(given: str) -> dict[str, Any]:
    """The JSON of `--config`, or of the file that it names."""
    text = given
    if not given.lstrip().startswith("{"):
        try:
            text = Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise OptionError(
                f"--config: expected a JSON object or a file with one, found {given!r} ({e})"
            ) from e
    try:
        config = json.loads(text)
    except json.JSONDecodeError as e:
        raise OptionError(f"--config: expected JSON, found an error in it: {e}") from e
    if not isinstance(config, dict):
        raise OptionError(f"--config: expected a JSON object, found {type(config).__name__}")
    return config


def _hf(args: argparse.Namespace, report: Report) -> list[str]:
    """What there is to say of transformers: a cache of kvist's needs no configuration."""
    for name in ("transformers", "torch"):
        version = installed(name)
        report.fact(name, version or "not installed")
        if version is None:
            report.error("engine", f"{name} is not installed", "pip install 'kvist[hf]'")
    report.fact("cache", "KvistCache.for_model(model): the store is the process's own")
    return model_arguments(args.model, report)


def model_arguments(model: str | None, report: Report) -> list[str]:
    """Where the Rust command finds the model's shape."""
    if model is None:
        return []
    from .vllm._identity import _local

    path = Path(model)
    if not path.exists():
        try:
            path = _local(model, None)
        except Exception as e:
            text = f"the model {model!r} is not on this machine: {_first_line(e)}"
            report.error("model", text, "fetch it, name its directory, or give --geometry")
            return []
    report.fact("model", str(path))
    return [f"--model={path}"]


def installed(name: str) -> str | None:
    """The version of a package; none if it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


__all__ = ["main"]
