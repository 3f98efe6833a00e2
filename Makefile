# Every command of the project. Each one makes the environment first, if it is missing or outdated.
# Variables: PYTHON, DAGSTER_PORT, ARGS, and those of README.md (CLICKHOUSE_PORT, ...), as in `DAGSTER_PORT=3001 make dev`.

PYTHON ?= python3.11
DAGSTER_PORT ?= 3000
BIN := .venv/bin
# Dagster warns at each use that `owners`, `backfill_policy` and the partitions of a check are in beta or preview.
LOCAL := DEBUG=1 DAGSTER_HOME="$(CURDIR)/.dagster_home" PYTHONWARNINGS="ignore:Parameter,ignore:Specifying a partitions_def"

# Each worker starts its own services: more workers cost memory and save little time.
WORKERS := --numprocesses auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo dev test test-slow test-all snapshot lint format helm-check new-team new-dag check-team lock clean wipe

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Make .venv from requirements.lock, if it is missing or outdated (the other commands do this themselves)
	@$(PYTHON) -c '' 2>/dev/null || { \
		echo "'$(PYTHON)' does not run; this project needs Python 3.11." >&2; \
		echo "Install it (apt install python3.11 python3.11-venv, brew install python@3.11, pyenv install 3.11)," >&2; \
		echo "or name an interpreter: make PYTHON=/path/to/python3.11 $(or $(MAKECMDGOALS),demo)" >&2; exit 1; }
	@$(PYTHON) tools/environment.py

demo: setup ## Start the stack, run the teams' jobs on a sample (or ACCESS_LOG=path, EVENTS=path), print a report, stop
	@$(LOCAL) OPEN_EXCHANGE_RATES_APP_ID= exec $(BIN)/python -m dags.local up -- $(BIN)/python -m dags.local.demo \
		$(if $(ACCESS_LOG),--access-log "$(ACCESS_LOG)") $(if $(EVENTS),--events "$(EVENTS)")

dev: setup ## Start the stack and Dagster's UI on port 3000 (DAGSTER_PORT), until Ctrl-C
	@$(LOCAL) exec $(BIN)/python -m dags.local.dev up --port $(DAGSTER_PORT)

test: setup ## Run all tests except the slow proofs; ARGS="-k sentence" selects
	@exec $(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-slow: setup ## Run only the slow proofs: crashes, fuzzing, large data
	@exec $(BIN)/python -m pytest $(WORKERS) -m slow $(ARGS)

test-all: setup ## Run every test, slow proofs included
	@exec $(BIN)/python -m pytest $(WORKERS) -m "slow or not slow" $(ARGS)

snapshot: setup ## Write the files that follow from the definitions: their snapshot and CODEOWNERS; then review the diff
	@$(BIN)/python -m dags.tests.policy.snapshot --write
	@$(BIN)/python -m tools.ownership codeowners --write

lint: setup ## Check style, types, direction of imports, the Dockerfile, and that Dagster loads every location
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --quiet --no-header --no-summary dags/tests/policy/test_layers.py
	$(BIN)/hadolint deploy/Dockerfile
	env DEBUG=1 PYTHONWARNINGS=ignore:Function $(BIN)/dagster definitions validate --log-level error -w .dagster_home/workspace.yaml

helm-check: setup ## Render the official Helm chart with the values of all regions, and check the result; ARGS=--require-chart
	@$(BIN)/python -m tools.helm_check $(ARGS)

format: setup ## Write the source in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Make passes variables of its command line in the environment too, where a quote in a value cannot end the command.
new-team: setup ## Add a team with an example dag: TEAM=growth CHANNEL=#alerts-growth
	@exec $(BIN)/python -m tools.scaffold new-team "$$TEAM" "$$CHANNEL"

new-dag: setup ## Add an example dag to a team: TEAM=growth NAME=signups
	@exec $(BIN)/python -m tools.scaffold new-dag "$$TEAM" "$$NAME"

check-team: setup ## Run the policy tests that concern a team, and the tests of its dags: TEAM=growth
	@exec $(BIN)/python -m tools.scaffold check-team "$$TEAM"

LOCK := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-strip-extras \
	--no-emit-index-url --no-header --no-annotate --quiet

lock: setup ## Write both locks from pyproject.toml; ARGS=--upgrade takes the newest versions
	$(LOCK) --all-extras --output-file requirements.lock $(ARGS)
	$(LOCK) --constraint requirements.lock --output-file requirements.production.lock --upgrade

clean: ## Remove .venv and the caches; keeps the data
	rm -rf .venv .venv.lock .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

wipe: setup ## Remove the data of the local platform: ClickHouse, S3, Postgres and Dagster's runs; ARGS=--yes does not ask
	@$(LOCAL) $(BIN)/python -m dags.local wipe $(ARGS)
	find .dagster_home -mindepth 1 -maxdepth 1 ! -name dagster.yaml ! -name workspace.yaml -exec rm -rf {} +
