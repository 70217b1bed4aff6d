# install: the environment.  quickstart: the whole job, on the bundled example.  test: all tests.
# quick: tests without a base or a run, half a minute.  bits: that training computes what it did.  check: what CI should say.
# docs: the pages for users as a site, in build/docs.  docs-serve: the same at localhost, again at each change.
# pocket: the bundled base and eyes again, from the font; five to six hours on two cores, goes on where it was interrupted.
# fuzz: files that are spoilt in every way, to every reader, for ten minutes: make fuzz FUZZ_SECONDS=60 for one.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
# a file stays in one process, which shares what is dear; the long ones first
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder --durations 30 --durations-min 3

.PHONY: install quickstart test quick fuzz bits check format bench docs docs-serve pocket clean

install: $(VENV)/.installed

quickstart: install
	$(BIN)/finetune quickstart

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PARALLEL)

quick: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PARALLEL) -m "not whole and not gpu and not network and not slow"

FUZZ_SECONDS ?= 600
fuzz: $(VENV)/.installed-dev
	$(BIN)/python tests/fuzz.py --seconds $(FUZZ_SECONDS)

bits: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow tests/test_bits.py

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(PARALLEL)

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/step.py

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

pocket: $(VENV)/.installed-dev
	$(BIN)/python data/build_pocket.py

clean:
	rm -rf $(VENV) quickstart build dist

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/.python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	touch $@
