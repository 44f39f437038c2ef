# Everything a newcomer types. `make demo` and `make test` set themselves up.
PYTHON ?= python3
# Installed first, so that nothing else chooses torch's build.
TORCH ?= torch==2.13.0
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: setup check format lint type test

setup: .venv/ready
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check $(TORCH)
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	touch $@

check: lint type  ## format, lint, types

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
type: setup
	$(BIN)/pyright

test: setup  ## every test
	$(BIN)/pytest
