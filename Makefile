# Entry point for contributors. `make help` lists the targets.
PYTHON ?= python3
# Parallel test processes; auto: chosen for this machine by tests/machine_probe.py.
WORKERS ?= auto
CHAOS_MINUTES ?= 10
# For `make soak`; SOAK_ENGINE is embedded or distributed, and SOAK_MODE the Mode of the sessions.
SOAK_MINUTES ?= 30
SOAK_CAPTURES ?= 50
SOAK_ENGINE ?= embedded
SOAK_MODE ?= 00
# For `make fuzz`: number of fuzzed messages and of Schemathesis cases, half of them on each engine.
CASES ?= 10000
# The folders that hold the tests of `make quick`; tests/selection.py chooses among them.
QUICK := tests/unit tests/contract tests/simulated tests/integration tests/security
VENV := .venv
# Compiled modules are kept: hundreds of processes load them.
export PYTHONDONTWRITEBYTECODE :=
BIN := $(VENV)/bin
STAMP := $(VENV)/.synced

.DEFAULT_GOAL := help
.PHONY: help quick demo test chaos soak fuzz bench-engine bench-capture bench-finish check format docs lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): deploy/bootstrap.sh bootstrap.lock requirements.lock pyproject.toml
	@PYTHON="$(PYTHON)" sh deploy/bootstrap.sh "$(VENV)"
	@touch $@

demo: $(STAMP) ## record a simulated room with two speakers and print the result
	@$(BIN)/recorder demo

quick: $(STAMP) ## run the checks and the tests without servers and live media; under 90 s on two cores, no root
	@begun=$$(date +%s); \
	$(MAKE) --no-print-directory check && \
	$(BIN)/python -m pytest -q -n logical --dist worksteal -m quick $(QUICK); code=$$?; \
	echo "make quick took $$(($$(date +%s) - begun)) s"; exit $$code

# The second core compiles the tests for their processes while the first one checks types.
test: $(STAMP) ## run the checks, all tests in parallel, then the tests marked `alone` one at a time
	@$(BIN)/python -m pytest -q --collect-only >/dev/null & \
	$(MAKE) --no-print-directory check && wait
	@sh deploy/test-servers.sh
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not alone"; parallel=$$?; \
	$(BIN)/python -m pytest -q -m alone $$(grep -rl --include='test_*.py' 'mark\.alone' tests) && exit $$parallel

chaos: $(STAMP) ## kill, freeze and fail the service at its failpoints for CHAOS_MINUTES, on both engines, and audit the result
	@sh deploy/test-servers.sh
	@$(BIN)/python -m tests.chaos --minutes $(CHAOS_MINUTES)

soak: $(STAMP) ## record rooms that come and go for SOAK_MINUTES; memory, descriptors, tasks and rows must stay flat
	@sh deploy/test-servers.sh
	@SOAK_MINUTES=$(SOAK_MINUTES) SOAK_CAPTURES=$(SOAK_CAPTURES) SOAK_ENGINE=$(SOAK_ENGINE) SOAK_MODE=$(SOAK_MODE) $(BIN)/python -m tests.chaos.soak

fuzz: $(STAMP) ## send CASES fuzzed messages and as many made-up requests to a service, and print the outcomes
	@sh deploy/test-servers.sh
	@FUZZ_CASES=$(CASES) $(BIN)/python -m pytest -q -s tests/fuzz tests/security/test_native_streams.py

bench-engine: $(STAMP) ## compare the engine with bare loops and with other engines; writes bench/results and bench/RESULTS.md
	@sh deploy/test-servers.sh
	@$(BIN)/python -m bench.engine --make-peers --write

bench-capture: $(STAMP) ## compare 1 to 300 native captures with ffmpeg; writes bench/results/capture.json
	@$(BIN)/python -m bench.capture_density --write

bench-finish: $(STAMP) ## measure the time from a room's end to its object; writes bench/results/finish.json
	@$(BIN)/python -m bench.finish --write

check: $(STAMP) ## check style, types, import contracts and generated documents
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m docs.generate --check

format: $(STAMP) ## format the source
	@$(BIN)/ruff check --fix -q . ; $(BIN)/ruff format -q .

docs: $(STAMP) ## regenerate the documents
	@$(BIN)/python -m docs.generate

lock: $(STAMP) ## resolve the locks from pyproject.toml
	@$(BIN)/uv pip compile -q --no-emit-index-url --generate-hashes --python-version 3.11 --all-extras pyproject.toml -o requirements.lock
	@$(BIN)/uv pip compile -q --no-emit-index-url --generate-hashes --python-version 3.11 -c requirements.lock deploy/bootstrap.in -o bootstrap.lock
	@$(BIN)/uv pip compile -q --no-emit-index-url --generate-hashes --python-version 3.11 -c requirements.lock pyproject.toml -o runtime.lock

clean: ## remove the environment and the files of tests and demo
	@rm -rf $(VENV) var .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
