# The project's commands. `make demo` and `make test` are the two to know.

PYTHON ?= python3
SEED ?= 0
ROOT := $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST))))
VENV ?= $(ROOT)/.venv
# Bytecode is written at first import: sooner than compiling every file while installing.
unexport PYTHONDONTWRITEBYTECODE
BIN := $(VENV)/bin
# Twice quiet: errors, and no warnings.
PIP := $(BIN)/pip install --quiet --quiet --disable-pip-version-check --no-compile
STACK := $(BIN)/python -m stack
DATA_PREP := $(BIN)/python -m data_prep

TEACHER := runs/digits_teacher/teacher
STUDENT := runs/digits_js

.PHONY: demo drill ablations test test-slow test-slurm test-ranks test-anywhere check lint types clean

demo: $(VENV)/core  ## install, prepare data, teacher, distil, evaluate, report
	$(DATA_PREP) digits data/digits
	$(STACK) pretrain $(ROOT)/recipes/digits_teacher.yaml --resume seed=$(SEED)
	$(DATA_PREP) latents data/digits/shards data/digits/latents --vae $(TEACHER)
	$(DATA_PREP) captions data/digits/latents data/digits/train --tokenizer $(TEACHER)
	$(STACK) distill $(ROOT)/recipes/digits_js.yaml --resume seed=$(SEED)
	$(STACK) sample $(STUDENT)
	$(STACK) export $(STUDENT)
	$(STACK) evaluate $(STUDENT)
	$(STACK) report $(STUDENT)
	@echo "pipeline  $(STUDENT)/student"

drill: $(VENV)/all  ## three seeds of the demo, curves, the rarer tests, kills by the dozen; an hour; by hand
	set -e; for seed in 0 1 2; do \
		mkdir -p drill/seed-$$seed; \
		$(MAKE) -C drill/seed-$$seed -f $(abspath $(ROOT))/Makefile demo SEED=$$seed; \
	done
	$(BIN)/python $(ROOT)/tests/drill.py drill/seed-*
	cd drill/seed-0 && PYTHONPATH=$(abspath $(ROOT)) $(abspath $(BIN))/python \
		$(abspath $(ROOT))/tests/parallel/curves.py $(abspath $(ROOT))/recipes/digits_js.yaml
	cd $(ROOT) && $(BIN)/pytest -m drill
	cd $(ROOT) && KILLS=100 $(BIN)/pytest -m slow tests/parallel/test_failures.py -k any_moment
	cd $(ROOT) && KILLS=20 $(BIN)/pytest -m slow tests/data_prep/test_coyo_pipeline.py

ablations: $(VENV)/core  ## tables on digits, after make demo: divergences, normalisations, features; hours
	set -e; for plan in divergences normalisation features; do \
		$(STACK) ablate $(ROOT)/recipes/ablations/digits_$$plan.yaml; \
	done

test: $(VENV)/all  ## the quick suite
	$(BIN)/pytest -n auto --dist loadfile

test-slow: $(VENV)/all  ## kills, several processes, the long ones; Slurm's mostly wait, so beside the rest
	$(MAKE) --file=$(abspath $(ROOT))/Makefile --jobs=2 --output-sync=target test-slurm test-ranks

test-slurm: $(VENV)/all
	$(BIN)/pytest -m 'slow and not drill' -n 4 --dist loadfile tests/slurm

test-ranks: $(VENV)/all
	$(BIN)/pytest -m 'slow and not drill' -n auto --dist loadfile --ignore=tests/slurm

test-anywhere: $(VENV)/all  ## both suites with other instructions, threads, orders and loads; hours
	$(BIN)/python -m tests.anywhere

check: lint types test  ## lint, types, tests

lint: $(VENV)/all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/all
	$(BIN)/mypy

$(VENV)/core: $(ROOT)/pyproject.toml $(ROOT)/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint $(ROOT)/requirements.txt --editable $(ROOT)
	@touch $@

$(VENV)/all: $(VENV)/core
	$(PIP) --requirement $(ROOT)/requirements.txt
	@touch $@

clean:  ## what make demo and make drill made
	rm -rf $(VENV) data runs drill anywhere
