# The whole of the project's commands. `make setup` first; the others do it for you.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
# The native library is built by pip, so a change of its sources installs again.
NATIVE := $(wildcard CMakeLists.txt) $(shell find kernels -type f 2>/dev/null)
PIP := $(PY) -m pip --disable-pip-version-check install --constraint constraints.txt

BROWSER_STAMP := $(VENV)/.installed-browser

.PHONY: setup demo test test-slow test-browser lint bench clean

setup: $(STAMP)

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kvant needs Python 3.11 or newer: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(PY) pyproject.toml constraints.txt $(NATIVE)
	$(PIP) ./packages/pose-weights --editable '.[dev,pose,torch,web]'
	@touch $@

$(BENCH_STAMP): $(STAMP)
	$(PIP) --editable '.[bench]'
	@touch $@

# IMAGES=folder takes your own pictures instead of the sample video.
demo: $(STAMP)
	$(PY) -m kvant.pose.demo $(if $(IMAGES),--images '$(IMAGES)')

test: $(STAMP)
	$(PY) -m pytest $(ARGS)

test-slow: $(STAMP)
	$(PY) -m pytest -m 'slow or not slow' $(ARGS)

$(BROWSER_STAMP): $(STAMP)
	$(PIP) --editable '.[browser]'
	@touch $@

# Writes the guide's screenshot as well: KVANT_PICTURES=docs/images make test-browser
test-browser: $(BROWSER_STAMP)
	$(PY) -m pytest -m 'slow or not slow' tests/pose/test_browser.py $(ARGS)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(BENCH_STAMP)
	@set -e; for script in benchmarks/[!_]*.py; do echo "== $$script"; $(PY) $$script; done

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis $(STAMP) $(BENCH_STAMP) $(BROWSER_STAMP)
