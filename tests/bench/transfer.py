"""What a start from another dataset is worth: short runs from scratch and from a run on the other dataset, as a table.

    python tests/bench/transfer.py --out runs/transfer

Drawn pedestrians (200 people, drawn by the program) and Omniglot (shards that the user builds: docs/data.md). A source
run is trained on each; then, on each, short runs from scratch and from the other's source, with and without an average
of the weights (optim.ema), three seeds each. Every model is evaluated with and without the flip test. One process of
one thread; finished runs are kept: repeat the command to continue. About 40 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tests.bench.ablation import DATASETS, ROOT, prepare

OTHER = {"pedestrians": "Omniglot", "Omniglot": "pedestrians"}
SEEDS = (0, 1, 2)
SOURCE = ("--optim.epochs=9", "--optim.milestones=[6]")
SHORT = ("--optim.epochs=3", "--optim.milestones=[2]")
EMA = "--optim.ema=0.97"  # the average of about the last epoch
SETTINGS = {
    "from scratch": (False, ()),
    "from scratch, EMA": (False, (EMA,)),
    "from the other dataset": (True, ()),
    "from the other dataset, EMA": (True, (EMA,)),
}


def run(program: str, *flags: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, program, *flags], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)


def train(out: Path, name: str, dataset: str, shards: Path, seed: int, *flags: str) -> Path:
    """Train a run, unless it is done, and return its folder."""
    folder, data = out / name.replace(" ", "-").replace(",", ""), DATASETS[dataset]
    if not (folder / "done").exists():
        run("train.py", f"--config={data.config}", f"--data.root={shards}", "--data.workers=0", *data.flags,
            "--optim.warmup_epochs=1", *flags, f"--name={folder.name}", f"--runs={out}", f"--seed={seed}",
            "--track.wandb=off", "--resume=auto")  # fmt: skip
        (folder / "done").touch()
    return folder


def evaluate(folder: Path, flip: bool) -> float:
    """Return the image mAP in percent of a run, with the flip test or without it."""
    out = folder / ("flipped" if flip else "plain")
    if not out.exists():
        run("evaluate.py", f"--run={folder}", f"--out={out}", f"--flip={str(flip).lower()}", "--protocols=[image]",
            "--workers=0", "--wandb=off")  # fmt: skip
    (metrics,) = out.glob("*/metrics.json")
    return 100 * float(json.loads(metrics.read_text())["image"]["mAP"])


def format_table(found: Mapping[tuple[str, str, bool], list[float]]) -> str:
    """found: mAP of each seed by dataset, setting and flip test."""
    columns = [(dataset, flip) for dataset in OTHER for flip in (False, True)]
    names = [f"{dataset}{', flip test' if flip else ''}" for dataset, flip in columns]
    lines = [f"| start | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for setting in SETTINGS:
        values = [found[dataset, setting, flip] for dataset, flip in columns]
        cells = (f"{np.mean(each):.1f} ± {np.std(each, ddof=1):.1f}" for each in values)
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--omniglot", type=Path, default=Path("data/omniglot"), help="shards; default: data/omniglot")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    out = options.out.absolute()
    shards = {dataset: prepare(dataset, out, options.omniglot) for dataset in OTHER}

    def measure(dataset: str, setting: str, seed: int) -> list[float]:
        """Return the image mAP without and with the flip test."""
        transfers, flags = SETTINGS[setting]
        start = (f"--model.weights={sources[OTHER[dataset]]}",) if transfers else ()
        name = f"{dataset} {setting} seed {seed}"
        folder = train(out, name, dataset, shards[dataset], seed, *SHORT, *start, *flags)
        values = [evaluate(folder, flip) for flip in (False, True)]
        print(f"{name}: {values[0]:.1f}, with the flip test {values[1]:.1f}", file=sys.stderr, flush=True)
        return values

    with ThreadPoolExecutor(options.jobs) as pool:
        made = pool.map(lambda name: train(out, f"source {name}", name, shards[name], 0, *SOURCE), OTHER)
        sources = dict(zip(OTHER, made, strict=True))
        runs = [(dataset, setting, seed) for seed in SEEDS for setting in SETTINGS for dataset in OTHER]
        values = pool.map(lambda run: measure(*run), runs)
        found: dict[tuple[str, str, bool], list[float]] = {}
        for (dataset, setting, _), pair in zip(runs, values, strict=True):
            for flip, value in zip((False, True), pair, strict=True):
                found.setdefault((dataset, setting, flip), []).append(value)
    print(format_table(found))


if __name__ == "__main__":
    main()
