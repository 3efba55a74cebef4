# `make` alone prints this help. All recipes but help need only python3, git
# and either root or sudo: scripts/bootstrap fetches what else is missing.

.DEFAULT_GOAL := help
.ONESHELL:
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

VENV := .venv
# Ansible insists on UTF-8, and a fresh machine may have no locale at all.
export LC_ALL := C.UTF-8
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export YAMLLINT_CONFIG_FILE := .config/yamllint.yml

##@ Try it
.PHONY: demo demo-shell demo-clean
demo: venv ## Migrate a disposable host with live legacy bots, end to end
	@python -m tests.demo.run

demo-shell: venv ## Log in to the demo host, as the account that owns the bots
	@python -m tests.demo.run --shell

demo-clean: venv ## Remove the demo host (images are kept: see clean)
	@python -m tests.demo.run --clean

##@ Test it
.PHONY: test lint unit integration molecule bench
test: venv ## All below: what CI runs
	@python -m tests.suite

lint: venv ## ansible-lint, yamllint, ruff, mypy, shellcheck
	@python -m tests.suite lint

unit: venv ## Tests that need no server: a minute
	@python -m tests.suite unit

integration: venv ## Tests against real servers in containers
	@python -m tests.suite integration

molecule: venv ## Scenarios on disposable hosts (SCENARIO=x for one, KEEP=1 to keep its host)
	@python -m tests.suite molecule $(SCENARIO) $(if $(KEEP),--keep)

bench: venv ## Compare the migration with other routes (BENCH="--rows 20000", see docs/benchmark.md)
	@scripts/as-root ansible-playbook tests/testbed/prepare.yml >&2
	scripts/with-docker python -m tests.benchmark $(BENCH)

##@ Housekeeping
.PHONY: venv clean help
venv: ## Check the machine, make .venv from requirements.txt
	@scripts/bootstrap

clean: ## Remove test hosts, their mirror, images built here, .venv and .cache
	@scripts/clean

help: ## Print this help
	@awk 'BEGIN { FS = ":.*## " }
	  /^##@/ { printf "\n%s\n", substr($$0, 5) }
	  /^[a-z-]+:.*## / { printf "  \033[36mmake %-11s\033[0m %s\n", $$1, $$2 }' Makefile
	@echo
