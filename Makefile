# Needs only Python >= 3.10 with venv, and make. Everything is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test browser test-backbones lint types docs pictures wheel lowest gpu gpu-% clean

demo: .venv/examples  ## train on the built-in face clips and write a report
	$(BIN)/python -m examples.train --output runs/demo --overwrite

# One thread per test process: more oversubscribes the cores that pytest-xdist uses.
test: .venv/test  ## every test and doctest
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n auto --dist worksteal

browser: .venv/browser  ## the pages and the report in headless Chromium, which has to be there
	CI=true MPLBACKEND=Agg $(BIN)/python -m pytest tests/docs/test_browser.py tests/examples/test_report_page.py

test-backbones: .venv/test  ## attach to a model of every family and rewrite the table
	$(BIN)/python -m tests.support.backbones

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev .venv/test
	$(BIN)/mypy

docs: .venv/docs  ## build the pages into build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pictures: .venv/examples  ## draw the pictures of the pages anew
	$(BIN)/python -m docs.pictures

wheel: .venv/dev  ## build sdist and wheel, and use the wheel in a clean environment with the newest torch
	rm -rf dist build
	$(BIN)/python -m build --outdir dist .
	ls dist/*-py3-none-any.whl
	$(PYTHON) -m venv build/newest
	build/newest/bin/python -m pip install --quiet dist/*.whl
	cd build && newest/bin/python -c "import hdf_modules as h; print(h.__version__, h.__file__)"
	rm -rf build/newest

# TORCH=2.9 tries that one, with the newest of the rest; NumPy 2.4 refuses what the interpreters of
# Triton ask of it, 3.6 (torch 2.10) and before.
lowest: wheel  ## the unpacked sdist passes the core's tests with the lowest versions allowed
	mkdir -p build/sdist
	tar -xzf dist/*.tar.gz -C build/sdist --strip-components=1
	$(PYTHON) -m venv build/lowest
	cd build/sdist && ../lowest/bin/python -m pip install --quiet \
		$(if $(TORCH),"torch==$(TORCH).*" "numpy<2.4",--constraint tests/lowest.txt) ".[test]"
	cd build/sdist && OMP_NUM_THREADS=1 MPLBACKEND=Agg ../lowest/bin/python -m pytest -n auto \
		tests/attention tests/loss tests/sam
	rm -rf build/lowest build/sdist

# With $(PYTHON)'s own torch, timm, einops, matplotlib, pytest and hypothesis; nothing is installed.
gpu:  ## on a machine with a GPU: what all costs there, then the core's tests; all of it, whatever fails
	$(MAKE) --keep-going gpu-attention gpu-backbones gpu-loss gpu-sam gpu-tests

# Most of the time goes into compiling: a kernel for each shape and dtype.
gpu-attention:
	PYTHONPATH=. $(PYTHON) -m benchmarks attention modules --device cuda --batch 32

gpu-backbones:
	PYTHONPATH=. $(PYTHON) -m benchmarks attention backbones --device cuda --clips 32 \
		--precisions float32 bfloat16 --variants bare ours "ours compiled"

gpu-loss:
	PYTHONPATH=. $(PYTHON) -m benchmarks loss contrastive memory ranks --device cuda

gpu-sam:
	PYTHONPATH=. $(PYTHON) -m benchmarks sam --device cuda

# Files by name: what is in a folder that is given too, but is called like no test, pytest leaves out.
gpu-tests:
	HDF_TEST_DEVICE=cuda OMP_NUM_THREADS=1 PYTHONPATH=. $(PYTHON) -m pytest -q \
		$(shell $(PYTHON) -c "import xdist" 2>/dev/null && echo "-n 8 --dist worksteal") \
		tests/attention/*.py tests/loss tests/sam

# One stamp per extra: reinstalled when the metadata change.
.venv/%: pyproject.toml setup.cfg | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

clean:
	rm -rf .venv build dist runs
