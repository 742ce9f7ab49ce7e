# Every target sets up what it needs; nothing has to be done by hand.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
TEST_STAMP := $(VENV)/.ready-for-tests
# Tests wait for a good part of their time: three at once keep two cores busy.
WORKERS := 3

.PHONY: demo test test-long bench serve lint format setup clients

demo: $(STAMP)
	$(BIN)/steadyhand demo

test: $(TEST_STAMP) clients lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not long"

test-long: $(TEST_STAMP) clients
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# The clients that tests/clients runs; quick when they are there.
clients: $(TEST_STAMP)
	@VENV=$(VENV) sh tools/clients.sh

bench: $(STAMP)
	$(BIN)/python -m bench

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
