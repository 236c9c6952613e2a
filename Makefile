# normrepro: `make help` lists the targets. Each sets up what it needs: a virtual environment in .venv, everything from PyPI.
PAPER ?= mabn
SCALE ?= proxy
SEEDS ?=
JOBS ?=
GPUS ?=
LAUNCHER ?=
SLURM ?=
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
export OMP_NUM_THREADS ?= 1
OPTIONS = --scale $(SCALE) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(GPUS),--gpus $(GPUS))
TRAINING = $(OPTIONS) $(if $(JOBS),--jobs $(JOBS)) $(if $(LAUNCHER),--launcher $(LAUNCHER)) $(if $(SLURM),--slurm "$(SLURM)")

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow lint report bench fuzz check-claims chaos

help:  ## Show this list
	@echo "make <target> [PAPER=mabn] [SCALE=proxy|single_gpu|paper] [SEEDS=n] [JOBS=n] [GPUS=n] [DATA_DIR=folder]"
	@echo "              [LAUNCHER=local|joblib|slurm] [SLURM='partition=gpu timeout_min=1440 cpus_per_task=12']"
	@grep -E '^[a-z%<>-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22
	@echo "  e.g. make reproduce-table1, make plan-mabn-table1 SCALE=paper"

setup: $(VENV)/.ready  ## Create .venv and install the project and its tools into it

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'Python 3.11 or newer is needed: make PYTHON=python3.12 ...')"
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	@echo "installing torch and the rest from PyPI (about 5 GB, some minutes)"
	$(PY) -m pip install --quiet --editable '.[dev]'
	touch $@

reproduce-table%: setup  ## Train what is missing of PAPER's table and render it, e.g. reproduce-table1
	$(PY) scripts/reproduce.py $(PAPER) table$* $(TRAINING)

reproduce-figure%: setup  ## The same for a figure of PAPER
	$(PY) scripts/reproduce.py $(PAPER) figure$* $(TRAINING)

reproduce-%: setup  ## The same for <paper>-table<n>, <paper>-figure<n>, a whole <paper>, or all
	$(PY) scripts/reproduce.py $(subst -, ,$*) $(TRAINING)

plan-%: setup  ## Show finished and missing runs, commands and cost of the same
	$(PY) scripts/plan.py $(subst -, ,$*) $(OPTIONS)

report: setup  ## Render all tables and their index from results/records.jsonl
	$(PY) scripts/report.py

test: setup  ## Run the test suite (the slow tests left out)
	$(PY) -m pytest -n auto --maxprocesses 8 -m "not slow"

test-slow: setup  ## Run the slow tests
	$(PY) -m pytest -n auto --maxprocesses 8 -m slow

check-claims: setup  ## Check the papers' claims
	$(PY) scripts/check_claims.py

chaos: setup  ## Kill runs at KILLS random moments (default 200) and compare every bit
	$(PY) scripts/chaos.py --kills $(or $(KILLS),200)

fuzz: setup  ## Ask the layers and the command line for CASES random things (default 10000)
	CASES=$(or $(CASES),10000) $(PY) -m pytest tests/test_fuzz.py

bench: setup  ## Time the layers against torch's batch norm: results/bench_<hardware>.md
	$(PY) scripts/bench.py

lint: setup  ## Check style and formatting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
