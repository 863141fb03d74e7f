# Each target stands alone on a machine with Python 3.11 or newer, pip, gcc and make.
#
#   make demo         two models, memory for one: the main job shown from start to recovery
#   make test         all tests, but those that need a real llama-server, systemd or a browser; WORKERS of them at once
#   make compiled     the programs in .venv/bin compiled to C, a fifth faster, for a server
#   make test-compiled  the tests of `make test`, on what is compiled
#   make test-llama   those, with a llama-server that is found or built
#   make test-systemd the service, under a systemd that is booted for it; says so where that cannot be done
#   make test-browser the pages that runnerlog writes, in a Chromium that is on the PATH, or RUNNERD_BROWSER=
#   make check        style, types, import rules, generated documents
#   make simulate     random worlds against the scheduler; SEEDS=10000 of them
#   make fuzz         hostile requests, runners' answers, calls and configurations; COUNT of each, from SEED on
#   make crash        kill daemons at every failpoint and at COUNT moments: is anything lost, or done twice?
#   make mutate       break its rules on purpose: do the worlds notice?
#   make bench        speed and memory, as ratios and figures
#   make bench-policy what the scheduling policies decide; ARGS=--full for all of it
#   make venv         .venv/ with the project and its test tools, as the other targets use it
#   make clean        remove what was made, but not the built llama-server
#
# PYTHON=/path/to/python chooses the interpreter that .venv/ is made with.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := test
.PHONY: compiled demo test test-compiled test-llama test-systemd test-browser check simulate fuzz crash mutate bench bench-policy venv clean

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
COMPILED := build/compiled
CAN_COMPILE = { command -v gcc >/dev/null && \
    [ -e "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ]; }
INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
COMPILE = echo "compiling: about two minutes" >&2 && RUNNERD_COMPILE=1 $(INSTALL) --no-build-isolation --no-deps
APART := tests/llama tests/systemd tests/browser
# Tests at once: as many as there are cores, and no more than tests/ports.py has ports for.
WORKERS ?= auto --maxprocesses 4
SEEDS ?= 500
SEED ?= 1
CANDIDATES := $(or $(PYTHON),python3 python3.11 python3.12 python3.13 python3.14)

demo: venv
	@$(BIN)/python examples/demo.py

test: venv
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(APART:%=--ignore=%)

test-llama: venv
	@server=$$(bash scripts/get_llama.sh | tail -n 1)
	RUNNERD_LLAMA_SERVER=$$server $(BIN)/python -m pytest tests/llama

test-systemd: venv
	@if ! command -v systemd-analyze >/dev/null; then
	    echo "test-systemd: skipped: there is no systemd-analyze"
	    exit 0
	fi
	$(BIN)/python -m pytest tests/systemd/test_units.py
	if reason=$$($(BIN)/python -m tests.systemd.box); then
	    $(BIN)/python -m pytest tests/systemd --ignore=tests/systemd/test_units.py
	else
	    echo "test-systemd: the rest is skipped, for systemd cannot be booted here: $$reason"
	fi

test-browser: venv
	@browser=$$($(BIN)/python -m tests.browser.chromium)
	RUNNERD_BROWSER=$$browser $(BIN)/python -m pytest tests/browser

check: venv
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/generate_docs.py --check
	$(BIN)/python -m pytest tests/unit/test_tidy.py

simulate: venv
	@$(BIN)/python -m tests.simulation.run --count $(SEEDS)

fuzz: venv
	@$(BIN)/python -m tests.fuzz.run --seed $(SEED) --count $(or $(COUNT),200000) $(ARGS)

crash: venv
	@$(BIN)/python -m tests.crash.run --seed $(SEED) --count $(or $(COUNT),1000)

mutate: venv
	@$(BIN)/python -m tests.simulation.mutations

test-compiled: $(COMPILED)/.built
	@if ! [ -e $(COMPILED)/statemachines ]; then
	    echo "test-compiled: skipped: nothing is compiled here"
	    exit 0
	fi
	export PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(COMPILED):$(CURDIR)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -o pythonpath="$(COMPILED) ." -m "not interpreted" \
	    $(APART:%=--ignore=%) $(ARGS)

bench: $(COMPILED)/.built
	@$(BIN)/python benchmarks/bench_store.py 60
	$(BIN)/python -m benchmarks.bench_scrape
	$(BIN)/python benchmarks/bench_opcodes.py --top 10
	for built in "" $(CURDIR)/$(COMPILED); do
	    export PYTHONPATH=$$built
	    $(BIN)/runnerd --version
	    $(BIN)/python benchmarks/bench_step.py
	    $(BIN)/python benchmarks/bench_relay.py
	    $(BIN)/python benchmarks/bench_daemon.py $${built:+--soak 1000000}
	done

bench-policy: venv
	@$(BIN)/python -c 'import scipy' 2>/dev/null || $(INSTALL) --no-build-isolation --editable '.[bench]'
	$(BIN)/python -m benchmarks.bench_policy $(ARGS)

venv: $(INSTALLED)

# Debian's Python comes without ensurepip: there the environment is made bare, and the system's pip fills it.
$(INSTALLED): pyproject.toml constraints.txt
	@python=
	for candidate in $(CANDIDATES); do
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
	        python=$$candidate
	        break
	    fi
	done
	if [ -z "$$python" ]; then
	    echo "runnerd needs Python 3.11 or newer; tried: $(CANDIDATES). Set PYTHON=/path/to/python" >&2
	    exit 1
	fi
	echo "making $(VENV) with $$("$$python" --version)" >&2
	if "$$python" -c 'import ensurepip' 2>/dev/null; then
	    "$$python" -m venv $(VENV)
	else
	    "$$python" -m venv --without-pip $(VENV)
	    "$$python" -m pip --python $(BIN)/python install -qq pip
	fi
	$(INSTALL) setuptools
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	touch $@

# For a server: what requests and steps run through is compiled, and the programs in .venv/bin are those. After a change
# of the source, again; `make venv` goes back to the source itself.
compiled: venv
	@if ! $(CAN_COMPILE); then
	    echo "make compiled needs gcc and Python's headers (Debian: apt install gcc python3-dev)" >&2
	    exit 1
	fi
	$(COMPILE) --force-reinstall .
	rm -f $(INSTALLED)
	$(BIN)/runnerd --version

# The same beside the source, for tests and benchmarks. Where nothing can be compiled it is empty, and they use the source.
$(COMPILED)/.built: setup.py scripts/build_backend.py $(INSTALLED) $(shell find daemon events statemachines migrations -type f -not -name '*.pyc')
	@rm -rf build
	mkdir -p $(COMPILED)
	if $(CAN_COMPILE); then
	    $(COMPILE) --target $(COMPILED) .
	else
	    echo "nothing is compiled: there is no gcc, or there are no headers of Python's" >&2
	fi
	touch $@

clean:
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.llama/*' -prune -exec rm -rf {} +
