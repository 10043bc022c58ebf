# make book   set up .venv and build the report         make test   set up and test
# make lab    JupyterLab on the notebooks               make lint   ruff and mypy
# Linux without an NVIDIA GPU: `make book TORCH_INDEX=https://download.pytorch.org/whl/cpu` takes the CPU build
# of torch (0.2 GB instead of several GB of CUDA). PIP_FIND_LINKS or UV_FIND_LINKS (a folder of wheels) is honoured.
# Choose what the report is made with: BRAINFM_PROFILE=tiny|quick|… (default: the encoders that ship, where they fit).

SHELL := /bin/bash
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
STAMP := $(VENV)/.brainfm-installed
AXE := $(VENV)/node_modules/axe-core
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints-hashed.txt)

# Compiled modules must be kept: without them every kernel spends twice the time on imports.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: book test soak lab lint clean install
.DEFAULT_GOAL := book

install: $(STAMP)

$(STAMP): pyproject.toml constraints-hashed.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12"; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	@if [ -n "$(TORCH_INDEX)" ]; then set -x; $(VENV)/bin/uv pip install --python $(VENV)/bin/python \
	  --index-url "$(TORCH_INDEX)" "$(TORCH)"; fi
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-}}" $(VENV)/bin/uv pip install --compile-bytecode \
	  --python $(VENV)/bin/python -c constraints-hashed.txt -e '.[dev]'
	@touch $@

book: $(STAMP)
	$(VENV)/bin/jupyter-book build book

test: $(STAMP) $(AXE)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

# The fault tests in full: hundreds of kills, thousands of broken files; an hour and more.
soak: $(STAMP)
	BRAINFM_SOAK=1 $(VENV)/bin/python -m pytest tests/faults --timeout 7200

# What judges the pages' accessibility; without npm its test is skipped.
$(AXE): $(STAMP)
	@if command -v npm >/dev/null && \
	  npm install --silent --no-save --no-package-lock --no-audit --no-fund --prefix $(VENV) axe-core@4.10.3; then true; \
	  else echo "axe-core cannot be installed (no npm, or no network): its test will be skipped"; fi

# Opens on a guide, rendered; asks the network for no news.
lab: $(STAMP)
	install -D -m 644 notebooks/lab.json $(VENV)/share/jupyter/lab/settings/overrides.json
	$(VENV)/bin/jupyter-lab --notebook-dir=notebooks --LabApp.default_url=/lab/tree/guide.md

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The environment, prepared volumes and finished runs stay: they are costly. Remove .venv, store, runs by hand.
clean:
	rm -rf book/_build book/chapters book/_assets .pytest_cache .mypy_cache .ruff_cache
	find brainfm_lib tests book -name __pycache__ -type d -prune -exec rm -rf {} +
