# `make` alone lists the targets. The environment in .venv is made by the first target that needs it.
#   make demo PYTHON=python3.12       another Python for a new environment
#   make demo ARGS=batch_size=2       further keys for ph2p or benchmarks/compare.py
#   make test ARGS="-m 'not slow'"    further arguments for pytest

PYTHON ?= python3
ARGS ?=
SIZE ?= smoke
EXPERIMENT ?=
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help venv demo test docs compare evidence lint format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/.installed ## Make the environment with the tested versions

$(VENV)/.installed: pyproject.toml constraints.txt tests/vocabularies.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: name a newer one, as in make PYTHON=python3.12 venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps -r tests/vocabularies.txt
	@touch $@

demo: venv ## Invert the example images on the CPU; the last line names the page to open
	$(BIN)/ph2p $(ARGS)

# Two workers of one thread each: most of the time goes into processes that start, and into small models.
test: lint ## Check the code and run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

docs: venv ## Build the documentation as a site, site/index.html; a warning fails it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

compare: venv ## Compare the methods at equal cost, in one table
	$(BIN)/python benchmarks/compare.py $(ARGS)

evidence: venv ## Answer the paper's questions: SIZE=smoke, small or full, EXPERIMENT=main for one alone
	$(BIN)/python benchmarks/evidence.py --size $(SIZE) $(if $(EXPERIMENT),--experiment $(EXPERIMENT)) $(ARGS)

lint: venv ## Check style, format, types, which room imports from which, and sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/house.py

format: venv ## Put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment, caches and build products; outputs/ stays
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
