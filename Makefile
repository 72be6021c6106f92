VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
# An NVIDIA driver decides; DEVICE=cpu or DEVICE=gpu overrides it.
DEVICE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
ARGS ?=
MODEL ?=
JUNIT := build/junit
HEAVY := -m 'not heavy'

.PHONY: help install serve test test-all lint format type unit engine e2e bench clean

help:  ## list the targets
	@grep -E '^[a-z0-9]+:.*##' Makefile | sed 's/:.*## /\t/'

install: $(VENV)/.installed-$(DEVICE)  ## create .venv and install everything

$(VENV)/.installed-%: requirements/%.txt requirements/dev.txt pyproject.toml requirements/install
	PYTHON=$(PYTHON) requirements/install $(VENV) $*
	@touch $@

serve: install  ## serve the default model with the shipped probe on :8000; ARGS="MODEL --flags"
	$(BIN)/qprobe serve $(ARGS)

test: install lint type unit engine e2e  ## everything that CI runs

test-all: HEAVY :=
test-all: test  ## and what is heavy, before a release
	$(BIN)/pytest tests/engine/test_parity.py --engine-dtype bfloat16

lint: install  ## style and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache

format: install  ## rewrite in the project's style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

type: install  ## static types
	$(BIN)/mypy

# Runs of their own, so that only one engine is alive at a time.
# Most of these wait for processes and sockets: three at a time take half as long on two cores.
unit: install  ## tests without an engine, five minutes
	$(BIN)/pytest tests/unit -n 3 --dist loadfile $(HEAVY) --junitxml $(JUNIT)/unit.xml

engine: install  ## tests of one real vLLM engine
	$(BIN)/pytest tests/engine $(HEAVY) --junitxml $(JUNIT)/engine.xml
	$(BIN)/pytest tests/engine/test_parity.py --speculative -k "repeats or chunks or stop_strings" \
		--junitxml $(JUNIT)/speculative.xml
	$(BIN)/pytest tests/v2 --junitxml $(JUNIT)/v2.xml

e2e: install  ## tests of a real server by the official clients
	$(BIN)/pytest tests/e2e $(HEAVY) --junitxml $(JUNIT)/e2e.xml

bench: install  ## what reranking costs, against plain vLLM; MODEL=ORG/NAME, ARGS="--flags of both servers"
	$(BIN)/python tests/bench/cost.py $(if $(MODEL),--model $(MODEL)) $(ARGS)

clean:  ## remove what was built
	rm -rf build $(VENV)
