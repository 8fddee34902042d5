# Everything a user or a developer runs, each one word. Needs make and a Python of 3.11 or newer; the rest is installed
# into .venv, which `make clean` leaves and `rm -r .venv` removes.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
CANDIDATES := python3.13 python3.12 python3.11 python3

# A stamp says what was installed; it is older than pyproject.toml once that has changed.
INTERPRETER := $(BIN)/python
DEMO := $(VENV)/.installed-demo
DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run ui test check bench chaos clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(DEMO) ## collect and process real data through every layer: the demo pipeline
	@$(BIN)/python flows/pipeline.py $(ARGS)

ui: $(DEMO) ## open Prefect's UI at the last run of the pipeline
	@$(BIN)/python deployments/ui.py $(ARGS)

# Two processes, since most tests wait longer than they compute; a file stays in one of them, whole and in its order.
test: check ## check, then run all tests but chaos and bench
	@$(BIN)/python -m pytest -m "not chaos and not bench" -n 2 --dist loadfile --no-loadscope-reorder \
	    --max-worker-restart=0 $(ARGS)

check: $(DEV) ## lint, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(DEV) ## measure side by side with other pools, printed as ratios
	@$(BIN)/python -m pytest -q -s -m bench --timeout=1800 $(ARGS)

chaos: $(DEV) ## the long fault injection
	@$(BIN)/python -m pytest -q -s -m chaos --timeout=1800 $(ARGS)

clean: ## remove what was built, cached and collected; keeps .venv
	@rm -rf build dist data .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# --- installing ---

# Debian ships a Python without ensurepip, so the newest one that can make a complete environment is taken.
$(INTERPRETER):
	@fits='import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))'; \
	for python in $(PYTHON) $(CANDIDATES); do \
	    if $$python -c "$$fits" >/dev/null 2>&1; then \
	        echo "making $(VENV) with $$($$python --version)"; \
	        $$python -m venv $(VENV) && exit 0; \
	        rm -rf $(VENV); \
	        exit 1; \
	    fi; \
	done; \
	echo "no Python that can make a virtual environment: install Python 3.11 or newer with its venv module" \
	     "(on Debian and Ubuntu: apt-get install python3-venv), or name one: make PYTHON=/path/to/python3" >&2; \
	exit 1

$(DEMO): pyproject.toml | $(INTERPRETER)
	@echo "installing the package and its demo (a minute or two)"
	@$(PIP) install --editable '.[demo]'
	@touch $@

$(DEV): pyproject.toml | $(INTERPRETER)
	@echo "installing the package with its development tools (a minute or two)"
	@$(PIP) install --editable '.[dev]'
	@touch $(DEMO) $@
