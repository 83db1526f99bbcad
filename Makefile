# The project's commands. `make demo` and `make test` are the two to know.

PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
STACK := $(BIN)/python -m stack
DATA_PREP := $(BIN)/python -m data_prep

TEACHER := runs/digits_teacher/teacher
STUDENT := runs/digits_js

.PHONY: demo check lint types test test-slow clean

demo: .venv/core  ## install, prepare data, teacher, distil, evaluate, report
	$(DATA_PREP) digits data/digits
	$(STACK) pretrain recipes/digits_teacher.yaml --resume seed=$(SEED)
	$(DATA_PREP) latents data/digits/shards data/digits/latents --vae $(TEACHER)
	$(DATA_PREP) captions data/digits/latents data/digits/train --tokenizer $(TEACHER)
	$(STACK) distill recipes/digits_js.yaml --resume seed=$(SEED)
	$(STACK) sample $(STUDENT)
	$(STACK) export $(STUDENT)
	$(STACK) evaluate $(STUDENT)
	$(STACK) report $(STUDENT)

test: .venv/all  ## the quick suite
	$(BIN)/pytest

test-slow: .venv/all  ## kills, several processes, the long ones
	$(BIN)/pytest -m slow

check: lint types test  ## lint, types, tests

lint: .venv/all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/all
	$(BIN)/mypy

.venv/core: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(PIP) --no-compile --constraint requirements.txt --editable .
	@touch $@

.venv/all: .venv/core
	$(PIP) --no-compile --requirement requirements.txt
	@touch $@

clean:  ## what make demo made
	rm -rf .venv data runs
