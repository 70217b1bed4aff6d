# install: the environment.  quickstart: the whole job, on the bundled example.  test: all tests.
# quick: tests without a base or a run, half a minute.  check: what CI should say.
# pocket: the bundled base and eyes again, from the font; five to six hours on two cores, goes on where it was interrupted.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install quickstart test quick check format bench pocket clean

install: $(VENV)/.installed

quickstart: install
	$(BIN)/finetune quickstart

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

quick: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not whole and not gpu and not network and not slow"

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/step.py

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
