"""`python -m kvist doctor --host ...`: an engine's configuration, without the engine."""

import importlib.metadata
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from kvist.vllm import _compat

ROOT = Path(__file__).resolve().parents[3]
SHAPE = "2,1,64,bf16"


def run(*args, env=None):
    command = [sys.executable, "-m", "kvist", "doctor", *map(str, args)]
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **(env or {})},
    )


def connector(tmp_path, **changes):
    extra = {"host_bytes": "8MiB", "disk_dir": str(tmp_path / "store"), "disk_bytes": "64MiB"}
    config = {
        "kv_connector": "KvistConnector",
        "kv_connector_module_path": "kvist.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": extra,
    }
    return {k: v for k, v in {**config, **changes}.items() if v is not None}


def report(config, *args, env=None):
    """Exit status, the report, and its findings as (level, text) with the advice behind."""
    given = ["--host", "vllm", "--quick", "--json", "--config", json.dumps(config)]
    done = run(*given, "--geometry", SHAPE, *args, env=env)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    lines = [(f["level"], f"{f['text']} -> {f['advice']}") for f in found["findings"]]
    return done.returncode, found, lines


def facts(found):
    return {fact["name"]: fact["value"] for fact in found["host"]["facts"]}


def says(lines, level, *words):
    return any(kind == level and all(word in text for word in words) for kind, text in lines)


def test_a_right_configuration_is_resolved_and_measured(tmp_path):
    status, found, lines = report(connector(tmp_path))
    assert status == 0, lines
    assert not [line for line in lines if line[0] == "error"]
    known = facts(found)
    assert known["host_bytes"] == 8 << 20 and known["admit_min_tokens"] == 256
    assert known["disk_dir"] == str(tmp_path / "store") == found["directory"]["path"]
    assert known["kv_load_failure_policy"] == "recompute"
    assert known["layout"].startswith("canonical if")
    assert "--fingerprint" in known["namespace"]
    assert says(lines, "ok", "disk_bytes 64.0 MiB") and says(lines, "ok", "PYTHONHASHSEED")
    assert found["gain"]["token_bytes"] == 512 and len(found["gain"]["ways"]) == 3
    assert list(tmp_path.iterdir()) == [], "nothing is made"


WRONG = [
    ({"kv_connector": "KvistConector"}, "error", ["kv_connector", "did you mean 'KvistConnector'"]),
    ({"kv_connector_module_path": None}, "error", ["kvist.vllm", "found None"]),
    ({"kv_role": "kv_producer"}, "error", ["kv_both", "kv_producer"]),
    ({"kv_load_failure_policy": None}, "warning", ['is "fail"', "recompute"]),
    ({"kv_load_failure_policy": "retry"}, "error", ["'recompute' or 'fail'", "'retry'"]),
    ({"kv_rol": "kv_both"}, "error", ["unknown key 'kv_rol'", "did you mean 'kv_role'"]),
]


@pytest.mark.parametrize("changes, level, words", WRONG)
def test_what_is_wrong_around_kvists_keys_is_named(tmp_path, changes, level, words):
    status, _, lines = report(connector(tmp_path, **changes))
    assert says(lines, level, *words), lines
    assert status == (level == "error")


EXTRA = [
    ({"host_byte": "1GiB"}, ["unknown key 'host_byte'", "did you mean 'host_bytes'"]),
    ({"host_bytes": "much"}, ["host_bytes", "'8GiB'", "'much'"]),
    ({"disk_dir": "/x"}, ["disk_dir and disk_bytes together"]),
    ({"admit": {"min_tokens": -1}}, ["admit.min_tokens", "-1"]),
    ({"model": "abc"}, ["64 hexadecimal digits"]),
    ({"codec.disk": "zip"}, ["codec.disk", "'zip'"]),
]


@pytest.mark.parametrize("extra, words", EXTRA)
def test_what_is_wrong_in_kvists_keys_is_named(tmp_path, extra, words):
    status, found, lines = report(connector(tmp_path, kv_connector_extra_config=extra))
    assert says(lines, "error", *words), lines
    assert status == 1 and found["machine"]["cores"] > 0, "the rest is told all the same"


def test_a_tier_is_checked_with_its_hashes(tmp_path):
    ours = {"type": "KvistTier", "module_path": "kvist.vllm.tier", "host_bytes": "8MiB"}
    extra = {"spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": 1, "secondary_tiers": [ours]}
    config = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": extra,
    }
    status, found, lines = report(config, env={"PYTHONHASHSEED": "7"})
    assert status == 0, lines
    assert says(lines, "warning", "sha256_cbor") and says(lines, "warning", "PYTHONHASHSEED=7")
    assert facts(found)["layout"].startswith("opaque") and facts(found)["host_bytes"] == 8 << 20
    status, _, lines = report(config, "--hash-algo", "xxhash")
    assert status == 1 and says(lines, "error", "the tier takes no block")
    ours["multi_tenant"] = True
    assert says(report(config)[2], "error", "multi_tenant")
    extra["secondary_tiers"] = []
    assert says(report(config)[2], "error", "expected one of type 'KvistTier', found 0")


def test_workers_count_several_times(tmp_path):
    _, found, lines = report(connector(tmp_path), "--tensor-parallel", 4)
    assert facts(found)["host_bytes, all workers"] == 32 << 20
    assert found["directory"]["path"] == str(tmp_path / "store" / "engine0-worker0of4")
    assert says(lines, "ok", "the engine makes it"), "whatever is missing above it, too"
    assert says(lines, "warning", "4 workers") and says(lines, "ok", "disk_bytes 256.0 MiB")


def test_a_directory_that_cannot_be_used_is_an_error(tmp_path):
    (tmp_path / "store").write_text("a file")
    status, _, lines = report(connector(tmp_path))
    assert status == 1 and says(lines, "error", "Not a directory")


def test_a_model_is_found_and_its_weights_are_read(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    shape = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 64}
    (model / "config.json").write_text(json.dumps(shape))
    (model / "model.safetensors").write_bytes(b"weights")
    args = ["--quick", "--json", "--model", model]
    done = run(
        "--host", "vllm", "--config", json.dumps(connector(tmp_path)), "--fingerprint", *args
    )
    found = json.loads(done.stdout)
    assert found["model"]["layers"] == 3 and found["gain"]["token_bytes"] == 3 * 4 * 32 * 2
    from kvist.vllm._identity import weights_digest

    assert weights_digest(str(model), None).hex() in facts(found)["namespace"]
    found = json.loads(run("--host", "hf", *args).stdout)
    assert (found["host"]["name"], found["directory"]) == ("hf", None)
    assert facts(found)["torch"] and facts(found)["transformers"]
    done = run("--host", "hf", "--quick", "--json", "--model", "no/such-model")
    assert done.returncode == 1 and "not on this machine" in done.stdout


def test_mistakes_are_named_with_exit_status_2(tmp_path):
    config = json.dumps(connector(tmp_path))
    (tmp_path / "list.json").write_text("[]")
    cases = [
        (["--host", "vlm", "--config", config], "did you mean 'vllm'"),
        (["--host", "vllm"], "expected --config"),
        (["--host", "vllm", "--config", "{'a': 1}"], "expected JSON"),
        (["--host", "vllm", "--config", "/nonexistent.json"], "a file with one"),
        (
            ["--host", "vllm", "--config", '{"kv_connector_extra_config": 3}'],
            "expected an object, found int",
        ),
        (["--host", "vllm", "--config", tmp_path / "list.json"], "expected a JSON object"),
        (["--host", "vllm", "--config", config, tmp_path], "expected one directory"),
        (["--host", "vllm", "--config", config, "--tensor-parallel", 0], "1 or more"),
        (["--host", "hf", "--hots", "x"], "unrecognized arguments"),
        (["--host", "hf", "--geometry", "1"], "layers,kv_heads,head_dim,dtype"),
    ]
    for args, text in cases:
        done = run(*args)
        assert (done.returncode, done.stdout) == (2, ""), (args, done.stdout, done.stderr)
        assert text in done.stderr, (args, done.stderr)


class Hooks:
    """A base class with the hooks of the tested vLLM."""


for _name, _parameters in _compat.SIGNATURES.items():
    _body = f"lambda {', '.join(_parameters)}: None"
    setattr(Hooks, _name, eval(_body) if _parameters else property(lambda self: None))


@pytest.fixture
def engine(monkeypatch):
    """A vLLM of a version, with these hooks."""

    def made(version, base):
        name = "vllm.distributed.kv_transfer.kv_connector.v1.base"
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i]), types.ModuleType(parts[i - 1]))
        sys.modules[name].KVConnectorBase_V1 = base
        before = importlib.metadata.version
        monkeypatch.setattr(
            importlib.metadata, "version", lambda n: version if n == "vllm" else before(n)
        )
        from kvist._doctor_report import Report
        from kvist.vllm import _doctor

        found = Report("vllm")
        _doctor._check_version(found)
        return [(f["level"], f"{f['text']} -> {f['advice']}") for f in found.findings]

    return made


def test_versions_and_hooks_are_compared_with_the_tested_ones(engine):
    lines = engine("0.32.1", Hooks)
    assert says(lines, "ok", "0.32.1, tested") and says(
        lines, "ok", f"{len(_compat.SIGNATURES)} connector hooks"
    )
    assert says(engine("0.40.0", Hooks), "warning", "0.40.0", "below 0.33")
    changed = type("Changed", (Hooks,), {"take_events": lambda self, since: None})
    lines = engine("0.32.1", changed)
    assert says(lines, "error", "take_events(self), found (self, since)"), lines
