# Every target sets up what it needs; nothing has to be done by hand.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
TEST_STAMP := $(VENV)/.ready-for-tests
BENCH_STAMP := $(VENV)/.ready-for-bench
# Tests wait for a part of their time: four at once keep two cores busy.
WORKERS := 4
# Compiled tests are kept: else each worker compiles all of them anew. Empty means not set.
export PYTHONDONTWRITEBYTECODE :=
# Pure code and single rooms: no service in a process of its own and no sandbox. The faults of the store and the routes
# of OpenAI, with their own clients, take a minute each.
QUICK := $(wildcard tests/test_*.py) $(addprefix tests/,api/classic api/native api/openapi api/transport config docs \
	gateway/money queue redact store worker)

.PHONY: check check-tests compile-tests demo test test-long bench bench-publish serve lint format setup clients

demo: $(STAMP)
	$(BIN)/steadyhand demo

test: $(TEST_STAMP)
	@$(MAKE) --no-print-directory -j3 --output-sync=target clients lint compile-tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not long"

test-long: $(TEST_STAMP) clients
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# What to run while working on the code; `make test` has all of it.
check: $(STAMP)
	@$(MAKE) --no-print-directory -j2 --output-sync=target lint check-tests

check-tests: $(STAMP)
	$(BIN)/python -m pytest -q -n 3 --dist worksteal -m "not long" $(QUICK) \
		--ignore=tests/worker/test_store_faults.py

# It runs while clients wait for the network. An error is told by the tests themselves.
compile-tests: $(TEST_STAMP)
	@$(BIN)/python -m pytest -q --collect-only >/dev/null || true

# The clients that tests/clients runs; quick when they are there.
clients: $(TEST_STAMP)
	@VENV=$(VENV) sh tools/clients.sh

bench: $(STAMP)
	$(BIN)/python -m bench

# On an idle machine: the page on performance has what this measured, with plots.
bench-publish: $(BENCH_STAMP)
	@mkdir -p build
	$(BIN)/python -m bench --json > build/bench.json
	$(BIN)/python -m bench.publish build/bench.json docs/performance.md

serve: $(STAMP)
	$(BIN)/steadyhand serve

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt tools/setup.sh
	@sh tools/setup.sh $(VENV)
	@touch $(STAMP)

$(TEST_STAMP): $(STAMP)
	@sh tools/setup.sh $(VENV) tests
	@touch $(TEST_STAMP)

$(BENCH_STAMP): $(STAMP)
	@sh tools/setup.sh $(VENV) bench
	@touch $(BENCH_STAMP)
