# Every target makes its own environment in .venv on demand; python3 >= 3.11 is all that it takes.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

# Only as in `make demo DATABASE_URL=…`: one in the environment is another application's.
ifneq ($(origin DATABASE_URL),command line)
DATABASE_URL :=
endif

STAMP = $(VENV)/installed
BIN = $(VENV)/bin
# What is checked by mypy beside the package, once it exists.
TYPED = dbos_async $(wildcard examples tests/typing)

.DEFAULT_GOAL := help
.PHONY: help demo test bench bench-check format lint types imports pytest test-matrix lock clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24

demo: $(STAMP) ## Run 5,000 orders durably, killed twice; DATABASE_URL=postgresql://… for your own server
	@$(BIN)/python -m examples.demo $(if $(DATABASE_URL),--database-url '$(DATABASE_URL)') $(ARGS)

test: lint types imports pytest ## Check format, lint, types and import contracts, and run all tests

bench: $(STAMP) ## Measure, in five minutes; ARGS=… as in ARGS=--full or ARGS='sequential peer'
	$(BIN)/python -m bench $(ARGS)

bench-check: $(STAMP) ## Compare with the reference run of the bench, in a minute: did anything get slower?
	$(BIN)/python -m bench --check $(ARGS)

format: $(STAMP) ## Format the code, and fix what can be fixed
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

lint: $(STAMP) ## Check format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP) ## Check types: mypy and pyright, both strict
	$(BIN)/mypy $(TYPED)
	$(BIN)/pyright --pythonpath $(BIN)/python

imports: $(STAMP) ## Check the import contracts: who may import whom
	$(BIN)/lint-imports

pytest: $(STAMP) ## Run the tests; ARGS=… goes to pytest, as in ARGS='-k crash -x -n 0'
	$(BIN)/pytest -n 2 $(ARGS)

test-matrix: $(STAMP) ## Run the tests on every Postgres and Python at hand
	.ci/matrix $(ARGS)

lock: $(STAMP) ## Pin the newest of everything in constraints.txt
	{ sed -n '/^#/p' constraints.txt; $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	  --upgrade --all-extras --no-annotate --no-header pyproject.toml; } > constraints.new
	mv constraints.new constraints.txt

clean: ## Remove what make made; data in .dbos stays
	rm -rf .venv .venv-* .venv*.lock dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt .ci/venv.py
	@$(PYTHON) .ci/venv.py $(VENV)
