# One door for people and CI; it needs nothing but python3. `make` lists the doors.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PIP     = $(BIN)/python -m pip install --quiet --disable-pip-version-check
# torch on PyPI brings gigabytes of CUDA: without an NVIDIA card it comes from PyTorch's own index, if that is reached.
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi),,https://download.pytorch.org/whl/cpu)
TORCH   = --retries 1 --timeout 15 --no-deps --index-url $(TORCH_INDEX) $(shell grep '^torch==' constraints.txt)
gate    = pipeline
deliver = train,export,pipeline,serve
dev     = dev,train,export,openvino,pipeline,serve,demo,ray
.PHONY: help demo test check fix docs bench
help: ## list the doors
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile

$(VENV)/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/gate $(VENV)/deliver $(VENV)/dev: $(VENV)/core # what the jobs of the delivery need, and all of it
	-$(if $(filter-out gate,$(@F)),$(if $(TORCH_INDEX),$(PIP) $(TORCH)))
	$(PIP) -c constraints.txt -e '.[$($(@F))]'
	@touch $@

demo: $(VENV)/core ## set up, then find the defects of a synthetic tile (no torch, no download of data)
	$(BIN)/python examples/01_segment.py
test: check ## set up, then every check and every test, a worker a core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder
check: $(VENV)/dev ## lint, format, types and layers
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
fix: $(VENV)/dev ## mend what lint and format can mend
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
docs: $(VENV)/dev ## build the site into site/, with npm also the page in the browser; a warning is an error
	$(BIN)/sphinx-build -q -W -b html docs site
	$(if $(shell command -v npm),npm ci --silent --prefix examples/web && $(BIN)/python examples/web/build.py site/web)
bench: $(VENV)/dev ## backends in turns, beside eager torch and the reference
	$(BIN)/magtiles-seg bench --reference --rounds 40
