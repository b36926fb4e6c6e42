# What people and CI run. `make` alone lists the targets.
#
# Needs on the machine: cargo and rustc (version in Cargo.toml), a C compiler to link with, and
# python3 >= 3.10. Everything else is installed into .venv.
#
#   ARGS="..."          goes to `kvist demo`, `kvist eval` or `kvist bench`, or to pytest in `make test-python`
#   KVIST_VENV=DIR      the Python environment (default: .venv)
#   KVIST_NVRTC=DIR     the compiler of GPU kernels that tests use (default: the one of .venv)
#   KVIST_VLLM_VENV=DIR  the environment with vLLM (default: .venv-vllm)
#   KVIST_MODELS_DIR=DIR  the converted models (default: .cache/models)
#   KVIST_GEMMA=1       also fetch the Gemma 3 weights; you accept their terms with that

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

ARGS ?=
export KVIST_VENV ?= .venv
VENV := $(abspath $(KVIST_VENV))
export KVIST_VLLM_VENV ?= .venv-vllm
VLLM_PY := $(abspath $(KVIST_VLLM_VENV))/bin/python
PY := $(VENV)/bin/python
PY_SOURCES := $(wildcard bindings/python scripts benches/python examples/python)
RUFF := $(PY) -m ruff
RUFF_CONFIG := --config bindings/python/pyproject.toml

# Cargo, maturin and the benchmarks' Python peers see the same interpreter, so nothing is rebuilt
# because it changed. It exists only after `make setup`; commands that need it depend on that.
export PYO3_PYTHON := $(PY)
export KVIST_PYTHON := $(PY)
export HF_HUB_OFFLINE := 1

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

.PHONY: tools
tools:
	@for tool in cargo rustc cc; do \
	    command -v $$tool >/dev/null || { \
	        echo "error: '$$tool' not found. kvist is built with Rust (https://rustup.rs)" \
	             "and linked by a C compiler (gcc or clang)." >&2; exit 1; }; \
	done

# --- Environment --------------------------------------------------------------------------------

.PHONY: setup
setup: ## make .venv with torch, transformers and the tools (several GB, once)
	@scripts/setup.sh

.PHONY: models
models: setup ## convert the small real models into .cache/models (once)
	@$(PY) scripts/prepare_models.py

.PHONY: develop
develop: tools setup ## build the Python package (release) into .venv
	VIRTUAL_ENV=$(VENV) $(PY) -m maturin develop --release --manifest-path bindings/python/Cargo.toml

# --- Use ----------------------------------------------------------------------------------------

.PHONY: demo
demo: develop models ## long context on a real model: dense against kvist
	$(PY) -m kvist demo $(ARGS)

.PHONY: eval
eval: develop models ## answers of a real model: selectors against full attention (goes on if stopped)
	$(PY) -m kvist eval --out out/eval $(ARGS)

.PHONY: bench
bench: tools setup ## measure kernels and selectors against peers (ARGS="--help")
	cargo run --release --package kvist-cli --bin kvist -- bench $(ARGS)

.PHONY: bench-peers
bench-peers: tools setup ## make what `bench store` and `cluster` compare with: LMCache, foyer, faiss
	@scripts/bench-peers.sh

.PHONY: bench-vllm
bench-vllm: wheel models ## the first token in vLLM by who keeps the prefix: kvist, vLLM's own tier, LMCache
	@scripts/setup-vllm.sh
	$(VLLM_PY) -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall \
	    dist/kvist-*.whl
	@scripts/bench-peers-vllm.sh
	.venv-vllm-peers/bin/python bindings/python/tests_engines/peers.py $(ARGS)

.PHONY: wheel
wheel: tools setup ## build the wheel into dist/ (GPUS=80,90: with kernels for these, compiled in advance)
	rm -rf bindings/python/python/kvist/cubin
	$(if $(GPUS),KVIST_NVRTC=$$(scripts/nvrtc.sh) cargo run --release -q -p kvist-cli -- prebuild \
		bindings/python/python/kvist/cubin --gpu $(GPUS))
	VIRTUAL_ENV=$(VENV) $(PY) -m maturin build --release --manifest-path bindings/python/Cargo.toml --out dist

# --- Checks -------------------------------------------------------------------------------------

.PHONY: test
test: test-rust test-python test-misuse ## all tests, Rust and Python

# Without kvist-python: its tests are Python, and a Rust test of it would need libpython to link.
RUST_TESTED := --workspace --exclude kvist-python

.PHONY: test-rust
test-rust: tools setup ## Rust tests and doc tests
	@export KVIST_NVRTC=$${KVIST_NVRTC-$$(scripts/nvrtc.sh)}; \
	if cargo nextest --version >/dev/null 2>&1; then \
	    echo "cargo nextest run $(RUST_TESTED)"; \
	    cargo nextest run $(RUST_TESTED); \
	else \
	    echo "cargo test $(RUST_TESTED) --lib --bins --tests (cargo-nextest is not installed)"; \
	    cargo test $(RUST_TESTED) --lib --bins --tests; \
	fi
	cargo test $(RUST_TESTED) --doc

.PHONY: soak
soak: ## the reliability tests with large scopes, and a store under pressure (KVIST_SOAK=20)
	@scripts/soak.sh

.PHONY: fuzz
fuzz: tools ## fuzz every target for KVIST_FUZZ=60 seconds (installs cargo-fuzz)
	@scripts/fuzz.sh

.PHONY: sanitize
sanitize: tools ## unit and corpus tests under AddressSanitizer and LeakSanitizer
	@scripts/sanitize.sh

.PHONY: shuttle
shuttle: tools ## the prefix store under a model checker's scheduler
	RUSTFLAGS="--cfg kvist_shuttle" cargo test --target-dir target/shuttle -p kvist --test shuttle -- --nocapture

.PHONY: mutants
mutants: ## seed known bugs one by one: the tests must find each
	@scripts/mutants.sh

.PHONY: test-python
test-python: develop models ## Python tests, with the real models
	cd bindings/python && $(PY) -m pytest tests $(ARGS)

.PHONY: test-misuse
test-misuse: develop ## Python tests of wrong calls, with the interpreter's own checks on
	cd bindings/python && $(PY) -X dev -m pytest tests/test_prefix_abuse.py tests/test_misuse.py

.PHONY: test-engines
test-engines: wheel models ## tests inside a real vLLM on the CPU (makes .venv-vllm, 6 GB, once)
	@scripts/setup-vllm.sh
	$(VLLM_PY) -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall \
	    dist/kvist-*.whl
	cd bindings/python && $(VLLM_PY) -m pytest tests_engines $(ARGS)

.PHONY: lint
lint: tools setup ## formatting, clippy, rustdoc, ruff: warnings are errors
	cargo fmt --all -- --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --package kvist --package kvist-kernels -- -D warnings  # without the GPU's part
	RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps
	$(RUFF) check $(RUFF_CONFIG) $(PY_SOURCES)
	$(RUFF) format --check $(RUFF_CONFIG) $(PY_SOURCES)

.PHONY: format
format: tools setup ## format the Rust and Python sources
	cargo fmt --all
	$(RUFF) format $(RUFF_CONFIG) $(PY_SOURCES)

.PHONY: ci
ci: ## what CI runs
	.ci/run

.PHONY: clean
clean: ## remove what was built (keeps .venv and the models)
	cargo clean
	rm -rf dist out bindings/python/python/kvist/*.so
	find bindings examples benches scripts -type d -name __pycache__ -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## remove .venv and the models too
	rm -rf $(VENV) .venv-peers $(KVIST_VLLM_VENV) .venv-vllm-peers .cache
