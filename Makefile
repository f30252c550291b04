# `make` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEST_PROCESSES ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PARALLEL := -n $(TEST_PROCESSES) --dist loadgroup --no-loadscope-reorder
FUZZ_SECONDS ?= 60
# Of the integration tests, those that run in their own process and need what extras bring, or train whole networks.
IN_PROCESS := average full_disk hugging_face language last_batch metrics own_metrics reading rehearsal report resume_state \
	sparse tables token_files token_splits users_errors
DIST_VENV := .venv-dist
DIST_TOOLS := build==1.6.1 twine==7.0.0
LOWEST_VENV := .venv-lowest
STUBS_VENV := .venv-stubs
STUBS_TOOLS := grpcio-tools==$(shell sed -n 's/^TOOLS_VERSION = "\(.*\)"/\1/p' tools/stubs.py)

export RAY_USAGE_STATS_ENABLED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Hundreds of processes start in the tests, and each would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help venv demo dist test test-unit test-slow test-lowest fuzz lint stubs check-stubs docs check-docs clean

help:
	@echo 'make venv         install everything into $(VENV), as constraints.txt pins it'
	@echo 'make demo         fetch Fashion-MNIST, train 4 blocks on it, write a report (a few minutes on 2 cores)'
	@echo 'make test         run the tests but the slow ones (6 to 16 minutes on 2 cores)'
	@echo 'make test-unit    run those that start no process (30 to 90 seconds)'
	@echo 'make test-slow    run the slow ones: containers, hosts that are cut off, long drills, claims, many examples; see docs/testing.md'
	@echo 'make test-lowest  run the tests in one process with the oldest versions of what is needed; downloads 3 GB; see docs/testing.md'
	@echo 'make fuzz         feed hostile input to every decoder, $(FUZZ_SECONDS) seconds each, and draw new random examples; see docs/fuzzing.md'
	@echo 'make lint         check style, format and types'
	@echo 'make stubs        generate the gRPC stubs and docs/api.md from proto/; make check-stubs compares them'
	@echo 'make docs         generate the reference pages and the dashboards; make check-docs compares them'
	@echo 'make dist         build the wheel and the source distribution into dist/, and check them'
	@echo 'make clean        remove environments, caches and build products; runs and data stay'

# --- environment ------------------------------------------------------------------------------------------------------

venv: $(VENV)/complete

# The stamp is written last and removed first: without it the folder is what an interrupted installation left.
$(VENV)/complete: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make venv: Python 3.11 or later is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make venv PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -e $@ || rm -rf $(VENV)
	@rm -f $@
	@$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); this takes a minute or two"
	@$(BIN)/pip install --quiet -r constraints.txt && \
	 $(BIN)/pip install --quiet --no-build-isolation -c constraints.txt -e '.[dev,hf,s3]' || { \
	  echo >&2; \
	  echo "make venv: pip could not install everything; its message above names what is missing." >&2; \
	  echo "Without access to a package registry, put the wheels of everything in constraints.txt into a" >&2; \
	  echo "folder (pip download -d wheels -r constraints.txt, on a machine that has access), then run" >&2; \
	  echo "  PIP_NO_INDEX=1 PIP_FIND_LINKS=/path/to/wheels make venv" >&2; \
	  exit 1; }
	@touch $@

$(STUBS_VENV)/complete: tools/stubs.py
	@rm -rf $(STUBS_VENV)
	@$(PYTHON) -m venv $(STUBS_VENV)
	@$(STUBS_VENV)/bin/pip install --quiet $(STUBS_TOOLS)
	@touch $@

$(DIST_VENV)/complete: Makefile constraints.txt
	@rm -rf $(DIST_VENV)
	@$(PYTHON) -m venv $(DIST_VENV)
	@$(DIST_VENV)/bin/pip install --quiet $(DIST_TOOLS) $(shell grep '^setuptools==' constraints.txt)
	@touch $@

# As pyproject.toml allows it: all extras that the unit tests need, and no tools that need newer versions.
$(LOWEST_VENV)/complete: pyproject.toml constraints.txt constraints-lowest.txt
	@rm -rf $(LOWEST_VENV)
	@$(PYTHON) -m venv $(LOWEST_VENV)
	@$(LOWEST_VENV)/bin/pip install --quiet $(shell grep -E '^(setuptools|pytest|hypothesis|kubernetes)' constraints.txt)
	@$(LOWEST_VENV)/bin/pip install --quiet --no-build-isolation -c constraints-lowest.txt -e '.[hf,s3,metrics]'
	@touch $@

# --- use --------------------------------------------------------------------------------------------------------------

demo: venv
	@run=runs/demo-$$(date +%Y%m%d-%H%M%S) && \
	$(BIN)/lowdimfa data fetch fashion_mnist && \
	$(BIN)/lowdimfa train examples/fashion_mnist_cnn.yaml --run-dir "$$run" && \
	$(BIN)/lowdimfa report "$$run" && \
	echo "open $$run/report/index.html in a browser; the result, from $$run/result.json:" && \
	cat "$$run/result.json"

# The wheel is made of the source distribution: what that lacks fails here.
dist: $(DIST_VENV)/complete
	@rm -rf dist
	@$(DIST_VENV)/bin/python -m build --no-isolation --outdir dist . >/dev/null
	@$(DIST_VENV)/bin/twine check --strict dist/*

# --- checks -----------------------------------------------------------------------------------------------------------

test: venv
	@$(PYTEST) $(PARALLEL) -m 'not slow' tests

test-unit: venv
	@$(PYTEST) $(PARALLEL) -m 'not slow' tests/unit

test-lowest: $(LOWEST_VENV)/complete
	@OMP_NUM_THREADS=1 $(LOWEST_VENV)/bin/python -m pytest $(PARALLEL) -m 'not slow' tests/unit $(IN_PROCESS:%=tests/integration/test_%.py)

test-slow: venv
	@$(PYTEST) $(PARALLEL) -m 'slow or hypothesis' --hypothesis-profile many tests

fuzz: venv
	@$(BIN)/pip install --quiet --no-build-isolation -c constraints.txt -e '.[fuzz]'
	@status=0; for target in $$($(BIN)/python -m tests.fuzz.run --list); do \
	  OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.run $$target --seconds $(FUZZ_SECONDS) || status=1; \
	done; $(PYTEST) $(PARALLEL) -m hypothesis --hypothesis-profile new tests || status=1; exit $$status

lint: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

stubs: $(STUBS_VENV)/complete
	@$(STUBS_VENV)/bin/python -m tools.stubs
	@$(STUBS_VENV)/bin/python -m tools.api_page

check-stubs: $(STUBS_VENV)/complete
	@$(STUBS_VENV)/bin/python -m tools.stubs --check
	@$(STUBS_VENV)/bin/python -m tools.api_page --check

docs: venv
	@$(BIN)/python -m tools.configuration_page
	@$(BIN)/python -m tools.metrics_page
	@$(BIN)/python -m tools.dashboards
	@$(BIN)/python -m tools.prometheus_rule

check-docs: venv
	@$(BIN)/python -m tools.configuration_page --check
	@$(BIN)/python -m tools.metrics_page --check
	@$(BIN)/python -m tools.dashboards --check
	@$(BIN)/python -m tools.prometheus_rule --check

clean:
	@rm -rf $(VENV) .venv-* build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
