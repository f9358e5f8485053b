# `make help` lists the targets. Everything runs in .venv, which `make setup` (or the first target that needs it) makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo study search select retrain sweep tabulate report dashboard test test-slow test-gpu lint format bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python $(shell $(PYTHON) -V 2>&1 | cut -d" " -f2) is too old: 3.10 or newer is needed (make PYTHON=...)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

setup: $(VENV)/installed ## make .venv and install the project with its tools

demo: $(VENV)/installed ## search and retrain on handwritten digits, in minutes on a CPU
	rm -rf runs/demo
	$(BIN)/python -m src.search experiment=demo folder=runs/demo/search
	$(BIN)/python -m src.retrain experiment=demo_retrain genotype=runs/demo/search/genotype.json folder=runs/demo/retrain
	$(BIN)/python -m src.report runs/demo

study: $(VENV)/installed ## is a search better than chance, on a small space of which every architecture was trained; ARGS="seeds=20"
	$(BIN)/python -m src.study $(ARGS)

search: $(VENV)/installed ## the paper's search on CIFAR-10, second order; ARGS="seed=1 trainer=gpu"
	$(BIN)/python -m src.search order=2 $(ARGS)

select: $(VENV)/installed ## an architecture by perturbation (DARTS-PT); ARGS="resume=runs/search/RUN"
	$(BIN)/python -m src.select $(ARGS)

retrain: $(VENV)/installed ## the paper's evaluation; ARGS="genotype=runs/search/RUN/genotype.json trainer=gpu"
	$(BIN)/python -m src.retrain $(ARGS)

sweep: $(VENV)/installed ## both orders with four seeds; ARGS="trainer=gpu"
	$(BIN)/python -m src.search --multirun order=1,2 seed=0,1,2,3 $(ARGS)

tabulate: $(VENV)/installed ## train every architecture of a small space; ARGS="space=my_space data=my_data"
	$(BIN)/python -m src.tabulate $(ARGS)

report: $(VENV)/installed ## a table and pages of all runs; RUN=runs/search/RUN for one
	$(BIN)/python -m src.report $(or $(RUN),runs)

dashboard: $(VENV)/installed ## a workspace for the runs in Weights & Biases (docs/dashboard.md); ARGS="PROJECT"
	$(BIN)/python -m src.dashboard $(ARGS)

test: $(VENV)/installed ## the tests
	$(BIN)/python -m pytest

test-slow: $(VENV)/installed ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/installed ## the tests that need a GPU
	$(BIN)/python -m pytest -m gpu -n 0 -W default -rx

lint: $(VENV)/installed ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/installed ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed ## this code against the paper's as published, side by side; ARGS=--quick is smaller
	$(BIN)/python -m src.bench $(ARGS)

clean: ## remove .venv and caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
