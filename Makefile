# `make` lists the targets. Targets create .venv and install into it if necessary.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests already use all cores, so further threads would only compete. One thread
# also adds in one order, whatever the machine.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal
INSTALLED := $(VENV)/.installed

# pip compiles on first import; if Python may not write bytecode, every process would compile again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo notebooks test soak lint format docs bench clean

help:  ## show this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## train on Streets, adapt, and draw the results (10 minutes on 2 cores)
	$(BIN)/python -m uda_seg.demo

notebooks: $(INSTALLED)  ## execute notebooks/ into build/notebooks, as .ipynb and .html (15 minutes on 2 cores)
	$(BIN)/python scripts/run_notebooks.py

test: $(INSTALLED)  ## run the tests except slow ones
	$(PYTEST) -m "not slow"

soak: $(INSTALLED)  ## run all tests, including slow ones
	$(PYTEST)

lint: $(INSTALLED)  ## run ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## fix and format with ruff; strip the notebooks
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python scripts/run_notebooks.py --strip

docs: $(INSTALLED)  ## build the documentation site: build/docs/index.html
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs

bench: $(INSTALLED)  ## measure speed and memory, as ratios within one run
	$(BIN)/python -m uda_seg.bench

clean:  ## remove the environment, caches and runs
	rm -rf $(VENV) outputs notebooks/outputs multirun build dist docs/api .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@
