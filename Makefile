# make demo: text from the built-in model, and what each strategy measured on four kinds of text.   make help: the rest.

PYTHON ?= python3
VENV ?= .venv
# What pip installs where no torch can be imported yet, in pip's words, options too. PyPI's own builds for Linux bring
# gigabytes of CUDA; one for CPUs alone is had with TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu'
TORCH ?= torch==2.13.0
# Processes that share the tests out, file by file: most tests keep no more than one core busy.
JOBS ?= 2
PROMPT ?= Explain why the sky is blue, in one paragraph.

BIN := $(VENV)/bin
# Of the thousands of files in torch and transformers few are ever imported: Python compiles those when they are.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# Whatever the build reads: a change in it builds again, everything else is picked up by the editable install.
SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)

# Demo and tests start many processes: each would compile again whatever it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    set up $(VENV), build, and let the built-in pair answer a prompt (PROMPT=...)"
	@echo "make test    the same environment, then the test suite in JOBS=2 processes (ARGS=... for pytest)"
	@echo "make check   ruff, mypy and clang-format"
	@echo "make clean   remove $(VENV), build outputs and caches of tools"
	@echo "TORCH=$(TORCH) is installed first; other words for pip install may be given, options too"

demo: $(VENV)/.installed
	$(BIN)/pearl-decode generate --max-tokens 64 "$(PROMPT)"
	$(BIN)/pearl-decode bench --strategies autoregressive,sequential,pearl,auto --limit 1 --repeat 2

test: $(VENV)/.installed
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run -Werror

clean:
	rm -rf $(VENV) build dist .cache .mypy_cache .pytest_cache .ruff_cache *.egg-info python/*.egg-info pearl_kernels/_C*.so

$(VENV)/.installed: $(SOURCES) | $(VENV)/bin/python
	@$(BIN)/python -c "import torch" 2>/dev/null || { words='$(TORCH)'; echo "installing $$words"; $(PIP) $$words; }
	@echo "building and installing pearl-kernels"
	@$(PIP) --editable ".[demo,dev]"
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
