# Run `make` for what there is.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN_NAME ?= quickstart

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev quickstart test test-quick lint clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed ## Install what the three scripts need, into .venv

setup-dev: $(VENV)/.installed-dev ## The same, and what the tests and the linter need

$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "Python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@echo "== Installing into $(VENV), once; the largest part is PyTorch"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

quickstart: setup ## The whole job on the embedded model and sample: split, four stages, evaluation, report
	@echo; echo "== 1 of 3: split the sample's songs into four parts, each with held-out songs"
	$(BIN)/python split_data.py --input data/sample_songs.jsonl --output_dir data/splits_$(RUN_NAME) --validation_fraction 0.1
	@echo; echo "== 2 of 3: four stages of fine-tuning; the embedded model starts with random weights, hence the high learning rate"
	$(BIN)/python train.py --stage 1 2 3 4 --run_name $(RUN_NAME) --data_dir data/splits_$(RUN_NAME) \
		--model_name_or_path embedded --num_epochs 4 --learning_rate 2e-3 --warmup_steps 10 --micro_batch_size 1
	@echo; echo "== 3 of 3: evaluate the base model and the four stages"
	$(BIN)/python evaluate.py --run_name $(RUN_NAME) --data_dir data/splits_$(RUN_NAME) --encoder embedded --num_samples 16
	@echo; echo "Look at:           runs/$(RUN_NAME)/evaluation/report.html  (open it in a browser)"
	@echo "Your own songs:    $(BIN)/python split_data.py --input YOUR_SONGS.jsonl"
	@echo "The real model:    $(BIN)/accelerate launch train.py --stage 1 2 3 4      (datificate/gpt2-small-spanish, from the hub)"
	@echo "Its report:        $(BIN)/accelerate launch evaluate.py"

test: setup-dev ## All tests
	$(BIN)/python -m pytest

test-quick: setup-dev ## The tests that take seconds
	$(BIN)/python -m pytest -m "not slow"

lint: setup-dev ## ruff, and shellcheck where it is installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@if command -v shellcheck >/dev/null; then shellcheck .ci/run; else echo "shellcheck is not installed: shell scripts not checked"; fi

clean: ## Remove the environment and caches; your data and runs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache
