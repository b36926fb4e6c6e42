"""Checks vLLM's configuration of kvist without an engine, and without vLLM if it is not there."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._doctor_command import installed, model_arguments
from .._doctor_report import Report
from .._errors import KvistError, OptionError
from . import _compat, _identity
from ._config import Config, worker_folder

FIELDS = (
    "kv_connector",
    "engine_id",
    "kv_buffer_device",
    "kv_buffer_size",
    "kv_role",
    "kv_rank",
    "kv_parallel_size",
    "kv_ip",
    "kv_port",
    "kv_connector_extra_config",
    "kv_connector_module_path",
    "enable_permute_local_kv",
    "kv_load_failure_policy",
)
"""Keys of vLLM 0.32's `kv_transfer_config`."""
LONG_HASHES = ("sha256", "sha256_cbor")
"""Hashes that a tier takes for content."""


def check(given: Mapping[str, Any], args: argparse.Namespace, report: Report) -> list[str]:
    """Checks `kv_transfer_config`; the arguments that the Rust command needs.

    Raises `OptionError` only for what is no such configuration at all; what is wrong in it is a finding.
    """
    _check_version(report)
    _check_fields(given, report)
    extra = given.get("kv_connector_extra_config") or {}
    if not isinstance(extra, Mapping):
        raise OptionError(
            f"kv_connector_extra_config: expected an object, found {type(extra).__name__}"
        )
    connector = given.get("kv_connector")
    tier = connector == "OffloadingConnector"
    settings: Mapping[str, Any] | None = extra
    if tier:
        settings = _tier(extra, report)
        _check_hashes(args.hash_algo, report)
    elif connector != "KvistConnector":
        near = difflib.get_close_matches(
            str(connector), ("KvistConnector", "OffloadingConnector"), n=1
        )
        hint = f"; did you mean {near[0]!r}?" if near else ""
        text = f"kv_connector: expected 'KvistConnector' (or 'OffloadingConnector' with kvist as a tier), found {connector!r}{hint}"
        report.error("settings", text, 'set "kv_connector": "KvistConnector"')
    else:
        _check_connector(given, report)
    if settings is None:
        return model_arguments(args.model, report)
    try:
        config = Config.of(settings)
    except KvistError as e:
        report.error("settings", str(e), "docs/vllm.md lists every key")
        return model_arguments(args.model, report)
    if tier and config.multi_tenant:
        text = "multi_tenant: expected false, since a tier knows only hashes and not whose they are"
        report.error("settings", text, "use KvistConnector")
    report.ok("settings", "every key is known, and its value possible")
    _facts(config, tier, report)
    _check_settings(config, report)
    _check_workers(config, args.tensor_parallel, report)
    arguments = model_arguments(args.model, report)
    _fingerprint(config, arguments, args.fingerprint, report)
    return arguments + _sizes(config, args.tensor_parallel, tier)


def _check_version(report: Report) -> None:
    version = installed("vllm")
    report.fact("vllm", version or "not installed")
    low, high = (".".join(map(str, numbers)) for numbers in _compat.TESTED)
    if version is None:
        text = f"vLLM is not installed here: its version (tested: {low} up to below {high}) and hooks are not checked"
        report.warn("engine", text, "run this in the environment of the engine")
    else:
        if _compat.TESTED[0] <= _compat._numbers(version) < _compat.TESTED[1]:
            report.ok("engine", f"vLLM {version}, tested")
        else:
            text = f"vLLM {version}: expected {low} up to below {high}"
            report.warn("engine", text, "it may work: the hooks below are what counts")
        _check_hooks(version, report)
    _check_device(report)


def _check_hooks(version: str, report: Report) -> None:
    path = "vllm.distributed.kv_transfer.kv_connector.v1.base"
    try:
        base = importlib.import_module(path).KVConnectorBase_V1
    except Exception as e:
        text = f"vLLM's connectors cannot be imported: {type(e).__name__}: {e}"
        report.error("engine", text, "mend the installation of vLLM")
        return
    wrong = [
        (name, expected, found)
        for name, expected in _compat.SIGNATURES.items()
        if (found := _compat.parameters(base, name)) != expected
    ]
    for name, expected, found in wrong:
        shown = "none" if found is None else f"({', '.join(found)})"
        text = f"vLLM {version}: expected {name}({', '.join(expected)}), found {shown}"
        report.error("engine", text, "install a version that was tested: kvist refuses this one")
    if not wrong:
        report.ok("engine", f"{len(_compat.SIGNATURES)} connector hooks are as in the tested vLLM")


def _check_device(report: Report) -> None:
    devices = [p for p in Path("/dev").glob("nvidia*") if p.name[6:].isdigit()]
    report.fact("NVIDIA GPUs", len(devices))
    if devices:
        text = "KvistConnector serves KV in CPU memory; an engine on this GPU runs as without kvist"
        advice = "use OffloadingConnector with KvistTier below vLLM's CPU tier (docs/vllm.md)"
        report.warn("engine", text, advice)


def _check_fields(given: Mapping[str, Any], report: Report) -> None:
    known = set(FIELDS)
    try:
        from vllm.config import KVTransferConfig

        known |= {field.name for field in dataclasses.fields(KVTransferConfig)}
    except Exception:
        # Without vLLM there is only what the tested version has.
        pass
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            text = f"kv_transfer_config: unknown key {key!r}{hint}"
            report.error("settings", text, "vLLM refuses keys that it does not know")
    role = given.get("kv_role")
    if role != "kv_both":
        text = f"kv_role: expected 'kv_both', found {role!r}"
        report.error("settings", text, "a cache both stores and loads")


def _check_connector(given: Mapping[str, Any], report: Report) -> None:
    if (path := given.get("kv_connector_module_path")) != "kvist.vllm":
        text = f"kv_connector_module_path: expected 'kvist.vllm', found {path!r}"
        report.error("settings", text, "vLLM does not find KvistConnector without it")
    policy = given.get("kv_load_failure_policy", "fail")
    report.fact("kv_load_failure_policy", policy)
    if policy == "recompute":
        report.ok("settings", "a block that cannot be loaded is computed")
    elif policy == "fail":
        text = 'kv_load_failure_policy is "fail": a request whose blocks cannot be loaded ends with an error'
        report.warn("settings", text, 'set "kv_load_failure_policy": "recompute"')
    else:
        text = f"kv_load_failure_policy: expected 'recompute' or 'fail', found {policy!r}"
        report.error("settings", text, 'set "kv_load_failure_policy": "recompute"')
    text = "keys are kvist's own: PYTHONHASHSEED and prefix_caching_hash_algo do not matter"
    report.ok("settings", text)


def _tier(extra: Mapping[str, Any], report: Report) -> dict[str, Any] | None:
    """The settings of kvist's tier; none if there is none."""
    tiers = extra.get("secondary_tiers")
    tiers = tiers if isinstance(tiers, list) else []
    ours = [t for t in tiers if isinstance(t, Mapping) and t.get("type") == "KvistTier"]
    if extra.get("spec_name") != "TieringOffloadingSpec":
        text = f"spec_name: expected 'TieringOffloadingSpec', found {extra.get('spec_name')!r}"
        report.error("settings", text, "secondary tiers are those of TieringOffloadingSpec")
    if len(ours) != 1:
        text = f"secondary_tiers: expected one of type 'KvistTier', found {len(ours)}"
        report.error("settings", text, "docs/vllm.md has an example")
        return None
    settings = dict(ours[0])
    if (path := settings.get("module_path")) != "kvist.vllm.tier":
        text = f"module_path: expected 'kvist.vllm.tier', found {path!r}"
        report.error("settings", text, "vLLM does not find KvistTier without it")
    # What the tier takes before it reads its settings.
    return {k: v for k, v in settings.items() if k not in ("type", "module_path", "locality")}


def _check_hashes(algorithm: str, report: Report) -> None:
    report.fact("prefix_caching_hash_algo", algorithm)
    seed = os.environ.get("PYTHONHASHSEED")
    report.fact("PYTHONHASHSEED", seed if seed is not None else "not set")
    if algorithm not in LONG_HASHES:
        text = f"prefix_caching_hash_algo: expected {' or '.join(LONG_HASHES)}, found {algorithm!r}: the tier takes no block"
        report.error("settings", text, "leave it at sha256")
    elif algorithm == "sha256":
        text = "sha256 hashes depend on Python's version: engines of another one find nothing"
        report.warn("settings", text, "use sha256_cbor for a directory that outlives an upgrade")
    else:
        report.ok("settings", "sha256_cbor hashes are the same in every process")
    if seed is not None:
        text = f"hashes begin with PYTHONHASHSEED={seed}: only engines with the same one meet"
        report.warn("settings", text, "keep it the same in every start, or unset it")


def _facts(config: Config, tier: bool, report: Report) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "key_secret_file":
            value = "given" if value is not None else None
        elif isinstance(value, bytes):
            value = value.hex()
        elif isinstance(value, Path):
            value = str(value)
        report.fact(field.name, value)
    layout = "opaque: rows of the engine's bytes" if tier else "opaque: the engine's bytes"
    if config.canonical and not tier:
        layout = "canonical if the engine's writer shows a known layout when it starts, else opaque"
    report.fact("layout", layout)


def _check_settings(config: Config, report: Report) -> None:
    if config.codec_disk not in ("lossless", "raw"):
        text = f"codec.disk: expected 'lossless' or 'raw', found {config.codec_disk!r}"
        report.error("settings", text, "lossless is the default")
    if config.disk_dir is None:
        text = "no disk_dir: blocks are kept in memory alone, and go with the process"
        report.warn("settings", text, "set disk_dir and disk_bytes to keep them")
    elif not config.disk_dir.is_absolute():
        text = f"disk_dir: {config.disk_dir} is below wherever the engine is started"
        report.warn("settings", text, "name a whole path")
    if config.key_secret_file is None and config.disk_dir is None:
        report.ok("settings", "keys are of this process alone: a random secret")
    if config.multi_tenant:
        report.ok("settings", "requests without a cache_salt are neither stored nor loaded")


def _check_workers(config: Config, workers: int, report: Report) -> None:
    if workers == 1:
        return
    report.fact("host_bytes, all workers", config.host_bytes * workers)
    text = (
        f"{workers} workers have a store each: host_bytes and disk_bytes count {workers} times"
        ", and each has a directory below disk_dir"
    )
    report.warn("settings", text, "no engine with several workers was run with kvist yet")


def _fingerprint(config: Config, arguments: list[str], wanted: bool, report: Report) -> None:
    """What keys know the model by. The rest of the namespace is the engine's to resolve."""
    rest = "and of the model's configuration, dtype and quantisation as the engine resolves them"
    if config.model is not None:
        report.fact("namespace", f"of the given model {config.model.hex()}, {rest}")
        return
    path = next((a.removeprefix("--model=") for a in arguments if a.startswith("--model=")), None)
    if not wanted or path is None:
        report.fact("namespace", f"of the weights (--fingerprint reads them), {rest}")
        return
    try:
        digest = _identity.weights_digest(path, None)
    except OptionError as e:
        report.error("model", str(e), "the engine would not start")
        return
    report.fact("namespace", f"of the weights {digest.hex()}, {rest}")


def _sizes(config: Config, workers: int, tier: bool) -> list[str]:
    """Sizes of all workers together, and the directory of the first."""
    arguments = [f"--host-bytes={config.host_bytes * workers}"]
    if config.disk_dir is not None:
        folder = config.disk_dir / (worker_folder(0, 0, workers) if workers > 1 else "")
        arguments += [f"--disk-bytes={config.disk_bytes * workers}", f"--dir={folder}"]
        # The connector makes what is missing above it, a tier does not.
        arguments += [] if tier else ["--parents-made"]
    return arguments
