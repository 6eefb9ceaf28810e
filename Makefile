# The commands of the README. Each does its own set-up; `make run PYTHON=python3.13` chooses another Python.
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(SUITABLE)' 2>/dev/null && echo $$p && break; done)
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

# Tests start a hundred processes, and without bytecode each compiles every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test proofs parity slow check docs bench clean

run: $(VENV)/.run
	$(VENV)/bin/opsin run digits_lenet
	@echo "next: source $(VENV)/bin/activate; opsin list shows more, opsin new NAME begins your own"

test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

# What is exhaustive, and what installs a wheel.
proofs: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal -m proofs

# On real data: export TFDS_DATA_DIR first.
slow: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -n 2 -m slow

check: $(VENV)/.dev .links/opsin
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/basedpyright
	$(MAKE) --no-print-directory test

# Warnings are errors; then every link of the built pages is followed.
docs: $(VENV)/.dev
	$(VENV)/bin/python -m sphinx --fail-on-warning --quiet -j auto -d build/doctrees docs build/site
	$(VENV)/bin/python -m opsin.pages.links build/site
	@echo "open build/site/index.html"

# Beside torchvision and timm, which it installs.
parity: $(VENV)/.parity
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal -m proofs tests/interchange/test_parity.py

# Long, on two cores that should have nothing else to do.
bench: $(VENV)/.bench
	$(VENV)/bin/python -m opsin.benchmarks

clean:
	rm -rf $(VENV) runs build docs/gallery docs/measured docs/reference

# What basedpyright finds `opsin` by: an editable install tells Python alone where it is.
.links/opsin:
	@mkdir -p .links
	@ln -s .. $@

$(VENV)/.run: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "opsin needs Python 3.11, 3.12 or 3.13: make $(MAKECMDGOALS) PYTHON=/path/to/python"; exit 1; }
	@echo "setting up $(VENV) with $(PYTHON) (two minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -e .
	@touch $@

# PyTorch's own index has wheels without CUDA, which those of PyPI bring along on Linux.
PYTORCH := $(PIP) --no-deps --extra-index-url https://download.pytorch.org/whl/cpu

$(VENV)/.bench: $(VENV)/.run
	@$(PYTORCH) torch
	@$(PIP) -e '.[bench]'
	@touch $@

$(VENV)/.parity: $(VENV)/.dev $(VENV)/.bench
	@$(PYTORCH) torchvision
	@$(PIP) -e '.[parity]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@$(PIP) -e '.[dev,wandb]'
	@$(PIP) --no-deps jax2onnx onnx onnx-ir onnxruntime sympy mpmath  # see interchange/onnx.py
	@touch $@
