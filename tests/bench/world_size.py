"""Loss curves of 1, 2 and 4 processes over each other, and how far they are apart: docs/pictures/world_size.png.

python -m tests.bench.world_size          two minutes on two cores
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from tests.support.drawn import draw_dataset
from tests.support.pool import Pool
from tests.support.world_size import make_config, run

STEPS, PROCESSES = 50, (1, 2, 4)
PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "world_size.png"


def main() -> None:
    pool = Pool(max(PROCESSES))
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    losses, apart = figure.subplots(1, 2)
    print("| precision | processes | first 5 steps | 20 steps | 50 steps |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        root = draw_dataset(Path(folder)).root
        for colour, dtype in zip(("#0072b2", "#d55e00"), (torch.float64, torch.float32), strict=True):
            name = str(dtype).removeprefix("torch.")
            curves = {n: train(pool, n, root, Path(folder), f"{name}-{n}", dtype) for n in PROCESSES}
            for (n, curve), width in zip(curves.items(), (6, 3.5, 1), strict=True):
                losses.plot(curve, color=colour, linewidth=width, alpha=0.35 if n < 4 else 1, label=f"{name}, {n}")
                if n > 1:
                    difference = np.abs(curve - curves[1]) / curves[1]
                    apart.semilogy(np.where(difference > 0, difference, np.nan), ".x"[n == 4], color=colour,
                                   markersize=5, label=f"{name}, {n} against 1")  # fmt: skip
                    print(f"| {name} | {n} | {' | '.join(f'{difference[:k].max():.1e}' for k in (5, 20, STEPS))} |")
    losses.set(xlabel="step", ylabel="loss", title="4 virtual ranks on 1, 2 and 4 processes")
    apart.set(xlabel="step", ylabel="relative difference (zeros left out)", title="Difference from one process")
    for axes in (losses, apart):
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE)
    pool.close()
    print(f"\n{PICTURE}")


def train(pool: Pool, processes: int, root: Path, runs: Path, name: str, dtype: torch.dtype) -> np.ndarray:
    """Return the loss of each step."""
    config = make_config(root, runs, name, STEPS)
    pool.run(processes, run, config, dtype)
    lines = map(json.loads, (config.folder / "metrics.jsonl").read_text().splitlines())
    return np.array([line["train/loss"] for line in lines if "train/loss" in line])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
