# Everything a newcomer needs: `make demo` and `make test`. Each sets up first, once; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STARTED := $(shell date +%s)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all gpu lint format ablation-iest clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | column -t -s:

setup: $(STAMP)  ## create .venv and install everything into it (skipped when nothing changed)

# The lock pins every version; uv installs in under a minute what pip does in several.
$(STAMP): pyproject.toml .requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(None if sys.version_info >= (3, 11) else f"monoface needs Python 3.11 or newer, but $(PYTHON) is {v}: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	$(BIN)/uv pip install --python $(BIN)/python --link-mode=copy -r .requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --link-mode=copy --no-deps -e .
	touch $@

demo: setup  ## the main job: make data, train CEST, score it, reconstruct photos, print where the results are
	$(BIN)/python -m benchmarks.demo --started $(STARTED)

ablation-iest: setup  ## CEST against its independent variant at the same budget, several seeds
	$(BIN)/python -m benchmarks.ablation iest

test: setup  ## all quick tests (minutes)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not cuda"

test-all: setup  ## also the long trainings
	$(BIN)/python -m pytest -m "not cuda"

gpu: setup  ## the tests and the speed benchmark that need an NVIDIA GPU, into benchmarks/speed/results
	$(BIN)/python -m benchmarks.speed gpu

lint: setup  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup  ## resolve the newest allowed versions into .requirements.lock
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra dev --upgrade --quiet \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml -o .requirements.lock

clean:  ## remove what was made here, but for the environment
	rm -rf runs data .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
