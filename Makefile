# Scenemill: every command of the README and of the checks. `make` alone lists them.
# Needs Python 3.11 to 3.13 and make; everything else is installed into .venv on first use.

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(if $(shell $(p) -c $(FITS) 2>/dev/null),$(p))))
FITS := 'import sys; print("yes") if (3, 11) <= sys.version_info < (3, 14) else None'
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test quick lint format bench soak docs pictures clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv with the tested versions (constraints.txt)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 to 3.13 found: install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## generate a town, segment it through the flow, score it against the truth (3 minutes)
	$(BIN)/scenemill demo --out demo-out

test: lint  ## style, types and every test (about 15 minutes on 2 cores)
	$(BIN)/python -m pytest -m ''

quick: lint  ## the same without the tests marked slow
	$(BIN)/python -m pytest

lint: $(STAMP)  ## formatting, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)  ## rewrite the code in the common style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) .peers/.installed  ## print the figures of docs/explanation/performance.md (30 minutes on 2 idle cores)
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.bounds
	$(BIN)/python -m benchmarks.precision
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.pipeline
	$(BIN)/python -m benchmarks.polygons
	$(BIN)/python -m benchmarks.merge
	$(BIN)/python -m benchmarks.cluster
	$(BIN)/python -m benchmarks.orchestration

soak: $(STAMP)  ## 1,000 mixed scenes by the library and by the flow: memory, open files and threads stay flat (10 minutes)
	$(BIN)/python -m benchmarks.soak

.peers/.installed: constraints.txt | $(STAMP)
	$(BIN)/python -m benchmarks.peers --install
	@touch $@

docs: $(STAMP)  ## build the site of docs/ into build/site, strictly: a broken link is an error
	$(BIN)/zensical build --clean --strict

pictures: $(STAMP) demo-out/score.json  ## draw docs/images again from the demo (with QGIS, if it is installed)
	$(BIN)/python docs/tools/pictures.py demo-out docs/images

demo-out/score.json:
	$(MAKE) demo

clean:  ## remove all generated files, and the environment
	rm -rf $(VENV) .cache .peers build dist demo-out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
