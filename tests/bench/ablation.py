"""What each loss is worth: short runs of several objectives and seeds on small data, as a table of mean ± std.

    python tests/bench/ablation.py configs/quickstart.yaml --out runs/ablation-pedestrians -- --optim.epochs=6 ...

Each run is one process of one thread; finished runs are kept, so that an interrupted table goes on. What follows `--`
goes to every run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
FIGURES = {"image mAP": "eval/image/mAP", "image R1": "eval/image/rank1", "centroid mAP": "eval/centroid/mAP"}

NEUTRAL = ["--loss.w1=0.1", "--loss.normalize=false", "--loss.relative=false"]  # whatever the config ships
VARIANTS = {
    "CE + triplet + center": ["--loss.mctl=0"],
    "+ quadruplet": ["--loss.mctl=0", "--loss.quadruplet=1"],
    "+ CTL, m 0.5": ["--loss.mctl=0", "--loss.ctl=1", "--loss.margin=0.5"],
    "+ MCTL, the paper's letter: m 0.5 raw": ["--loss.margin=0.5"],
    "+ MCTL, m 2 raw": ["--loss.margin=2"],
    "+ MCTL, m 5 raw": ["--loss.margin=5"],
    "+ MCTL, m 0.5 on unit vectors": ["--loss.margin=0.5", "--loss.normalize=true"],
    "+ MCTL, m 0.5 of the centroid spread": ["--loss.margin=0.5", "--loss.relative=true"],
    "+ MCTL, m 1 of the centroid spread": ["--loss.margin=1", "--loss.relative=true"],
    "+ MCTL, m 2 of the centroid spread": ["--loss.margin=2", "--loss.relative=true"],
    "+ MCTL, m 5 raw, w1 0.3": ["--loss.margin=5", "--loss.w1=0.3"],
    "+ MCTL, m 0.2 on unit vectors": ["--loss.margin=0.2", "--loss.normalize=true"],
}


def train(config: Path, out: Path, number: int, variant: str, seed: int, knobs: list[str]) -> dict[str, float]:
    """One run, unless its figures are there already."""
    name = f"{number:02d}-seed{seed}"
    log = out / name / "metrics.jsonl"
    if not finished(log):
        fixed = [f"--name={name}", f"--runs={out}", f"--seed={seed}", "--track.wandb=off", "--resume=auto"]
        command = [sys.executable, "train.py", f"--config={config}", *NEUTRAL, *VARIANTS[variant], *knobs, *fixed]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    print(f"{variant}, seed {seed}: {finished(log)}", file=sys.stderr, flush=True)
    return finished(log)


def finished(log: Path) -> dict[str, float]:
    """The figures of the last evaluation, empty before it."""
    if not log.exists():
        return {}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    scores = [line for line in lines if "eval/image/mAP" in line]
    return {name: scores[-1][key] for name, key in FIGURES.items()} if scores else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--variants", type=int, nargs="*", help="numbers from the list; default: all")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, knobs = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]
    names = list(VARIANTS)
    chosen = options.variants if options.variants is not None else list(range(len(names)))
    runs = [(number, seed) for seed in range(options.seeds) for number in chosen]
    with ThreadPoolExecutor(options.jobs) as pool:
        found = list(
            pool.map(lambda run: train(options.config, options.out, run[0], names[run[0]], run[1], knobs), runs)
        )
    print("| objective | seeds | " + " | ".join(FIGURES) + " |")
    print("|---|---|" + "---|" * len(FIGURES))
    for number in chosen:
        own = [figures for (n, _), figures in zip(runs, found, strict=True) if n == number]
        cells = [
            f"{100 * np.mean(v):.1f}" + (f" ± {100 * np.std(v, ddof=1):.1f}" if len(v) > 1 else "")
            for v in columns(own)
        ]
        print(f"| {names[number]} | {len(own)} | " + " | ".join(cells) + " |")


def columns(rows: list[dict[str, float]]) -> list[list[float]]:
    return [[row[name] for row in rows] for name in FIGURES]


if __name__ == "__main__":
    main()
