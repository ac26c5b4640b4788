# make demo   a real family: made, imported, evolved and shown
# make test   all tests
# make check  format, lint, types, layers
# make bench  every benchmark, each a table
# make pictures  those of the README and docs/plots.md anew
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench pictures clean

$(VENV)/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# torch first and by its pin: whatever asks for it later finds it there
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,web]'
	touch $@

demo: $(VENV)/.made
	$(BIN)/kinbase demo

test: $(VENV)/.made
	$(BIN)/python -m pytest

# Types and layers are checked on a staged install: the checkers do not follow an editable one.
check: $(VENV)/.made
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/check .
	cd build/check && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p kinbase
	cd build/check && PYTHONPATH=. ../../$(BIN)/lint-imports --config ../../pyproject.toml --cache-dir ../../.import_linter_cache

bench: $(VENV)/.made
	for benchmark in benchmarks/*.py; do echo "== $$benchmark"; $(BIN)/python $$benchmark || exit 1; done

pictures: $(VENV)/.made
	$(BIN)/python docs/pictures.py

clean:
	rm -rf $(VENV) build kinbase.egg-info kinbase-demo
