# `make quickstart` and `make test` set up everything they need on a fresh machine; `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
QUICKSTART := data/quickstart
LAUNCH := $(BIN)/accelerate launch --config_file launch/cpu.yaml

export WANDB_SILENT ?= true

.PHONY: help quickstart test check bench format clean
help:
	@echo "make quickstart   environment, drawn pedestrians, shards, training on two processes, evaluation, report"
	@echo "make test         environment, code checks and the whole test suite"
	@echo "make check        ruff and mypy alone"
	@echo "make bench        measurements, as Markdown tables: exactness over ranks, cost of the losses"
	@echo "make format       let ruff rewrite the code's layout"
	@echo "make clean        remove the environment, caches, and what the quickstart made"

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# The quickstart owns data/quickstart and runs/quickstart, and starts over each time.
quickstart: .venv/installed
	rm -rf $(QUICKSTART) runs/quickstart
	$(BIN)/python -m shards synth --identities-train 200 --out $(QUICKSTART)/pedestrians
	$(BIN)/python -m shards build market1501 --dataset pedestrians --root $(QUICKSTART)/pedestrians --out $(QUICKSTART)/shards
	$(LAUNCH) train.py --config configs/quickstart.yaml
	$(LAUNCH) evaluate.py --run runs/quickstart '--baselines=[untrained,histogram]'

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.exactness
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.losses

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build *.egg-info $(QUICKSTART) runs/quickstart
