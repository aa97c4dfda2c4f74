# Needs only Python >= 3.10 with venv, and make. Everything is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-backbones lint types wheel clean

demo: .venv/examples  ## train on the built-in face clips and write a report
	$(BIN)/python -m examples.train --output runs/demo

# One thread per test process: more oversubscribes the cores that pytest-xdist uses.
test: .venv/test  ## every test and doctest
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n auto

test-backbones: .venv/test  ## attach to a model of every family and rewrite the table
	$(BIN)/python -m tests.support.backbones

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev .venv/test
	$(BIN)/mypy

wheel: .venv/dev  ## build the wheel and import it from a clean environment
	rm -rf dist build/wheel-venv
	$(BIN)/python -m build --wheel --outdir dist .
	$(PYTHON) -m venv build/wheel-venv
	build/wheel-venv/bin/python -m pip install --quiet dist/*.whl
	cd build && wheel-venv/bin/python -c "import hdf_modules as h; print(h.__version__, h.__file__)"
	rm -rf build/wheel-venv

# One stamp per extra: reinstalled when the metadata change.
.venv/%: pyproject.toml setup.cfg | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

clean:
	rm -rf .venv build dist runs
