"""The curves of a training, from its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reid.reports.curves import Panel, TrainingCurves
from reid.runs.logged import LOSSES, read_metrics, without_dataset

LARGEST = 2**53  # a step or a metric above it is damage; NaN is kept, as a gap
WIDE = 20  # a learning rate that changes by a larger factor has a logarithmic axis
Line = tuple[np.ndarray, np.ndarray]


def read_curves(path: Path, weights: Mapping[str, float]) -> TrainingCurves:
    """Read a metrics.jsonl: loss terms, learning rate, share of active hinges, mAP.

    Args:
        weights: of the loss terms, which are logged without them.

    Returns:
        A panel for each of these that was logged.
    """
    try:
        entries, damaged = read_metrics(path)
    except OSError as error:
        return TrainingCurves([], f"{path}: {error.strerror or error}")
    entries = sorted((entry for entry in entries if 0 <= entry["step"] < LARGEST), key=lambda entry: entry["step"])
    x, x_label = _measure_x(entries)
    lines = _collect(entries, x)
    terms = {f"{name} × {weights[name]:g}": _scale(lines.get(f"train/{name}"), weights[name]) for name in LOSSES}
    losses = {"loss": lines.get("train/loss"), **terms}
    aims = {name: _scale(lines[name], 100) for name in lines if without_dataset(name).endswith("/mAP")}
    of_protocol = {name.removeprefix("eval/").removesuffix("/mAP"): line for name, line in aims.items()}
    rate, hinges = lines.get("train/lr"), _scale(lines.get("train/hinge_active"), 100)
    axis = x_label, x(entries[-1]["step"]) if entries else 1.0
    panels = [
        Panel("Loss and its terms", _present(losses), *axis),
        Panel("Learning rate", _present({"lr": rate}), *axis, log=_is_wide(rate)),
        Panel("Active hinges (%)", _present({"": hinges}), *axis),
        Panel("mAP during training (%)", _present(of_protocol), *axis),
    ]
    drawn = [panel for panel in panels if panel.lines]
    if not drawn:
        return TrainingCurves([], f"{path} holds no metric of a training")
    broken = f"{len(damaged)} damaged lines are left out, the first of them line {damaged[0]}" if damaged else ""
    return TrainingCurves(drawn, broken)


def _measure_x(entries: Sequence[Mapping[str, Any]]) -> tuple[Callable[[int], float], str]:
    """Return the place of a step on the x axis, and the label of the axis.

    The number of steps in an epoch is the least that fits the step and epoch of all entries: the last step of an epoch
    is always logged.
    """
    timed = [(entry["step"], entry["epoch"]) for entry in entries if isinstance(entry.get("epoch"), int)]
    steps = max((step // epoch + 1 for step, epoch in timed if epoch > 0), default=0)
    if not steps:
        return float, "step"
    return lambda step: (step + 1) / steps, "epoch"


def _collect(entries: Sequence[Mapping[str, Any]], x: Callable[[int], float]) -> dict[str, Line]:
    """Return the lines of all metrics that are numbers, by name."""
    points: dict[str, dict[int, float]] = {}
    for entry in entries:
        for name, value in entry.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > LARGEST
            if is_number and name not in ("step", "epoch"):
                points.setdefault(name, {})[entry["step"]] = float(value)
    return {name: (np.array([x(step) for step in of]), np.array([*of.values()])) for name, of in points.items()}


def _scale(line: Line | None, factor: float) -> Line | None:
    return line and (line[0], factor * line[1])


def _present(lines: Mapping[str, Line | None]) -> dict[str, Line]:
    return {name: line for name, line in lines.items() if line is not None}


def _is_wide(line: Line | None) -> bool:
    return line is not None and line[1].min() > 0 and line[1].max() > WIDE * line[1].min()
