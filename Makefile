# Everything that users and developers run, one word each. It needs make and Python 3.11 or newer and installs the rest
# into .venv, which `make clean` keeps and `rm -r .venv` removes.

VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
PROCESSES := 6
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# Runs a command, and counts the seconds that it takes where they can be seen.
ticking = if [ -t 2 ]; then \
	    (n=0; while sleep 1; do n=$$((n + 1)); printf '\r  %d s' $$n >&2; done) & clock=$$!; \
	fi; \
	$(1); code=$$?; \
	if [ -n "$$clock" ]; then kill $$clock; printf '\r\033[K' >&2; fi; \
	exit $$code
# uv takes a third of pip's time; where it finds no packages, by an index or proxy that only pip knows, pip installs them.
UV := UV_NATIVE_TLS=1 UV_SYSTEM_CERTS=1 $(BIN)/uv
install_quickly = ($(PIP) install 'uv>=0.9' && $(UV) pip install --quiet --python $(BIN)/python $(1)) || \
	{ echo "uv cannot install it: trying pip"; $(PIP) install $(1); }
CANDIDATES := python3.13 python3.12 python3.11 python3

# A stamp file marks what is installed. It is older than pyproject.toml after a change there, which installs again.
INTERPRETER := $(BIN)/python
DEMO := $(VENV)/.installed-demo
DEV := $(VENV)/.installed-dev

# Else each of the processes that the tests start compiles the package again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run ui server-ha test quick durations check lint coverage lowest lock docs docs-serve hooks nightly bench chaos clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(DEMO) ## run the demo pipeline, which collects and processes real data
	@$(BIN)/python -m flows.pipeline $(ARGS)

ui: $(DEMO) ## open Prefect's UI at the last run of the pipeline
	@$(BIN)/python deployments/ui.py $(ARGS)

server-ha: $(DEV) ## run Prefect's server as several processes on PostgreSQL and Redis
	@$(BIN)/python deployments/server_ha.py $(ARGS)

# Six processes on two cores, because many tests wait: for a server, a limit, a process that ends.
# Nothing that computes for minutes runs beside the tests: they would take longer, each time by another factor.
DAILY := -m "not nightly and not chaos and not bench"
ALL := $(DAILY) --ignore tests/benchmarks -n $(PROCESSES)
test: check ## check everything, and run all tests except nightly, chaos and bench
	@$(BIN)/python -m tests.run $(ALL) $(ARGS)

# A file of tests/prefect that is named loads the conftest.py there, which imports Prefect: so in a run of its own, since
# each process pool of the others would import it, too.
quick: $(DEV) ## run the tests of the parts and the main ways through them, in two minutes
	@$(BIN)/python -m tests.run $(ALL) tests/unit tests/contract --ignore tests/contract/chaos \
	    --ignore tests/contract/cluster --ignore tests/contract/spawned $(ARGS)
	@$(BIN)/python -m tests.run $(ALL) --group prefect tests/prefect/test_states.py tests/prefect/test_job_task.py \
	    tests/prefect/test_run_jobs.py $(ARGS)

durations: $(DEV) ## run all tests, and record how long each file takes, by which they are started
	@$(BIN)/python -m tests.run $(ALL) --record-durations $(ARGS)

check: lint ## check the style, the spelling and the types
	@$(BIN)/mypy

lint: $(DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/codespell
	@$(BIN)/validate-pyproject pyproject.toml

# Failed tests do not stop the report: some of them are about time, which the measurement takes too.
coverage: $(DEV) ## run the tests, and print which lines of the package no test runs
	@$(BIN)/coverage erase
	-@$(BIN)/coverage run -m tests.run -q $(ALL) $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

# The declared lower bounds are true: all direct dependencies in the lowest versions that pyproject.toml allows. These are
# tests that use much of what others declare, in some four minutes. The highest versions are those of the lock file.
LOWEST := .venv-lowest
lowest: $(DEV) ## run tests of all parts with the lowest versions of all dependencies
	@$(UV) venv --quiet --clear --python $(BIN)/python $(LOWEST)
	@$(UV) pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
	    --editable '.[cli,dask,demo,metrics,postgres,tracing]' 'opentelemetry-sdk>=1.30' \
	    'fastapi==0.116.2' # later ones break the server of older Prefects
	@$(UV) pip install --quiet --python $(LOWEST)/bin/python --constraint requirements-dev.lock \
	    pytest pytest-timeout pytest-mock pytest-xdist hypothesis requests jsonschema
	@$(LOWEST)/bin/python -m pytest -q -p no:anyio -W ignore $(DAILY) -n 2 --dist loadfile \
	    $(LOWEST_TESTS) $(ARGS) # old versions may be deprecated by new ones
LOWEST_TESTS := tests/prefect/test_run_jobs.py tests/prefect/test_job_task_runner.py \
    tests/prefect/test_states.py tests/prefect/test_blocks.py tests/prefect/test_job_task.py \
    tests/prefect/test_bootstrap.py tests/prefect/test_artifacts.py tests/contract/stores/test_schema.py \
    tests/contract/stores/test_logs.py tests/contract/test_tracing.py tests/cli/test_config_commands.py \
    tests/cli/test_jobs.py tests/cli/test_doctor.py tests/unit/test_config.py tests/unit/test_job.py \
    tests/unit/test_metrics.py tests/pipeline/test_report.py

lock: $(DEV) ## write requirements-dev.lock: exact versions of everything for development
	@$(UV) pip compile --quiet --universal --python-version 3.11 --extra dev --no-emit-index-url --no-header --output-file \
	    requirements-dev.lock pyproject.toml $(ARGS)

docs: $(DEV) ## build the documentation into site/; a broken link fails it
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet $(ARGS)
	@echo "open site/index.html, or run: make docs-serve"

docs-serve: $(DEV) ## show the documentation on 127.0.0.1:8000, and build it again when a page changes
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8000 $(ARGS)

hooks: $(DEV) ## check each commit before it is made (pre-commit)
	@$(BIN)/pre-commit install

nightly: $(DEV) ## run what takes long and is proved by less in `make test`; each night, with chaos
	@$(BIN)/python -m tests.run -m nightly -n 2 $(ARGS)

bench: $(DEV) ## compare the speed with other pools, as ratios
	@$(PYTEST) -q -s -m bench --timeout=1800 $(ARGS)

chaos: $(DEV) ## run the long fault injection
	@$(PYTEST) -q -s -m chaos --timeout=1800 $(ARGS)

clean: ## remove built, cached and collected files; keeps .venv
	@rm -rf build dist data site $(LOWEST) .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# --- installing ---

# Debian's Python has no ensurepip unless python3-venv is installed, so take the newest one that can create a venv.
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
	@$(call ticking,$(call install_quickly,--editable '.[demo]'))
	@touch $@

# The exact versions of the lock: to find some that fit together takes pip many minutes. Collecting the tests compiles
# what they import; else each of the processes that run them would, since they start together.
$(DEV): pyproject.toml requirements-dev.lock | $(INTERPRETER)
	@echo "installing the package with its development tools (a minute or two)"
	@$(call ticking,$(call install_quickly,--no-deps --requirement requirements-dev.lock --editable .))
	@$(PYTEST) --collect-only >/dev/null 2>&1 || true
	@touch $(DEMO) $@
