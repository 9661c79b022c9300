"""What a training run logs: the names that `Tracker.log` writes, and metrics.jsonl read back. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reid.config import Config, LossConfig
from reid.config.ranges import weights_of

LOSSES = weights_of(LossConfig)
OF_TRIPLETS = ("triplet_d_ap", "triplet_d_an")
OF_CENTROIDS = ("hinge_active", "d_ap", "d_an", "negative_entropy")
SPEED = ("lr", "images_per_s", "steps_per_s", "data_wait_share", "memory_gib")
EVALUATED = [f"{protocol}/{name}" for protocol in ("image", "centroid", "val") for name in ("mAP", "mINP", "rank1")]
METRICS = (
    "eval/best_mAP",
    "eval/last_mAP",
    *(f"eval/{name}" for name in EVALUATED),
    "train/loss",
    *(f"train/{name}" for name in (*LOSSES, "feature_norm", *OF_TRIPLETS, *OF_CENTROIDS, *SPEED)),
    "data/dropped_identities",
)
# Those that a training on several datasets also logs for each: `Validations.evaluate` and `Objective.by_image`.
OF_A_DATASET = (
    *(f"eval/{name}" for name in EVALUATED),
    *(f"train/{name}" for name in ("cross_entropy", *OF_TRIPLETS, "d_ap", "d_an")),
)


def without_dataset(metric: str) -> str:
    """Return the one of OF_A_DATASET whose value for a dataset is `metric` (train/<dataset>/d_ap), or `metric`."""
    kind, _, rest = metric.partition("/")
    name = f"{kind}/{rest.partition('/')[2]}"
    return name if metric not in METRICS and name in OF_A_DATASET else metric


def why_not_logged(metric: str, config: Config) -> str | None:
    """Return the knob without which a run of this configuration does not log a metric; None if it does."""
    if (general := without_dataset(metric)) != metric and len(config.data.roots) < 2:
        return "several datasets in --data.root"
    metric, name = general, general.removeprefix("train/")
    if metric.startswith("eval/val/") and not config.data.val_identities:
        return "--data.val_identities above 0"
    if name in LOSSES and not config.loss.weights[name]:
        return f"--loss.{name} above 0"
    if name in OF_TRIPLETS and not (config.loss.triplet or config.loss.quadruplet):
        return "--loss.triplet or --loss.quadruplet above 0"
    if name in OF_CENTROIDS and not (config.loss.mctl or config.loss.ctl):
        return "--loss.mctl or --loss.ctl above 0"
    if metric == "data/dropped_identities" and config.data.on_damage != "skip":
        return "--data.on_damage=skip"
    return None


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the lines of a metrics.jsonl and the numbers, from 1, of damaged ones.

    The beginning of a last line, which is being written or which a killed run left, is neither. Files of earlier
    versions count epochs from 0; what is returned counts them from 1.
    """
    entries: list[dict[str, Any]] = []
    damaged = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            if not isinstance(entry["step"], int):
                raise TypeError
        except (ValueError, TypeError, LookupError, RecursionError):
            if number < len(lines):
                damaged.append(number)
        else:
            entries.append(entry)
    if any(entry.get("epoch") == 0 for entry in entries):
        entries = [
            entry | {"epoch": entry["epoch"] + 1} if isinstance(entry.get("epoch"), int) else entry for entry in entries
        ]
    return entries, damaged
