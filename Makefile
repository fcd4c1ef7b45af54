# Every target sets up what it needs: a virtual environment in .venv with the packages pyproject.toml names.
#   make demo PYTHON=python3.12     another interpreter (3.10 or newer) for a new .venv

PYTHON ?= python3
VENV   ?= .venv
# Test files run in parallel, those with slow tests first, each on one thread: threads of two processes would wait for
# one another. No test depends on how fast anything is. WORKERS=0 runs them one by one, in one process.
WORKERS ?= 2
PYTEST_ARGS ?=
PYTEST = $(if $(filter-out 0,$(WORKERS)),OMP_NUM_THREADS=1) \
  $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder

BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help demo test test-quick lint bench clean
.DELETE_ON_ERROR:

help:
	@echo "make demo        quantise, compile and time two networks on this CPU (under four minutes after the set-up)"
	@echo "make test        the whole test suite      make test-quick   without the tests marked slow"
	@echo "make lint        ruff and mypy             make bench        against ONNX Runtime and OpenVINO"
	@echo "make clean       remove .venv and everything built"

demo: $(VENV)/.installed-demo
	@$(BIN)/python -m examples.demo

test: $(VENV)/.installed-test
	@$(PYTEST) $(PYTEST_ARGS)

test-quick: $(VENV)/.installed-test
	@$(PYTEST) -m "not slow" $(PYTEST_ARGS)

# mypy reads the package as it is installed, with passes/ and schedules/ inside it: a tree of links says so.
CHECKED := build/typecheck
LINKED  := $(CHECKED)/tvm_int8
lint: $(VENV)/.installed-lint
	@$(BIN)/ruff check --quiet --output-format concise . && echo "ruff: clean"
	@rm -rf $(CHECKED) && mkdir -p $(LINKED)
	@ln -s $(CURDIR)/tvm_int8/*.py $(CURDIR)/tvm_int8/*/ $(CURDIR)/passes $(CURDIR)/schedules $(LINKED)
	@ln -s $(CURDIR)/benchmarks $(CURDIR)/examples $(CHECKED)
	@cd $(CHECKED) && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml -p tvm_int8 -p benchmarks -p examples

bench: $(VENV)/.installed-peers
	@$(BIN)/python -m benchmarks.compare $(BENCH_ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per set of extras; each is renewed when pyproject.toml changes.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "installing tvm_int8 with the extras of '$*' into $(VENV) (a few hundred MB the first time) ..."
	@$(BIN)/python -m pip install -qq --editable '.[$*]'
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "tvm_int8 needs Python 3.10 or newer, $(PYTHON) is not: run make PYTHON=python3.11 (or newer)" >&2; exit 1; }
	@command -v g++ >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null || \
	  { echo "tvm_int8 needs a C compiler to link what it exports: install gcc (apt install gcc)" >&2; exit 1; }
	@echo "creating $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) cannot create virtual environments: install its venv module (apt install python3-venv)" >&2; exit 1; }
