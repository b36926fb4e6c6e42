"""The stubs say what the extension module has, and the package is well typed."""

import subprocess
import sys
from pathlib import Path

import kvist

PACKAGE = Path(kvist.__file__).parent
PROJECT = Path(__file__).resolve().parents[1]


def run(*args, cwd):
    done = subprocess.run([sys.executable, "-m", *args], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_stubs_match_the_module():
    config = PROJECT / "pyproject.toml"
    run("mypy.stubtest", "kvist._kvist", "--mypy-config-file", config, cwd=PACKAGE.parent)


def test_the_package_is_typed():
    run("mypy", cwd=PROJECT)
    assert (PACKAGE / "py.typed").exists()


def test_importing_kvist_imports_no_framework():
    code = "import kvist, sys; print(sorted({'torch', 'transformers', 'vllm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
