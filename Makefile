# Every target prepares .venv by itself; all it takes is git and a Python >= 3.11.

PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	"$$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
BIN := .venv/bin
READY := .venv/.ready
# Most tests wait for a process rather than compute; past four workers they only get in each other's way.
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help demo test coverage mutate torture check format bench docs recording clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: $(READY) ## A flow of real Claude Code turns, killed and resumed; no key needed (ARGS=--live: with yours)
	$(BIN)/channelcoder demo $(ARGS)

test: $(READY) ## Every test in its short form (ARGS are pytest's)
	$(PYTEST) $(ARGS)

coverage: $(READY) ## The same, with the branches that no test takes; fails under 90 %
	$(PYTEST) --cov --cov-report=term $(ARGS)

mutate: $(READY) ## Change template, schema, journal and step, and see which change no test notices
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[mutation]'
	$(BIN)/python tests/mutation.py $(ARGS)

torture: $(READY) ## The long form of the promises, with its seeds and tables (CHANNELCODER_SEED=… brings one back)
	$(PYTEST) -m torture -rP $(ARGS)

check: $(READY) ## Format, lint, types, who may import whom, and what loads what
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest --quiet tests/unit/test_imports.py

format: $(READY) ## Put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## What turns, flows and sessions cost beside the bare CLI and other tools (ARGS=--peers: install those)
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(READY) ## Check that the pages hold together
	$(BIN)/pytest tests/unit/test_docs.py $(ARGS)

recording: $(READY) ## Make the README's picture of the demo anew
	$(BIN)/python -m channelcoder_flows.demo.record docs/demo.svg

clean: ## Remove what the other targets made
	rm -rf .venv build dist benchmarks/.peers .pytest_cache .ruff_cache .hypothesis .mutation .import_linter_cache htmlcov .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python >= 3.11 with venv is missing (Debian: apt-get install python3 python3-venv)" >&2; exit 1; }
	@test -n "$$(command -v git)" || { echo "git is missing (Debian: apt-get install git)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
