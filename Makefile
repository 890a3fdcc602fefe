# make demo         fresh machine → virtual environment, install, fine-tune the embedded model, answers before and after
# make test         what CI runs: lint, types, imports, and the tests that are not slow
# make test-all     every test
# make fuzz         hostile files for the readers, the doctor and the converter alone; ten minutes, here as in test-all (FUZZ_SECONDS)
# make test-compat  the tests with the oldest transformers that Luthier supports, in .venv-compat
# make bench        Luthier beside its peers, each in an environment of its own: hours; BENCH=--quick to see that it runs
# make pictures     the pictures in README and docs, from a real run
# make lint         ruff, mypy and the import rule alone          make format   let ruff rewrite the code
# make clean        remove environments, caches and build folders; runs stay

PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
COMPAT := .venv-compat
PIP_FLAGS := --disable-pip-version-check --quiet
PACKAGING := pyproject.toml constraints.txt

# One thread for each process: two test processes on two cores are faster so than with the cores shared.
FUZZ_SECONDS ?= 600
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

.PHONY: demo test test-all test-compat fuzz bench pictures lint format clean
.DEFAULT_GOAL := test

demo: $(VENV)/.installed
	@bash recipes/tiny/demo.sh

test: lint
	$(TEST_ENV) $(BIN)/pytest -n 2 -m "not slow"

test-all: lint $(VENV)/.installed-fuzz $(VENV)/.installed-llamacpp
	$(TEST_ENV) LUTHIER_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/pytest -n 2

test-compat: $(COMPAT)/.installed
	$(TEST_ENV) $(COMPAT)/bin/pytest -n 2 -m "not slow"

fuzz: $(VENV)/.installed-fuzz
	$(TEST_ENV) LUTHIER_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/pytest tests/data/test_fuzz.py

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/bench.py $(BENCH)
	$(BIN)/python benchmarks/preferences.py
	$(BIN)/python benchmarks/reinforcement.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/serving.py $(filter --quick,$(BENCH))

pictures: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python docs/_reference/pictures.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) $(COMPAT) benchmarks/.envs build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first and by itself, pinned: without the pin pip may take a newer build with gigabytes of CUDA libraries.
$(VENV)/.installed: $(PACKAGING)
	@test -n "$(PYTHON)" || { echo "error: Luthier needs Python 3.11 or newer; set PYTHON=/path/to/python3" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt torch
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

# atheris is not to be had for every Python and system; without it hypothesis has the time for itself.
$(VENV)/.installed-fuzz: $(VENV)/.installed-dev
	-$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt 'atheris>=3.0'
	@touch $@

# llama.cpp is built from its source, which needs cmake and a compiler; where it cannot be, its tests are skipped and say so.
$(VENV)/.installed-llamacpp: $(VENV)/.installed-dev
	-CMAKE_BUILD_PARALLEL_LEVEL=$${CMAKE_BUILD_PARALLEL_LEVEL:-2} CMAKE_ARGS="-DLLAVA_BUILD=OFF" \
		$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[llamacpp]'
	@touch $@

$(COMPAT)/.installed: $(PACKAGING)
	@test -n "$(PYTHON)" || { echo "error: Luthier needs Python 3.11 or newer; set PYTHON=/path/to/python3" >&2; exit 2; }
	test -x $(COMPAT)/bin/python || $(PYTHON) -m venv $(COMPAT)
	sed 's/^transformers==.*/transformers==5.17.*/' constraints.txt > $(COMPAT)/constraints.txt
	$(COMPAT)/bin/python -m pip install $(PIP_FLAGS) -c $(COMPAT)/constraints.txt torch
	$(COMPAT)/bin/python -m pip install $(PIP_FLAGS) -c $(COMPAT)/constraints.txt -e '.[dev]'
	@touch $@
