# make quickstart   train and evaluate on rendered scenes, from nothing
# make test         the tests, within 12 minutes on 2 cores
# make test-slow    the tests that take minutes
# make lint         ruff and mypy
# make env          the environment alone, in .venv
# make constraints  pins the versions that resolve today, for each Python

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
CONSTRAINTS := $(wildcard constraints/python$(VERSION).txt)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
QUICKSTART_WORKDIR ?= runs/quickstart

.PHONY: quickstart test test-slow lint env constraints check-python clean

quickstart: $(VENV)/.installed
	$(BIN)/wsca train --config configs/scenes.py:quickstart --workdir $(QUICKSTART_WORKDIR)

test: $(VENV)/.tested
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(VENV)/.tested
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

lint: $(VENV)/.linted
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

env: $(VENV)/.installed

$(VENV)/bin/python: | check-python
	@$(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) cannot create virtual environments; install its venv module (Debian, Ubuntu: apt install python3-venv) and run make again" >&2; rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "Installing wsca_jax into $(VENV) (about 1 GB) ..."
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.tested: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "Installing wsca_jax and its test tools into $(VENV) (about 1 GB) ..."
	@$(INSTALL) -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.linted: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@$(INSTALL) -e '.[test,dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.tested

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: wsca_jax needs Python 3.11 or newer; $(PYTHON) is $(VERSION). Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }

constraints:
	rm -f constraints/*.txt
	for version in 3.11 3.12 3.13; do \
	  uv pip compile --quiet pyproject.toml --extra test --extra dev --python-version $$version \
	    --no-header --no-annotate -o constraints/python$$version.txt || exit 1; \
	done

clean:
	rm -rf $(VENV) .jax_cache .pytest_cache .ruff_cache .mypy_cache *.egg-info
