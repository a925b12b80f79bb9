# Everything a developer or CI needs; `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The marker is rebuilt when the dependencies change, so that every target can depend on it.
READY := $(VENV)/.ready

.PHONY: help setup demo test check format lint types imports bench explore faults handoffs browser clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

setup: $(READY) ## build .venv with everything installed

$(READY): pyproject.toml
	@echo "rowcast: building $(VENV) (Python packages only)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "rowcast needs Python 3.11 or newer; say which with: make PYTHON=python3.12 setup"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]' --group dev
	@touch $(READY)

demo: $(READY) ## run the whole thing on an embedded PostgreSQL and open the page
	@$(BIN)/rowcast demo $(DEMO)

test: $(READY) ## run all tests (installs Debian's chromium for the browser tests where it is missing)
	@$(BIN)/python tests/ensure_browser.py
	@$(BIN)/python -m pytest $(TESTS)

check: lint types imports test ## everything CI runs

format: $(READY) ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lint: $(READY)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: $(READY)
	@$(BIN)/mypy
	@$(BIN)/pyright

imports: $(READY)
	@$(BIN)/lint-imports

bench: $(READY) ## measure, and write docs/performance.md
	@$(BIN)/python -m bench

explore: $(READY) ## the client's store in every order of three mutations, three commits and all faults of the stream
	@ROWCAST_EXPLORE=full $(BIN)/python -m pytest -q tests/client/test_exploration.py

faults: $(READY) ## random writers, subscribers and faults against an oracle, both captures; FAULTS_SECONDS=600, FAULTS_SEED=…
	@$(BIN)/python -m tests.faults

handoffs: $(READY) ## snapshots under 32 writers beside hand-offs that do not work; HANDOFFS_SNAPSHOTS=2000, HANDOFFS_SEED=…
	@$(BIN)/python -m tests.faults.handoffs

clean: ## remove the virtual environment and caches
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
