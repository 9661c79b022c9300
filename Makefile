# `make help` lists the targets. Each target creates the environment first if it is missing.
PYTHON ?= python3
BIN := .venv/bin
QUICKSTART := data/quickstart
TUTORIAL := data/tutorial

# Variables of `make reproduce`: see docs/reproduction.md. DATA is the user's own copy of Market-1501.
DATA :=
CONFIG := configs/market1501.yaml
LAUNCH_FILE := launch/gpu.yaml
SHARDS := data/market1501
RUNS := runs
RUN = $(basename $(notdir $(CONFIG)))
FLAGS :=

export WANDB_SILENT ?= true

.PHONY: help quickstart tutorial reproduce market-folder test unit check bench bench-gpu docs format clean
help:
	@echo "make quickstart   draw pedestrians, build shards, train on two processes, evaluate, write a report"
	@echo "make tutorial     run the commands of docs/tutorial.md: footage, people cut out, training, report, search"
	@echo "make reproduce    DATA=<folder of Market-1501>: build shards, train on a GPU, evaluate; docs/reproduction.md"
	@echo "make test         run ruff, mypy and all tests"
	@echo "make check        run ruff and mypy"
	@echo "make unit         run all tests, without ruff and mypy"
	@echo "make bench-gpu    run the tests and measurements that need a GPU; print tables, write bench-gpu.json"
	@echo "make bench        measure exactness, losses, loader, ranking and trainer; print Markdown tables, draw a figure"
	@echo "make docs         write docs/api.md and docs/knobs.md from the code; check links and commands of all pages"
	@echo "make format       format the code with ruff"
	@echo "make clean        remove the environment, caches and the output of quickstart and tutorial"

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt \
	    --editable '.[dev]'
	$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null || true # pip compiles on one core
	touch $@

# Deletes data/quickstart and runs/quickstart and starts again each time.
quickstart: .venv/installed
	rm -rf $(QUICKSTART) runs/quickstart
	$(BIN)/reid shards synth --identities-train 200 --out $(QUICKSTART)/pedestrians
	$(BIN)/reid shards build market1501 --dataset pedestrians --root $(QUICKSTART)/pedestrians --out $(QUICKSTART)/shards
	$(BIN)/reid train --processes 2 --config configs/quickstart.yaml
	$(BIN)/reid evaluate --processes 2 --run runs/quickstart '--baselines=[untrained,histogram]'

# Deletes data/tutorial and runs/tutorial and starts again each time. docs/tutorial.md explains the steps.
tutorial: .venv/installed
	rm -rf $(TUTORIAL) runs/tutorial
	$(BIN)/reid shards synth-footage --people 60 --frames 120 --width 960 --height 160 --out $(TUTORIAL)/footage
	$(BIN)/reid shards build mot --root $(TUTORIAL)/footage --dataset tutorial --ids shared --every 2 \
	    --min-visibility 0.5 --pad-box 0.05 --test-share 0.4 --out $(TUTORIAL)/shards
	$(BIN)/reid shards verify $(TUTORIAL)/shards --decode
	$(BIN)/reid train --config configs/tutorial.yaml
	$(BIN)/reid evaluate --run runs/tutorial --baselines untrained histogram
	$(BIN)/reid search index --checkpoint runs/tutorial --images $(TUTORIAL)/shards \
	    --out $(TUTORIAL)/people.index
	tar -xf $(TUTORIAL)/shards/query-0000.tar --one-top-level=$(TUTORIAL)/queries
	$(BIN)/reid search query $(TUTORIAL)/people.index $(TUTORIAL)/queries/tutorial-query-000026.000.jpg \
	    --camera 1 --top 8 --out $(TUTORIAL)/result.html --images $(TUTORIAL)/shards

# Uses existing shards and resumes an existing run: repeat the command to finish an interrupted run.
reproduce: market-folder .venv/installed
	test -f $(SHARDS)/manifest.json || $(BIN)/reid shards build market1501 --root "$(DATA)" --out $(SHARDS)
	$(BIN)/accelerate launch --config_file $(LAUNCH_FILE) train.py --config $(CONFIG) --data.root=$(SHARDS) \
	    --runs=$(RUNS) --name=$(RUN) --resume=auto $(FLAGS)
	$(BIN)/accelerate launch --config_file $(LAUNCH_FILE) evaluate.py --run $(RUNS)/$(RUN) \
	    --baselines untrained histogram --rerank

market-folder:
	@test -n "$(DATA)" || { echo "error: DATA is missing; make reproduce DATA=<folder of Market-1501>" >&2; exit 1; }
	@for folder in bounding_box_train query bounding_box_test; do \
	    test -d "$(DATA)/$$folder" && continue; \
	    echo "error: $(DATA) holds no folder $$folder; give DATA the folder of Market-1501 that holds it" >&2; \
	    exit 1; \
	done

# PYTHONDONTWRITEBYTECODE is cleared: many tests start Python again and would compile every module again.
test: .venv/installed
	@$(MAKE) --no-print-directory --jobs 2 check unit

unit: .venv/installed
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.exactness
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.losses
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.step
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.loader
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.ranking
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.trainer
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.world_size
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.virtual_ranks

# One GPU, under ten minutes: the tests that are skipped without one, and the GPU tables of docs/performance.md.
bench-gpu: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.gpu --json bench-gpu.json

docs: .venv/installed
	$(BIN)/python -m tests.support.pages
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_docs.py

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build *.egg-info \
	    $(QUICKSTART) runs/quickstart $(TUTORIAL) runs/tutorial
