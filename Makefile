# Everything a developer runs. `./holdfast` needs none of it.

PYTHON := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help setup debian servers test test-all check format bench bench-server bench-blobs bench-storages clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: ## .venv with everything developers need
	@HOLDFAST_SET_UP=dev ./holdfast

debian:
	@scripts/install-debian-packages

servers:
	@scripts/install-test-servers

test: debian servers setup ## installs what the tests need and runs the fast ones
	@$(PYTHON) -m pytest -n 2 -m "not slow"

test-all: debian servers setup ## all tests, the slow ones too
	@$(PYTHON) -m pytest -n 2

check: setup ## ruff, mypy, the layers
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	$(PYTHON) .venv/bin/lint-imports --no-logo

format: setup ## formats the code and sorts its imports
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

bench: debian setup ## measures against restic and Borg; see docs/benchmarks.md
	$(PYTHON) -m bench.run $(BENCH)

bench-server: setup ## measures the server beside rclone and Swift; see docs/benchmarks-server.md
	$(PYTHON) -m bench.server $(BENCH)

bench-blobs: setup ## measures buckets beside rclone and Swift; see docs/benchmarks-blobs.md
	$(PYTHON) -m bench.blobs $(BENCH)

bench-storages: debian servers setup ## measures backing up to servers beside rclone; see docs/benchmarks-storages.md
	$(PYTHON) -m bench.storages $(BENCH)

clean: ## removes .venv, .bench, caches and built files
	rm -rf .venv .bench .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
