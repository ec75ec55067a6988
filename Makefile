# The newcomer's door. `make help` lists what there is.
PYTHON ?= python3
# Parallel test processes; auto: as many as this machine bears (tests/machine_probe.py).
WORKERS ?= auto
CHAOS_MINUTES ?= 10
# Of `make soak`; SOAK_ENGINE is embedded or distributed.
SOAK_MINUTES ?= 30
SOAK_CAPTURES ?= 50
SOAK_ENGINE ?= embedded
# Of `make fuzz`: fuzzed messages, and cases of Schemathesis, on each engine half.
CASES ?= 10000
# The folders that hold the tests of `make quick`; tests/selection.py chooses among them.
QUICK := tests/unit tests/contract tests/simulated tests/integration tests/security
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.synced

.DEFAULT_GOAL := help
.PHONY: help quick demo test chaos soak fuzz check format docs lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): deploy/bootstrap.sh bootstrap.lock requirements.lock pyproject.toml
	@PYTHON="$(PYTHON)" sh deploy/bootstrap.sh "$(VENV)"
	@touch $@

demo: $(STAMP) ## record a simulated room with two speakers and print the result
	@$(BIN)/recorder demo

quick: $(STAMP) ## the checks and the tests without servers and live media; under 90 s on two cores, without root
	@begun=$$(date +%s); \
	$(MAKE) --no-print-directory check && \
	$(BIN)/python -m pytest -q -n logical --dist worksteal -m quick $(QUICK); code=$$?; \
	echo "make quick took $$(($$(date +%s) - begun)) s"; exit $$code

test: $(STAMP) ## everything that must hold: the checks, all tests in parallel, then those marked `alone` one at a time
	@$(MAKE) --no-print-directory check
	@sh deploy/test-servers.sh
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not alone"; parallel=$$?; \
	$(BIN)/python -m pytest -q -m alone && exit $$parallel

chaos: $(STAMP) ## kill, freeze and fail the service at its fault points for CHAOS_MINUTES, on both engines, and audit the rest
	@sh deploy/test-servers.sh
	@$(BIN)/python -m tests.chaos --minutes $(CHAOS_MINUTES)

soak: $(STAMP) ## record rooms that come and go for SOAK_MINUTES, and see that memory, descriptors, tasks and rows stay flat
	@sh deploy/test-servers.sh
	@SOAK_MINUTES=$(SOAK_MINUTES) SOAK_CAPTURES=$(SOAK_CAPTURES) SOAK_ENGINE=$(SOAK_ENGINE) $(BIN)/python -m tests.chaos.soak

fuzz: $(STAMP) ## throw 10,000 fuzzed messages and 10,000 made-up requests at a service, and print what became of them
	@sh deploy/test-servers.sh
	@FUZZ_CASES=$(CASES) $(BIN)/python -m pytest -q -s tests/fuzz

check: $(STAMP) ## style, types, import contracts, generated documents
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m docs.generate --check

format: $(STAMP) ## put the source into house form
	@$(BIN)/ruff check --fix -q . ; $(BIN)/ruff format -q .

docs: $(STAMP) ## write the generated documents anew
	@$(BIN)/python -m docs.generate

lock: $(STAMP) ## resolve the locks anew from pyproject.toml
	@$(BIN)/uv pip compile -q --no-emit-index-url --generate-hashes --python-version 3.11 --all-extras pyproject.toml -o requirements.lock
	@$(BIN)/uv pip compile -q --no-emit-index-url --generate-hashes --python-version 3.11 -c requirements.lock deploy/bootstrap.in -o bootstrap.lock
	@$(BIN)/uv pip compile -q --no-emit-index-url --generate-hashes --python-version 3.11 -c requirements.lock pyproject.toml -o runtime.lock

clean: ## remove the environment and what tests and demo left
	@rm -rf $(VENV) var .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
