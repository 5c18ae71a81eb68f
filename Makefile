# Each target sets up what it needs in .venv; a second run installs nothing.
BIN := .venv/bin
.DEFAULT_GOAL := help

.PHONY: help
help:  ## say what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

.PHONY: setup
setup:  ## install what everything here needs into .venv
	@scripts/setup

.PHONY: demo
demo: setup  ## distil a small real model on this machine and say what each phase cost
	@$(BIN)/python scripts/demo.py

.PHONY: test
test: setup  ## run every test
	@scripts/setup-browser
	@$(BIN)/python -m pytest

.PHONY: test-quick
test-quick: setup  ## run the tests that take seconds
	@$(BIN)/python -m pytest -m "not slow" -x

.PHONY: check
check: setup  ## linters, types, the direction of imports, SQL
	@mkdir -p build
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache >build/lint-imports.log 2>&1 || { cat build/lint-imports.log; exit 1; }
	@$(BIN)/sqlfluff lint --disable-progress-bar --nofail analysis/sql >/dev/null && $(BIN)/sqlfluff lint --disable-progress-bar --quiet analysis/sql
	@echo "check: all is well"

.PHONY: fix
fix: setup  ## mend what linters can mend
	@$(BIN)/ruff check --fix --quiet || true
	@$(BIN)/ruff format --quiet
	@$(BIN)/sqlfluff fix --quiet analysis/sql

.PHONY: bench
bench: setup  ## measure the promises into bench/results.json (PART=name for one)
	@$(BIN)/python -m bench $(PART)

.PHONY: bench-accuracy
bench-accuracy: setup  ## measure how well phases are attributed, peers beside us (QUICK=1: in minutes)
	@$(BIN)/python -m bench.accuracy

.PHONY: torture
torture: setup  ## kill the daemon again and again and see what is lost
	@$(BIN)/python -m bench.torture

.PHONY: proto
proto: setup  ## generate wattd/v1 from proto/
	@scripts/proto

.PHONY: clean
clean:  ## remove what was made, but not .venv
	rm -rf build dist
