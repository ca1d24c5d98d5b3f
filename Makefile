# Everything runs in .venv, which the first target that needs it makes.
#
#   PYTHON  the interpreter .venv is made from (default: the first that is new enough)
#   ARGS    passed on: to pytest by `make test` and `make pytest`, to the demo by `make demo`

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 10))
CANDIDATES := python3.11 python3.12 python3.13 python3.10 python3.14 python3 python
PYTHON ?= $(shell for p in $(CANDIDATES); do \
	if "$$p" -c '$(NEW_ENOUGH)' 2>/dev/null; then echo "$$p"; break; fi; done)
BIN := .venv/bin
INSTALLED := .venv/.installed

# pyright would otherwise ask the package index whether it is the newest.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help install test lint pytest format demo docs clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

install: $(INSTALLED) ## make .venv and install the project into it, editable

test: lint pytest ## everything that has to pass

lint: $(INSTALLED) ## style, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

pytest: $(INSTALLED) ## the test suite alone, on all processors; ARGS="-k mamba"
	$(BIN)/pytest -n auto $(ARGS)

format: $(INSTALLED) ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(INSTALLED) ## train and examine a small model; ARGS="--help"
	$(BIN)/hooked-ssm demo $(ARGS)

docs: $(INSTALLED) ## build the documentation site, build/site/index.html
	$(BIN)/python -m sphinx -qW --keep-going -c docs -d build/doctrees . build/site
	@echo "Open build/site/index.html"

clean: ## remove caches and build artefacts, not .venv, not runs/
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv
	rm -rf .venv

$(BIN)/python:
	@$(if $(PYTHON),,echo "No Python 3.10 or newer found. Name one: make PYTHON=/path/to/python" >&2; exit 1)
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' || \
		{ echo "$(PYTHON) cannot be used: Python 3.10 or newer is needed, got $$("$(PYTHON)" -V 2>&1)." >&2; exit 1; }
	"$(PYTHON)" -m venv .venv || { rm -rf .venv; exit 1; }

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into .venv: some minutes the first time."
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev]'
	@touch $@
