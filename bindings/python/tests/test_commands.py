"""`python -m kvist` and the runnable examples, as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kvist.demo import text
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

ROOT = Path(__file__).resolve().parents[3]
MODELS = Path(os.environ.get("KVIST_MODELS_DIR", ROOT / ".cache" / "models"))
SMOLLM2 = MODELS / "smollm2-135m"


def python(*args, status=0):
    """What a run prints; its exit status must be as said."""
    command = [sys.executable, *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


def read_dump(path):
    """Header and arrays, as `docs/formats.md` describes them."""
    data = path.read_bytes()
    assert data[:12] == b"KVISTDUMP 1\n"
    end = 20 + int.from_bytes(data[12:20], "little")
    assert end % 64 == 0
    header = json.loads(data[20:end])
    arrays = {}
    for name, array in header["arrays"].items():
        assert array["offset"] % 64 == 0
        count = int(np.prod(array["shape"]))
        assert array["dtype"] == "f32" and array["nbytes"] == 4 * count
        arrays[name] = np.frombuffer(data, "<f4", count, array["offset"]).reshape(array["shape"])
    return header, arrays


def own_keys(directory, ids, layers):
    """Keys of the model's own cache, `[layers, tokens, kv_heads, dim]`."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(torch.tensor([ids]), past_key_values=cache)
    return np.stack([cache.layers[i].keys[0].transpose(0, 1).numpy() for i in layers])


@pytest.mark.parametrize("model", ["smollm2-135m", "gemma3-270m"])
def test_dump_writes_what_the_model_computed(tmp_path, model):
    directory = MODELS / model
    if model == "gemma3-270m" and not directory.exists():
        pytest.skip("the Gemma weights are fetched only when asked (KVIST_GEMMA=1)")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    out = tmp_path / "new" / "tiny.kvdump"
    args = ["--model", directory, "--tokens", 90, "--queries", 5]
    if model == "smollm2-135m":
        ids = text.build(tokenizer, 90, held_out=0).context[:90]
    else:
        args += ["--text", ROOT / "README.md"]
        # With the token that Gemma wants in front.
        ids = tokenizer((ROOT / "README.md").read_text()).input_ids[:90]
    assert "90 tokens, 5 queries" in python("-m", "kvist", "dump", "--out", out, *args)
    header, arrays = read_dump(out)
    assert (header["model"], header["tokens"], header["queries"]) == (model, 90, 5)
    layers, heads = header["layers"], header["kv_heads"]
    assert arrays["k"].shape == (len(layers), 90, heads, header["dim_k"])
    assert arrays["v"].shape == (len(layers), 90, heads, header["dim_v"])
    assert arrays["q"].shape == (len(layers), 5, header["q_heads"], header["dim_k"])
    assert np.allclose(arrays["k"], own_keys(directory, ids, layers), atol=2e-3)
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_mistakes_on_the_command_line_are_named(tmp_path):
    assert "did you mean 'dump'" in python("-m", "kvist", "dmup", status=2)
    dump = ["-m", "kvist", "dump", "--out", tmp_path / "x"]
    error = python(*dump, "--model", tmp_path, status=1)
    assert f"no model in {tmp_path}" in error
    error = python(*dump, "--model", SMOLLM2, "--tokens", 50, "--queries", 51, status=1)
    assert "queries: expected 1..=50, found 51" in error
    error = python(*dump, "--model", SMOLLM2, "--tokens", 10**7, status=1)
    assert "tokens: expected 1..=8192 for this model, found 10000000" in error
    assert not list(tmp_path.iterdir())


def test_calibrate_writes_a_profile_of_a_model_or_a_dump(tmp_path):
    source = ["--model", SMOLLM2, "--tokens", 700, "--queries", 12]
    how = ["--budget", 128, "--steps", 3]
    python("-m", "kvist", "dump", "--out", tmp_path / "dump", *source)
    of_model, of_dump = tmp_path / "new" / "a.json", tmp_path / "b.json"
    calibrate = ["-m", "kvist", "calibrate", *how]
    said = python(*calibrate, *source, "--out", of_model)
    assert "smollm2-135m, boxed with a budget of 128: 3 steps" in said and str(of_model) in said
    dump = ["--dump", tmp_path / "dump"]
    report = json.loads(python(*calibrate, *dump, "--json", "--out", of_dump))
    assert of_model.read_text() == of_dump.read_text() and len(report["heads"]) == 90
    never = json.loads(python(*calibrate, *dump, "--dense", "never", "--json"))
    assert never["after"]["tokens"] == 128 and never["after"]["missed"] < never["before"]["missed"]
    duo = ["--select", "duoattention", "--budget", 400]
    duo = python(*calibrate, *source, "--out", of_dump, *duo)
    assert "streaming" in duo and of_dump.read_text().count("streaming") == 45
    error = python(*calibrate, *source, "--out", of_dump, "--select", "full", status=1)
    assert "budget: expected none with select 'full'" in error
    error = python(*calibrate, *source, "--out", of_dump, "--dense", 2, status=2)
    assert "expected 0 to 1 or never, found 2" in error
    assert "none" in python(*calibrate, "--dump", tmp_path / "none", status=2)


def test_presets_are_listed():
    presets = python("-m", "kvist", "presets")
    assert all(name in presets for name in ("full", "quest", "boxed"))


EXAMPLES = sorted((ROOT / "examples" / "python").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(path):
    args = [SMOLLM2] if path.name.startswith("hf_") else []
    assert python(path, *args).strip()


def test_there_are_examples():
    assert len(EXAMPLES) >= 3
