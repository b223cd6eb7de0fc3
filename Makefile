# Every target sets up what it needs; only Python 3.11, git and make must be installed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamps
# Without a GPU the CPU build of torch is taken where pip's configuration offers one; `===` asks for the plain build.
TORCH := torch$(if $(shell command -v nvidia-smi 2>/dev/null),===,==)2.13.0
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1
export RAY_USAGE_STATS_ENABLED := 0

FAST := -n 2 --dist loadscope -m "not slow and not heavy and not browser"

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast coverage test-long lint serve bench compile hooks

help: ## Show this help.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)/packages ## Create .venv with everything in it (once).

demo: setup ## From video to a live character: one whole run, then a table, report.html and talk.mp4.
	$(BIN)/lpm run data=demo

test: lint ## Lint, types and all tests that take minutes.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope -m "not slow"

test-fast: setup ## Unit and contract tests in a minute: no torch.compile, no subprocess pipelines, no browser.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(FAST) --durations 5

coverage: setup ## Line coverage of the fast tests, package by package.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(FAST) --cov --cov-report=
	@$(BIN)/python -m tests.coverage_table

test-long: setup ## The tests that take an hour.
	$(BIN)/python -m pytest -m slow --timeout 7200

lint: setup ## Style, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

serve: setup ## Open the live character of the last run in the browser.
	$(BIN)/lpm serve

# Benchmarks that take many minutes; run them by name: python -m tests.benchmarks.NAME.
LONG := ablation defects labels
bench: setup ## Measure: one table each for the performer, curation, training, distillation, streaming and live serving.
	@set -e; for name in $(filter-out _% $(LONG),$(patsubst tests/benchmarks/%.py,%,$(wildcard tests/benchmarks/*.py))); do \
		echo "== $$name"; $(BIN)/python -m tests.benchmarks.$$name; done

hooks: setup ## Let git run the quick checks before each commit (needs pre-commit).
	pre-commit install

compile: setup ## Write the KFP pipeline to build/lpm.yaml.
	$(BIN)/lpm compile

$(STAMP)/venv:
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) is missing: install Python 3.11, or say where it is: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
		echo "$(PYTHON) does not start as Python 3.11: install it, or say where it is: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMP)
	@touch $@

# torch comes first and through pip, which knows where this machine's wheels are; nothing after it replaces it.
$(STAMP)/torch: $(STAMP)/venv
	$(BIN)/python -m pip install --quiet uv==0.13.9
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	@touch $@

# Byte code is written at once: where processes may not write it (PYTHONDONTWRITEBYTECODE), each would compile it anew.
$(STAMP)/packages: $(STAMP)/torch pyproject.toml constraints.txt requirements-nodeps.txt
	$(BIN)/uv pip install --quiet -c constraints.txt -e ".[all]"
	$(BIN)/uv pip install --quiet --no-deps --compile-bytecode -r requirements-nodeps.txt
	@touch $@
