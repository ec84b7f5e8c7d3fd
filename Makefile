# `make` lists the targets. The first one you run creates .venv and installs everything into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOP := $(VENV)/.installed-dev
# Two processes, each a file at a time.
TWICE := -n 2 --dist loadfile

export FLWR_TELEMETRY_ENABLED ?= 0
export FLWR_DISABLE_UPDATE_CHECK ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Run the label-smoothing scenario and write its report
	$(BIN)/fl-sim run label-smoothing

test: lint ## Check format, lint and types, and run the tests that take seconds
	$(BIN)/pytest $(TWICE)

test-all: lint ## The same, with the tests that take minutes
	$(BIN)/pytest $(TWICE) -m "not gpu"

test test-all: export OMP_NUM_THREADS = 1

lint: $(DEVELOP) ## Check format, lint and types only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED) ## Run all benchmarks and write their tables: hours
	$(BIN)/fl-sim bench labels
	$(BIN)/fl-sim bench images
	$(BIN)/fl-sim bench defenses
	$(BIN)/fl-sim bench rounds
	$(BIN)/fl-sim bench simulator

clean: ## Remove caches and build outputs; runs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# What is imported is compiled then, which is a small part of it all.
INSTALL = $(BIN)/pip install --no-compile --editable

$(INSTALLED): pyproject.toml | $(BIN)/pip
	@echo "Installing into $(VENV); the first time, PyTorch takes a few minutes."
	$(INSTALL) .
	@touch $@

$(DEVELOP): pyproject.toml | $(INSTALLED)
	$(INSTALL) '.[dev]'
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("fl-sim needs Python 3.11 or later, found %d.%d; name another: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
