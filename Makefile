# Everything runs in .venv, which the targets make and fill themselves; only python3, pip, git and make are needed.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install demo test test-extras test-slow lint types imports audit docs clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

# torch goes first and pinned: resolved along with the rest it may come as the build with gigabytes of CUDA.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) -e '.[dev]'
	@touch $@

.venv/.installed-docs: .venv/.installed
	$(PIP) -e '.[docs]'
	@touch $@

.venv/.installed-audit: .venv/.installed
	$(PIP) -e '.[audit]'
	@touch $@

install: .venv/.installed  ## make .venv and install Kinfold in it

demo: .venv/.installed  ## train eight networks on the embedded digits, print the estimate and where the report lies
	$(BIN)/kinfold train digits --tasks 8 --epochs 40 --seed 0

test: .venv/.installed-dev  ## run the tests and the examples of the docstrings, without the slow ones
	$(BIN)/python -m pytest -q -n 2 --doctest-modules src tests

test-extras: .venv/.installed-dev  ## run the tests with every optional package there is a use for
	$(PIP) -e '.[cluster,tracking,onnx,huggingface,images]' ipykernel nbclient
	$(BIN)/python -m pytest -q -n 2 --doctest-modules src tests

test-slow: .venv/.installed-dev  ## run the slow tests
	$(BIN)/python -m pytest -q -m slow

lint: .venv/.installed-dev  ## check format and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/.installed-dev  ## check types, strictly
	$(BIN)/mypy

imports: .venv/.installed-dev  ## check that imports run one way
	$(BIN)/lint-imports

audit: .venv/.installed-audit  ## check the code (bandit), the pinned packages (pip-audit, which asks PyPI), their licences
	$(BIN)/bandit -q -c pyproject.toml -r src
	$(BIN)/pip-audit -r constraints.txt --no-deps --disable-pip
	$(BIN)/python benchmarks/trust/licences.py

docs: .venv/.installed-docs  ## build the documentation site into build/site, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## remove .venv, builds and caches; runs stay
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -prune -exec rm -rf {} +
