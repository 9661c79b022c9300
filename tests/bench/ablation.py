"""What each objective is worth: short runs of many settings and seeds on three small datasets, as Markdown tables.

    python tests/bench/ablation.py --out runs/ablation                       # screening: one seed, held-out identities
    python tests/bench/ablation.py --out runs/ablation --stage finalists     # five seeds, test identities

Two datasets are drawn pedestrians, which the program draws: 200 people with 12 images, and 400 people with 4. The third
is Omniglot, whose shards the user builds (docs/data.md). Settings are chosen on training identities that are held out;
the test identities are seen only by the finalists. Each run is one process of one thread. Finished runs are kept:
repeat the command to continue. Screening takes about 100 minutes of one core, the finalists about 260 minutes of two.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Data:
    """A small dataset, and how long a run on it is."""

    config: str
    drawn: tuple[str, ...]
    """Arguments of `shards synth`; empty if the user has to bring the shards."""
    flags: tuple[str, ...]
    held_out: int
    """Training identities that screening holds out."""
    schedules: dict[str, tuple[int, int]]
    """Epochs and milestone of each stage."""


DATASETS = {
    "pedestrians": Data(
        "configs/quickstart.yaml", ("--identities-train=200",), (), 40, {"screening": (5, 4), "finalists": (10, 7)}
    ),
    "4 images a person": Data(
        "configs/quickstart.yaml",
        ("--identities-train=400", "--identities-test=200", "--images-per-identity=4", "--seed=1"),
        (), 100, {"screening": (7, 5), "finalists": (14, 10)},
    ),
    "Omniglot": Data(
        "configs/omniglot.yaml", (), ("--data.height=32", "--data.width=32"), 40,
        {"screening": (5, 3), "finalists": (9, 6)},
    ),
}  # fmt: skip

NEUTRAL = (
    "--loss.mctl=0",
    "--loss.ctl=0",
    "--loss.space=raw",
    "--loss.triplet_space=raw",
    "--loss.triplet_margin=0.5",
)  # whatever a config ships


def centroids(loss: str, space: str, margin: float, weight: float, w1: float = 0.1) -> tuple[str, ...]:
    """The flags of an objective with a centroid loss."""
    flags = (f"--loss.{loss}={weight}", f"--loss.space={space}", f"--loss.margin={margin}")
    return (*flags, f"--loss.w1={w1}") if loss == "mctl" else flags


NECK_TRIPLET = ("--loss.triplet_space=neck", "--loss.triplet_margin=0.3")
LETTER = "MCTL raw, m 0.5, w1 0.1 (the paper's letter)"
SETTINGS: dict[str, tuple[str, ...]] = {
    "nothing added": (),
    "CTL raw, m 0.5": centroids("ctl", "raw", 0.5, 1),
    LETTER: centroids("mctl", "raw", 0.5, 1),
    "MCTL raw, m 5, w1 0.1": centroids("mctl", "raw", 5, 1),
    "MCTL neck, m √2, w1 0.5, weight 3": centroids("mctl", "neck", 1.414, 3, 0.5),
    "CTL neck, m 0.3, weight 2": centroids("ctl", "neck", 0.3, 2),
    "MCTL neck, m √2, w1 0.5, weight 1": centroids("mctl", "neck", 1.414, 1, 0.5),
    "triplet neck, m 0.3": NECK_TRIPLET,
    "triplet neck, m 0.3; MCTL neck, m √2, w1 0.5, weight 1": (
        *NECK_TRIPLET,
        *centroids("mctl", "neck", 1.414, 1, 0.5),
    ),
    "triplet neck, m 0.3; CTL neck, m 0.3, weight 1": (*NECK_TRIPLET, *centroids("ctl", "neck", 0.3, 1)),
    "triplet neck, m 0.3; MCTL neck, m √2, w1 0.3, weight 1": (
        *NECK_TRIPLET,
        *centroids("mctl", "neck", 1.414, 1, 0.3),
    ),
    "triplet neck, m 0.3; MCTL neck, m 1.2, w1 0.3, weight 1": (*NECK_TRIPLET, *centroids("mctl", "neck", 1.2, 1, 0.3)),
    "triplet neck, m 0.5": ("--loss.triplet_space=neck", "--loss.triplet_margin=0.5"),
    "triplet neck, m 0.2": ("--loss.triplet_space=neck", "--loss.triplet_margin=0.2"),
    "triplet neck, m 0.3, weight 2": (*NECK_TRIPLET, "--loss.triplet=2"),
    "triplet neck, m 0.3; MCTL neck, m √2, w1 0.1, weight 1": (
        *NECK_TRIPLET,
        *centroids("mctl", "neck", 1.414, 1, 0.1),
    ),
    "triplet neck, m 0.3; MCTL neck, m √2, w1 0.5, weight 3": (
        *NECK_TRIPLET,
        *centroids("mctl", "neck", 1.414, 3, 0.5),
    ),
    "MCTL neck, m √2, w1 0.5, weight 10": centroids("mctl", "neck", 1.414, 10, 0.5),
    "MCTL neck, m √2, w1 0.3, weight 3": centroids("mctl", "neck", 1.414, 3, 0.3),
    "MCTL neck, m √2, w1 0.7, weight 3": centroids("mctl", "neck", 1.414, 3, 0.7),
    "MCTL neck, m 1.2, w1 0.5, weight 3": centroids("mctl", "neck", 1.2, 3, 0.5),
    "MCTL neck, m 1.6, w1 0.5, weight 3": centroids("mctl", "neck", 1.6, 3, 0.5),
    "CTL neck, m 0.3, weight 5": centroids("ctl", "neck", 0.3, 5),
    "MCTL neck, m √2, w1 0.1, weight 3": centroids("mctl", "neck", 1.414, 3, 0.1),
    "MCTL neck, m 1.0, w1 0.5, weight 3": centroids("mctl", "neck", 1.0, 3, 0.5),
    "CTL neck, m 0.3, weight 1": centroids("ctl", "neck", 0.3, 1),
    "CTL neck, m 0.5, weight 2": centroids("ctl", "neck", 0.5, 2),
    "triplet neck, m 0.3; CTL neck, m 0.3, weight 2": (*NECK_TRIPLET, *centroids("ctl", "neck", 0.3, 2)),
    "MCTL unit, m 0.5, w1 0.1": centroids("mctl", "unit", 0.5, 1),
    "MCTL raw, m 5, w1 0.3": centroids("mctl", "raw", 5, 1, 0.3),
}
FINALISTS = (
    "nothing added",
    "CTL raw, m 0.5",
    LETTER,
    "triplet neck, m 0.3",
    "triplet neck, m 0.3; CTL neck, m 0.3, weight 1",
    "triplet neck, m 0.3; MCTL neck, m √2, w1 0.3, weight 1",
)
STAGES = {"screening": (tuple(SETTINGS), 1), "finalists": (FINALISTS, 5)}  # settings and seeds


@dataclass(frozen=True)
class Run:
    """One training run of the study."""

    stage: str
    dataset: str
    setting: str
    seed: int

    @property
    def name(self) -> str:
        parts = self.stage, self.dataset, self.setting, f"seed {self.seed}"
        return "_".join("".join(c if c.isalnum() or c == "." else "-" for c in part) for part in parts)

    def train(self, out: Path, shards: Path) -> None:
        """Train, unless it is done."""
        if self.is_done(out):
            return
        data = DATASETS[self.dataset]
        epochs, milestone = data.schedules[self.stage]
        flags = [
            f"--config={data.config}", f"--data.root={shards}", "--data.workers=0", *data.flags,
            f"--optim.epochs={epochs}", f"--optim.milestones=[{milestone}]", "--optim.warmup_epochs=1",
            f"--data.val_identities={data.held_out if self.stage == 'screening' else 0}",
            "--eval.every_epochs=0", *NEUTRAL, *SETTINGS[self.setting],
            f"--name={self.name}", f"--runs={out}", f"--seed={self.seed}", "--track.wandb=off", "--resume=auto",
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "train.py", *flags], cwd=ROOT, env=environment, check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        (out / self.name / "done").touch()
        print(f"{self.name}: {self.read(out)}", file=sys.stderr, flush=True)

    def is_done(self, out: Path) -> bool:
        """Return whether the run has ended. One that was stopped may have been evaluated, too."""
        return (out / self.name / "done").exists()

    def read(self, out: Path) -> float | None:
        """Return the last image mAP in percent, of held-out identities in screening; None if the run is not done."""
        if not self.is_done(out):
            return None
        split = "val" if self.stage == "screening" else "image"
        lines = [json.loads(line) for line in (out / self.name / "metrics.jsonl").read_text().splitlines()]
        return 100 * [line[f"eval/{split}/mAP"] for line in lines if f"eval/{split}/mAP" in line][-1]


def prepare(dataset: str, out: Path, omniglot: Path) -> Path:
    """Return the folder of a dataset's shards, drawn and built if it is not there."""
    data, name = DATASETS[dataset], dataset.replace(" ", "-")
    if not data.drawn:
        if not (omniglot / "manifest.json").exists():
            raise SystemExit(f"error: {omniglot} holds no shards; build them (docs/data.md) or give --omniglot FOLDER")
        return omniglot.absolute()
    shards, raw = out / "data" / name, out / "data" / f"{name}-raw"
    if not (shards / "manifest.json").exists():
        build = ["build", "market1501", f"--dataset={name}", f"--root={raw}", f"--out={shards}"]
        for command in (["synth", f"--out={raw}", *data.drawn], build):
            subprocess.run([sys.executable, "-m", "shards", *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return shards


def format_table(stage: str, settings: Sequence[str], seeds: int, out: Path) -> list[str]:
    """Rows of mean ± standard deviation over seeds, and on how many seeds a setting beats the first."""
    lines = start_table("objective")
    for setting in settings:
        cells = []
        for dataset in DATASETS:
            values = [Run(stage, dataset, setting, seed).read(out) for seed in range(seeds)]
            done = [value for value in values if value is not None]
            cell = f"{np.mean(done):.1f}" if done else "-"
            cell += f" ± {np.std(done, ddof=1):.1f}" if len(done) > 1 else ""
            pairs = compare(stage, dataset, setting, settings[0], seeds, out)
            shows_wins = len(done) > 1 and setting != settings[0]
            cells.append(cell + (f" ({sum(gain > 0 for gain in pairs)}/{len(pairs)})" if shows_wins else ""))
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    return lines


def format_differences(stage: str, settings: Sequence[str], seeds: int, out: Path) -> list[str]:
    """Rows of the last setting minus each other one, of equal seeds: mean, and on how many seeds it is better."""
    lines = start_table(f"{settings[-1]} minus")
    for setting in settings[:-1]:
        cells = []
        for dataset in DATASETS:
            pairs = compare(stage, dataset, settings[-1], setting, seeds, out)
            wins = sum(gain > 0 for gain in pairs)
            cells.append(f"{np.mean(pairs):+.1f} ({wins}/{len(pairs)})" if pairs else "-")
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    return lines


def start_table(first: str) -> list[str]:
    return [f"| {first} | " + " | ".join(DATASETS) + " |", "|---|" + "---|" * len(DATASETS)]


def compare(stage: str, dataset: str, setting: str, other: str, seeds: int, out: Path) -> list[float]:
    """Return `setting` minus `other` for each seed of which both runs are done."""
    pairs = [[Run(stage, dataset, each, seed).read(out) for each in (setting, other)] for seed in range(seeds)]
    return [pair[0] - pair[1] for pair in pairs if pair[0] is not None and pair[1] is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", choices=STAGES, default="screening")
    parser.add_argument("--omniglot", type=Path, default=Path("data/omniglot"), help="shards; default: data/omniglot")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--table", action="store_true", help="train nothing: print the table of the runs that are done")
    options = parser.parse_args()
    out, (settings, seeds) = options.out.absolute(), STAGES[options.stage]
    if not options.table:
        shards = {dataset: prepare(dataset, out, options.omniglot) for dataset in DATASETS}
        runs = [Run(options.stage, d, setting, s) for s in range(seeds) for setting in settings for d in DATASETS]
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda run: run.train(out, shards[run.dataset]), runs))
    print("\n".join(format_table(options.stage, settings, seeds, out)))
    if seeds > 1:
        print("", *format_differences(options.stage, settings, seeds, out), sep="\n")


if __name__ == "__main__":
    main()
