# Every target sets up what it needs; nothing has to be done by hand.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
TEST_STAMP := $(VENV)/.ready-for-tests
BENCH_STAMP := $(VENV)/.ready-for-bench
# An environment of its own: nothing else needs what the other engine brings.
ENGINES_VENV := build/queue-engines
ENGINES_STAMP := $(ENGINES_VENV)/.ready
# Tests wait for a part of their time: four at once keep two cores busy.
WORKERS := 4
# Compiled tests are kept: else each worker compiles all of them anew. Empty means not set.
export PYTHONDONTWRITEBYTECODE :=
# Pure code and single rooms: no service in a process of its own and no sandbox. The faults of the store and the routes
# of OpenAI, with their own clients, take a minute each. The how-tos start services, and the site a browser. What needs a
# server of Postgres, other processes, long histories or thousands of random texts is left to `make test`, too.
QUICK := $(wildcard tests/test_*.py) $(addprefix tests/,api/classic api/native api/openapi api/transport config docs \
	gateway/money queue redact store worker)
LEFT_OUT := worker/test_store_faults worker/test_machine_memory docs/test_how_to docs/test_scopes docs/test_site \
	store/test_mapping store/test_history store/test_shared_artifacts store/test_durability store/test_node_calls \
	store/test_schema store/test_lock worker/test_waiting_runs \
	redact/test_redactor redact/test_ngram_index api/transport/test_hostile_input gateway/money/test_real_prices

.PHONY: check check-tests compile-tests demo docs recording test test-long bench bench-publish serve lint format setup clients clients-of-test man release demo-release bench-queue-engines chaos

demo: $(STAMP)
	$(BIN)/steadyhand demo

# Clients and agents that `make test` runs; `make test-long` has all of them.
CLIENTS := ai-sdk axe claude-agent-acp codex kimi llm openai openai-node opencode schemathesis typescript

test: $(TEST_STAMP)
	@$(MAKE) --no-print-directory -j3 --output-sync=target clients-of-test lint compile-tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not long"

test-long: $(TEST_STAMP) clients
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Three nodes under faults: SEEDS runs of a few minutes each; in each fifth one node has all faults. It can be
# interrupted: a seed that held is not run again.
SEEDS := 20
FORM := mixed
chaos: $(TEST_STAMP)
	$(BIN)/python -m tests.chaos.run --seeds $(SEEDS) --form $(FORM)

# What to run while working on the code; `make test` has all of it.
check: $(STAMP)
	@$(MAKE) --no-print-directory -j2 --output-sync=target lint check-tests

check-tests: $(STAMP)
	$(BIN)/python -m pytest -q -n 3 --dist worksteal -m "not long and not postgres" $(QUICK) \
		$(addprefix --ignore=tests/,$(addsuffix .py,$(LEFT_OUT))) --ignore-glob='*/store/test_postgres_*.py'

# It runs while clients wait for the network. An error is told by the tests themselves.
compile-tests: $(TEST_STAMP)
	@$(BIN)/python -m pytest -q --collect-only >/dev/null || true

man: $(STAMP)
	@mkdir -p build/man
	$(BIN)/python -m steadyhand.cli.man_page > build/man/steadyhand.1

# All parts of a release, in dist/; then wheel and sdist are tried with each Python that is here.
release: $(STAMP)
	@VENV=$(VENV) sh tools/release.sh
	$(BIN)/python -m tools.try_release dist/*.whl dist/steadyhand-*.tar.gz

# The demo from the wheel, in an environment of its own, as a user without rights.
demo-release: $(STAMP)
	@rm -rf build/wheel
	@$(BIN)/python -m hatchling build -t wheel -d build/wheel >/dev/null 2>&1
	$(BIN)/python -m tools.try_release build/wheel/*.whl

# The clients that tests/clients runs; quick when they are there.
clients: $(TEST_STAMP)
	@VENV=$(VENV) sh tools/clients.sh

clients-of-test: $(TEST_STAMP)
	@VENV=$(VENV) sh tools/clients.sh $(CLIENTS)

bench: $(STAMP)
	$(BIN)/python -m bench

# On an idle machine: the page on performance has what this measured, with plots.
bench-publish: $(BENCH_STAMP)
	@mkdir -p build
	$(BIN)/python -m bench --json > build/bench.json
	$(BIN)/python -m bench.publish build/bench.json docs/performance.md

# The engines of queues under faults, about ten minutes; QUICK_FORM=0.2 takes a fifth and prints only.
QUICK_FORM :=
bench-queue-engines: $(ENGINES_STAMP)
	$(ENGINES_VENV)/bin/python -m bench.queue_engines \
		$(if $(QUICK_FORM),--scale $(QUICK_FORM),--publish docs/decisions/queue-engine.md)

# The site of the documentation, in build/site; a broken link is an error. Nothing is fetched, here or by a reader.
docs: $(STAMP)
	$(BIN)/zensical build --strict --clean
	$(BIN)/python tools/check_site.py build/site

# The moving picture of the demo in the README, from a real run.
recording: $(STAMP)
	@mkdir -p build
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/record_terminal.py docs/images/demo.svg --cast build/demo.cast \
		--title "steadyhand demo" -- steadyhand demo --clean

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

$(ENGINES_STAMP): pyproject.toml constraints.txt tools/setup.sh
	@sh tools/setup.sh $(ENGINES_VENV) queue-engines
	@touch $(ENGINES_STAMP)

$(BENCH_STAMP): $(STAMP)
	@sh tools/setup.sh $(VENV) bench
	@touch $(BENCH_STAMP)
