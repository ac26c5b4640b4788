# make demo   a real family: made, imported, evolved and shown
# make test   all tests
# make test TESTS=tests/kinship  some of them
# make check  format, lint, types, layers
# make bench  every benchmark at a small size, each a table
# make pictures  those of the README and docs/plots.md anew
# make hooks  ruff before every commit
# make lock   constraints.txt anew, with the newest releases that pyproject.toml allows
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench pictures hooks lock clean

# torch first and by its pin: whatever asks for it later finds it there. The build backend is pinned as well.
install = $(1)/bin/python -m pip install --quiet --upgrade -c $(2) pip setuptools \
	&& $(1)/bin/python -m pip install --quiet -c $(2) torch \
	&& $(1)/bin/python -m pip install --quiet --no-build-isolation -c $(2) -e '.[dev,web]'

$(VENV)/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(call install,$(VENV),constraints.txt)
	touch $@

demo: $(VENV)/.made
	$(BIN)/kinbase demo

test: $(VENV)/.made
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile $(TESTS)

# Types and layers are checked on a staged install: the checkers do not follow an editable one.
check: $(VENV)/.made
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/check .
	cd build/check && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p kinbase
	cd build/check && PYTHONPATH=. ../../$(BIN)/lint-imports --config ../../pyproject.toml --cache-dir ../../.import_linter_cache
	$(BIN)/python -m pytest tests/test_contracts.py -k circle

bench: $(VENV)/.made
	$(BIN)/python benchmarks

hooks: $(VENV)/.made
	$(BIN)/pre-commit install

# What is above the line "Written by" is kept; what is below it is what a fresh environment installs today.
lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	sed '/^# Written by/,$$d' constraints.txt > build/lock/kept.txt
	$(call install,build/lock,build/lock/kept.txt)
	build/lock/bin/python -m pip freeze --all --exclude kinbase > build/lock/all.txt
	sed -n 's/^\([^# ]*==\).*/^\1/p' build/lock/kept.txt > build/lock/names.txt
	{ cat build/lock/kept.txt; echo '# Written by `make lock`: everything else that the development environment installs.'; \
		grep -v -i -f build/lock/names.txt build/lock/all.txt; } > build/lock/constraints.txt
	! grep -v '^#' build/lock/constraints.txt | grep -v '^[A-Za-z0-9._-]*==[^ ]*$$' || { echo 'make lock: a line is no pin'; exit 1; }
	cp build/lock/constraints.txt constraints.txt

pictures: $(VENV)/.made
	$(BIN)/python docs/pictures.py

clean:
	rm -rf $(VENV) build kinbase.egg-info kinbase-demo
