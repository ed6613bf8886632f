# Needs Python 3.10 or newer (3.11 for the exact versions in constraints.txt), pip and make; everything goes into .venv.
#
#   make demo        enlarge a photograph from examples/ into out/
#   make test        set-up, lint, types, and the next two
#   make test-unit          tests of the parts: about a minute
#   make test-integration   tests of whole runs: browser, cluster, torchrun, recipes, commands on whole pictures
#   make test-core   the tests of the core in an environment without extras
#   make test-slow   tests that take many minutes, download or need weights; not in CI
#   make check       lint, types and the rules of the house
#   make clean       remove what was made, except .venv

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip
CONSTRAINED := $(PIP) install --quiet -c constraints.txt

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: demo test test-unit test-integration test-core test-slow check clean

demo: .venv/core.stamp
	$(BIN)/python -m nextscale.demo

test: check test-unit test-integration

test-unit: .venv/dev.stamp
	OMP_NUM_THREADS=1 scripts/test -m "not slow and not integration and not rules" \
	  -n auto --maxprocesses 4 --dist worksteal -p no:logging

test-integration: .venv/dev.stamp
	scripts/test -m "integration and not slow"

test-core: .venv/dev.stamp
	PIP_CONSTRAINT=constraints.txt $(BIN)/python scripts/environments.py --newest --borrow-torch $(BIN)/python

test-slow: .venv/dev.stamp
	scripts/test -m slow

check: .venv/dev.stamp
	scripts/check

clean:
	rm -rf out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find nextscale reproduce benchmarks tests scripts examples -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment without pip (a Debian without python3-venv leaves one) is worth nothing: remove it.
$(BIN)/python:
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# The stamps make a second call instant; they are older than these files only after an update.
# torch goes first and by pip alone: so it comes from wherever pip is set up to find it.
.venv/core.stamp: constraints.txt pyproject.toml | $(BIN)/python
	@echo "Installing nextscale into .venv (the first time takes minutes: torch is large)"
	$(CONSTRAINED) torch
	$(CONSTRAINED) -e .
	touch $@

.venv/dev.stamp: .venv/core.stamp
	$(CONSTRAINED) -e '.[dev]'
	touch $@
