# Needs make and Python 3.11 or newer; everything else is installed into .venv.
#   make demo   the whole way on invented patients: environment, data, training, masks, review
#   make test   the tests          make lint   style, types, layers          make clean   removes .venv

PYTHON ?= python3
VENV ?= .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint format clean

help:
	@head -3 Makefile

demo: $(VENV)/.package
	$(BIN)/unet-med demo 3d --overwrite

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	$(PYTHON) -c "import shutil; shutil.rmtree('$(VENV)', ignore_errors=True)"

$(VENV)/.python:
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('Python 3.11 or newer is needed, this is ' + sys.version.split()[0] + ': run make PYTHON=...')"
	$(PYTHON) -m venv $(VENV)
	@$(PYTHON) -c "open('$@', 'w').close()"

# torch comes first and alone: where pip knows a CPU wheel of it, no CUDA libraries follow
$(VENV)/.package: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) -e .
	@$(PYTHON) -c "open('$@', 'w').close()"

$(VENV)/.dev: $(VENV)/.package
	$(PIP) -e ".[dev,dicom,onnx,pacs]"
	@$(PYTHON) -c "open('$@', 'w').close()"
