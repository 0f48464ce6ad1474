# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Needs python3 with venv, and git; touches nothing outside this folder and
# the user's cache. pip's own configuration and environment apply.

PYTHON ?= python3
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

OFFLINE_VENV := .venv-wheelhouse
OFFLINE_PIP := $(OFFLINE_VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: help demo test lint install wheelhouse wheelhouse-check clean

help:
	@echo "make demo              triage of the crash dump that ships with the source"
	@echo "make test              the linters and the quick test suite"
	@echo "make wheelhouse        all packages, for an installation with no network"
	@echo "make wheelhouse-check  install from the wheelhouse alone, and run the demo"
	@echo "make clean             remove what the other targets made here"

# The triage of the demo dump ends with 1: it finds what was planted. Only 2,
# "could not look", is a failure of the demo.
demo: $(VENV)/.installed
	@code=0; $(BIN)/vmcore-tools triage --demo || code=$$?; \
	echo; \
	echo "vmcore-tools triage ended with exit code $$code (1: something is wrong in the dump)"; \
	test $$code -ne 2

test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.test-installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

install: $(VENV)/.installed

# Without python3-venv half an environment is left, which would pass for one.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/.test-installed: pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --editable '.[test]'
	@touch $(VENV)/.installed $@

# For this machine's Python version and architecture. The build backend is in
# it as well, so that the checkout itself can be installed from it.
wheelhouse: | $(BIN)/python
	$(PIP) wheel --quiet --wheel-dir wheelhouse 'setuptools>=64' '.[test]'
	@echo "$$(ls wheelhouse | wc -l) packages are in wheelhouse/"

wheelhouse-check:
	rm -rf $(OFFLINE_VENV)
	$(PYTHON) -m venv $(OFFLINE_VENV)
	$(OFFLINE_PIP) install --quiet --no-index --find-links wheelhouse --editable .
	$(OFFLINE_VENV)/bin/vmcore-tools list
	@code=0; $(OFFLINE_VENV)/bin/vmcore-tools triage --demo >/dev/null || code=$$?; \
	echo "installed with no network: the demo ended with exit code $$code"; \
	test $$code -ne 2

clean:
	rm -rf $(VENV) $(OFFLINE_VENV) build wheelhouse *.egg-info
