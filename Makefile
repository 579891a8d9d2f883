# The project's commands. `make demo` and `make test` set up a fresh machine by themselves; so do all the others.

.DEFAULT_GOAL := help
.PHONY: help demo test test-full bench lint format type unit docs build setup clean

BIN := .venv/bin
SEED ?= 1

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: ## a registry, an image, an engine and a sandboxed worker, end to end (BACKEND=… chooses the sandbox backend)
	@tools/setup.sh demo
	@PYTHONPATH=tools $(BIN)/python tools/demo.py $(if $(BACKEND),--backend $(BACKEND))

test: lint type ## what CI runs: lint, types, tests, with a seeded sample of the long ones (SEED=…)
	@tools/setup.sh test
	@echo 'test: pytest (20 to 30 minutes on two cores)'
	@$(BIN)/pytest --long-sample --seed=$(SEED)

test-full: lint type ## everything
	@tools/setup.sh test
	@$(BIN)/pytest

unit: ## the core's unit tests alone
	@tools/setup.sh base
	@$(BIN)/pytest tests/unit

bench: ## ratios against named references
	@tools/setup.sh test
	@PYTHONPATH=tools $(BIN)/python benchmarks/run.py

lint: ## ruff (rules and format) and flake8-async
	@tools/setup.sh base
	@echo 'lint: ruff'
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo 'lint: flake8-async (about a minute)'
	@tools/lint-async.sh

format: ## let ruff put the code in order
	@tools/setup.sh base
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

type: ## mypy and pyright, both strict
	@tools/setup.sh type
	@echo 'type: mypy (about a minute)'
	@$(BIN)/mypy
	@echo 'type: pyright (about a minute)'
	@$(BIN)/pyright

docs: ## the tests that keep the documentation true
	@tools/setup.sh base
	@$(BIN)/pytest tests/docs

build: ## wheels of all distributions, in dist/
	@tools/setup.sh base
	@tools/uv build --quiet --all-packages --wheel --out-dir dist

setup: ## set up the machine for development
	@tools/setup.sh test

clean: ## remove what was built, downloaded and installed
	rm -rf build dist .venv .tools .tox .mypy_cache .ruff_cache
