# Everything here works on a fresh machine: `make demo` and `make test` make .venv and install into it first.
# Variables: ARGS="…" is passed on; PYTHON=… names the interpreter for .venv; TORCH=cpu installs PyTorch without CUDA.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PYTHONS := python3.11 python3.12 python3.13 python3
SOURCES := streams online_models serving tests benchmarks
ARGS ?=
PYTHON ?=
TORCH ?=
UPGRADE ?=
CHAOS_S ?= 900
CHAOS_SEED ?=
CHAOS_JSON ?=

.PHONY: help install demo test test-slow lint format bench bench-quality chaos soak profile docs lock clean distclean need-maven

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "make %-13s %s\n", $$1, $$2 }'

install: $(STAMP) ## .venv with all that the lock names, and this checkout, editable

demo: $(STAMP) | need-maven ## the main job: Kafka, workers, trainer and monitor on MovieLens-100K (ARGS="--events 20000")
	$(VENV)/bin/freshet demo $(ARGS)

# Three processes on two cores, since much of the time a broker is waited for; so one thread is enough for each. Some two
# hundred more are started: without their byte code each would compile the sources again.
test test-slow: export PYTHONDONTWRITEBYTECODE =
test: export OMP_NUM_THREADS ?= 1

test: $(STAMP) ## all tests but the slow ones, against a real broker
	@command -v mvn >/dev/null 2>&1 || echo "make test: no Maven (mvn) on PATH: unless a broker is named in" \
	  "FRESHET_TEST_BOOTSTRAP or its jars are cached, the Kafka tests will be skipped. apt-get install maven." >&2
	$(PY) -m streams.warm_up
	$(PY) -m pytest -m "not slow" --durations=15 -n 3 $(ARGS)

test-slow: $(STAMP) | need-maven ## long chaos and quality runs
	$(PY) -m pytest -m slow --durations=15 $(ARGS)

lint: $(STAMP) ## ruff, ruff format, mypy --strict
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(STAMP) ## rewrite the sources in the one format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(STAMP) | need-maven ## the table of speed, each row beside what it is held against (ARGS="--only learn --quick")
	$(PY) -m benchmarks $(ARGS)

bench-quality: $(STAMP) ## the table of quality: the goals beside anchors and peers, then the networks, three hours (ARGS="--small")
	$(PY) -m benchmarks.quality $(ARGS)
	$(PY) -m benchmarks.networks_loo $(filter --small,$(ARGS))
	$(PY) -m benchmarks.networks_losses $(filter --small,$(ARGS))
	$(PY) -m benchmarks.prequential_ranker $(filter --small,$(ARGS))
	$(PY) -m benchmarks.compression $(filter --small,$(ARGS))

soak: $(STAMP) | need-maven ## two hours' worth of events at full speed: does memory stay flat? (ARGS="--quick")
	$(PY) -m benchmarks.soak $(ARGS)

profile: $(STAMP) | need-maven ## py-spy on a busy worker, by function (ARGS="--workload ranker")
	$(PY) -m benchmarks.profile $(ARGS)

chaos: $(STAMP) | need-maven ## workers and broker killed at random, then the audit (CHAOS_S=900 CHAOS_SEED=1 CHAOS_JSON=path)
	$(PY) -m tests.chaos --seconds $(CHAOS_S) $(if $(CHAOS_SEED),--seed $(CHAOS_SEED)) \
	  $(if $(CHAOS_JSON),--json-file $(CHAOS_JSON)) $(ARGS)

docs: $(STAMP) ## the JSON Schemas and the AsyncAPI document, from the code
	$(PY) -m streams.schemas docs

# The "." makes this checkout the one meaning of `freshet`: the package index has a stranger of that name, which the
# dev group's reference to our own extras would bring in. Versions that stand in the lock are kept without UPGRADE.
lock: $(STAMP) ## requirements.lock anew from pyproject.toml (UPGRADE=--upgrade for the newest)
	echo . | $(PY) -m uv pip compile --quiet --universal --no-emit-index-url --no-emit-package freshet --no-annotate \
	  --python-version 3.11 --custom-compile-command "make lock" --extra train --extra embedded --group dev $(UPGRADE) \
	  pyproject.toml - -o requirements.lock

clean: ## caches and build outputs
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .freshet
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and .venv
	rm -rf $(VENV)

# Only a broker of our own needs Maven, and only until its jars are cached.
need-maven:
	@command -v mvn >/dev/null 2>&1 && exit 0; \
	home="$${FRESHET_HOME:-$${XDG_STATE_HOME:-$$HOME/.local/state}/freshet}"; \
	for jars in "$$home"/kafka/*/libs; do [ -d "$$jars" ] && exit 0; done; \
	echo "make: Maven (mvn) is not on PATH, and Apache Kafka's jars are not in $$home/kafka yet." >&2; \
	echo "      Maven fetches the embedded broker: install it (Debian: apt-get install maven; macOS: brew install maven)" >&2; \
	echo "      and run this again. With a broker of your own there is no need of it: see docs/operations.md." >&2; \
	exit 1

# uv installs in a tenth of pip's time; where it can't be had, pip does the same from the same lock. With TORCH=cpu
# the lock only constrains: taken as a list it would bring the CUDA libraries along.
$(STAMP): requirements.lock pyproject.toml
	@set -e; found=; chosen=; new_enough='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(PY) -c "$$new_enough" 2>/dev/null; then \
	  for python in $(if $(PYTHON),"$(PYTHON)",$(PYTHONS)); do \
	    "$$python" -c "$$new_enough" 2>/dev/null || continue; found=1; \
	    "$$python" -c 'import ensurepip, venv' 2>/dev/null || continue; chosen="$$python"; break; \
	  done; \
	  if [ -n "$$chosen" ]; then \
	    echo "make: $(VENV) with $$("$$chosen" --version)"; rm -rf $(VENV); "$$chosen" -m venv $(VENV); \
	  elif [ -n "$$found" ]; then \
	    echo "make: Python lacks its venv or ensurepip module (Debian: apt-get install python3-venv)." >&2; exit 1; \
	  else \
	    echo "make: no Python 3.11 or newer among: $(or $(PYTHON),$(PYTHONS))." >&2; \
	    echo "      Install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; \
	  fi; \
	fi; \
	$(PY) -m uv --version >/dev/null 2>&1 || $(PY) -m pip install --quiet --disable-pip-version-check uv \
	  || echo "make: uv can't be had; pip installs, which takes longer" >&2; \
	if $(PY) -m uv --version >/dev/null 2>&1; then \
	  pip="$(PY) -m uv pip"; into="--python $(PY)"; \
	else \
	  pip="$(PY) -m pip"; into="--disable-pip-version-check"; \
	fi; \
	if [ -n "$(TORCH)" ]; then \
	  case "$$pip" in *uv*) ;; *) echo "make: TORCH=$(TORCH) needs uv" >&2; exit 1;; esac; \
	  $$pip install $$into --torch-backend "$(TORCH)" -c requirements.lock --group dev \
	    -e ".[train,embedded]"; \
	else \
	  $$pip install $$into -r requirements.lock; \
	fi; \
	$$pip install $$into --no-deps -e .; \
	touch $(STAMP)
