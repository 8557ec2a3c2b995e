# One door for people and CI; it needs nothing but python3. `make` lists the doors.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
# The pins apply to every install: without them the newest torch would bring gigabytes of CUDA.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e

.PHONY: help demo test check fix docs bench
help: ## list the doors
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile

$(VENV)/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	@touch $@

$(VENV)/dev: $(VENV)/core
	$(INSTALL) '.[dev,train,export,openvino,pipeline,serve,demo,ray]'
	@touch $@

demo: $(VENV)/core ## set up, then find the defects of a synthetic tile (no torch, no download of data)
	$(BIN)/python examples/01_segment.py

test: check ## set up, then every check and every test, a worker a core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder

check: $(VENV)/dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(VENV)/dev ## mend what lint and format can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/dev ## build the site into site/; a warning is an error
	$(BIN)/sphinx-build -q -W -b html docs site

bench: $(VENV)/dev ## backends in turns, beside eager torch and the reference
	$(BIN)/magtiles-seg bench --reference --rounds 40
