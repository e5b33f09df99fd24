# Two commands matter: `make reproduce` (set up, rerun small cells on real data, build the site) and `make test`.
# Everything lands in this folder: .venv (the environment), .tools (uv, when the machine has none), .robustnb (runs, records).
SHELL := /bin/bash
# Containers often forbid bytecode; then each of some hundred processes compiles torch anew, 5 to 11 s every time.
unexport PYTHONDONTWRITEBYTECODE
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
    $$p -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))" 2>/dev/null && { command -v $$p; break; }; done)
PROFILE ?= quick
MINUTES ?= 27
SEED ?= 0
MOMENTS ?= 9
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
BIN := .venv/bin
# uv does not read pip's configuration: hand it pip's index when the machine names one
INDEX := $(shell $(PYTHON) -m pip config get global.index-url 2>/dev/null)
UV_ENV := $(if $(INDEX),UV_DEFAULT_INDEX=$(INDEX)) UV_LINK_MODE=$(or $(UV_LINK_MODE),hardlink) VIRTUAL_ENV=.venv
UV_VERSION := 0.13.9
UV := $(shell command -v uv 2>/dev/null || echo .tools/uv/bin/uv)

.PHONY: help setup lab reproduce site view test test-faults fuzz lock clean
help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/.ready  ## make .venv from requirements.lock and install robustnb in it

.tools/uv/bin/uv:
	@echo "uv is not on the PATH: fetching it into .tools/"
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .tools/uv.part uv==$(UV_VERSION) 2> .tools-pip.log || { cat .tools-pip.log; exit 1; }
	@rm -rf .tools/uv .tools-pip.log && mv .tools/uv.part .tools/uv

.venv/.ready: requirements.lock pyproject.toml $(filter .tools/%,$(UV))
	@test -n "$(PYTHON)" || { echo "robustnb needs Python 3.11 or 3.12; none was found. Name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null || $(UV) venv --quiet --clear --python $(PYTHON) .venv
	$(UV_ENV) $(UV) pip sync --quiet --require-hashes requirements.lock
	$(UV_ENV) $(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

lab: setup  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

reproduce: setup  ## rerun small cells on real data against the committed records, build the site (PROFILE=reduced|full: run that profile)
ifeq ($(PROFILE),quick)
	@$(BIN)/robustnb rerun --workers $(WORKERS)
else
	@$(BIN)/robustnb reproduce papers --profile $(PROFILE) --workers $(WORKERS) || status=$$?; \
	  $(BIN)/robustnb site; exit $${status:-0}
endif

site: setup  ## make the pages from the records that are there, build the site
	@$(BIN)/robustnb site

view: setup  ## serve the built site on this machine
	@$(BIN)/robustnb site --serve

test: setup  ## export in sync, notebooks clean, nbdev_test, pytest, layers, papermill smoke, browser
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/check.py

test-faults: setup  ## damaged files, odd inputs, failing disks, kills and cells twice, for MINUTES=27 in all; SEED=1 tries other inputs, ONLY=kills those tests
	@$(BIN)/python -m robustnb.benchmarks.survival --minutes $(MINUTES) --seed $(SEED) --moments $(MOMENTS) --only "$(ONLY)"

fuzz: MINUTES = 10
fuzz: setup  ## damaged files for one reader, READER=idx, or for each; MINUTES=10 each, SEED=1 tries other inputs
	@$(BIN)/python -m robustnb.benchmarks.survival --reader "$(or $(READER),all)" --minutes $(MINUTES) --seed $(SEED)

lock: $(filter .tools/%,$(UV))  ## pin the dependencies of pyproject.toml anew, with hashes
	$(UV_ENV) $(UV) pip compile pyproject.toml --extra lab --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --no-emit-index-url --quiet --output-file requirements.lock

clean:  ## remove what can be made again: environment, tools, site, runs (records in .robustnb/records stay)
	rm -rf .venv .tools _docs _site .robustnb/runs .robustnb/site robustnb.egg-info
