# `make` lists the targets. The first two make .venv and install into it by themselves; a second call does not reinstall.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests run on all cores already: threads of the processes they start would only get into each other's way. One thread
# also adds in one order, whatever the machine.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal
INSTALLED := $(VENV)/.installed

# pip leaves compiling to the first import: where Python may not keep what it compiles, every process would do it again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test soak lint format docs bench clean

help:  ## show this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## train on the built-in world, adapt, and draw before, after and the control (10 minutes on 2 cores)
	$(BIN)/python -m uda_seg.demo

test: $(INSTALLED)  ## the tests, without the slow ones
	$(PYTEST) -m "not slow"

soak: $(INSTALLED)  ## all tests, the slow ones too
	$(PYTEST)

lint: $(INSTALLED)  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)  ## the documentation as a site, from docs/ and the docstrings: build/docs/index.html
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs

bench: $(INSTALLED)  ## where the time goes, as ratios measured in one run
	$(BIN)/python -m uda_seg.bench

clean:  ## remove the environment, caches and runs
	rm -rf $(VENV) outputs multirun build dist docs/api .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@
