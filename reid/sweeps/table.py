"""What a sweep found: a table of its runs, a table of settings over seeds, a heat map of two knobs."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reid.sweeps.spec import STATES, Knobs, Run

SEED = "seed"
SPARSE = 0.5  # below this share of cells with a value the points of a search are drawn instead of a grid


@dataclass(frozen=True)
class Setting:
    """The finished runs that differ by the seed alone. std: of one run; None where there is only one."""

    knobs: Knobs
    mean: float
    std: float | None
    runs: int


def group_seeds(runs: Sequence[Run], maximizes: bool) -> list[Setting]:
    """Settings of finished runs, the best first."""
    groups: list[tuple[Knobs, list[float]]] = []
    for run in runs:
        if run.state != "finished" or run.metric is None:
            continue
        knobs = {name: value for name, value in run.knobs.items() if name != SEED}
        for known, values in groups:
            if known == knobs:
                values.append(run.metric)
                break
        else:
            groups.append((knobs, [run.metric]))
    settings = [
        Setting(knobs, float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))
        for knobs, values in groups
    ]
    return sorted(settings, key=lambda setting: setting.mean, reverse=maximizes)


def write_results(folder: Path, runs: Sequence[Run], metric: str, maximizes: bool) -> str:
    """runs.csv, settings.txt and, with two knobs or more, heat_map.png; returns the text."""
    settings = group_seeds(runs, maximizes)
    text = f"{describe_states(runs)}\n{format_settings(settings, metric)}\n"
    _replace(folder / "runs.csv", format_csv(runs, metric).encode())
    _replace(folder / "settings.txt", text.encode())
    names = choose_axes(settings)
    if names:
        _replace(folder / "heat_map.png", draw_heat_map(settings, names, metric))
        text += f"heat map: {folder / 'heat_map.png'}\n"
    return text + f"runs: {folder / 'runs.csv'}"


def _replace(path: Path, content: bytes) -> None:
    """At once: jobs of a sweep that end together write the same file."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)


def describe_states(runs: Sequence[Run]) -> str:
    counts = {state: sum(run.state == state for run in runs) for state in STATES}
    return f"{len(runs)} runs: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def format_csv(runs: Sequence[Run], metric: str) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.knobs))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", *names, "state", metric])
    for run in runs:
        value = "" if run.metric is None else run.metric
        writer.writerow([run.number, *(run.knobs.get(name, "") for name in names), run.state, value])
    return out.getvalue()


def format_settings(settings: Sequence[Setting], metric: str) -> str:
    """Columns of text: knobs, mean over seeds, standard deviation of one run, number of runs."""
    names = list(dict.fromkeys(name for setting in settings for name in setting.knobs))
    rows = [[*names, metric, "std", "runs"]]
    for setting in settings:
        std = "" if setting.std is None else f"{setting.std:.4f}"
        knobs = [str(setting.knobs.get(name, "")) for name in names]
        rows.append([*knobs, f"{setting.mean:.4f}", std, str(setting.runs)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(word.rjust(width) for word, width in zip(row, widths, strict=True)) for row in rows)


def choose_axes(settings: Sequence[Setting]) -> tuple[str, str] | None:
    """The two numeric knobs with most values, loss.w1 and loss.margin in the sweeps that come with this; or None."""
    values: dict[str, set[Any]] = {}
    for setting in settings:
        for name, value in setting.knobs.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                values.setdefault(name, set()).add(value)
    varied = sorted((name for name in values if len(values[name]) > 1), key=lambda name: -len(values[name]))
    if len(varied) < 2:
        return None
    first, second = sorted(varied[:2])
    return first, second


def draw_heat_map(settings: Sequence[Setting], names: tuple[str, str], metric: str) -> bytes:
    """PNG of the metric over two knobs: (across, down), mean over seeds and over knobs that are not shown."""
    from matplotlib.figure import Figure

    from reid.reports.figures import LIGHT, style_axes, to_png

    points: dict[tuple[float, float], list[Setting]] = {}
    for setting in settings:
        points.setdefault((setting.knobs[names[0]], setting.knobs[names[1]]), []).append(setting)
    across, down = (sorted({point[axis] for point in points}) for axis in (0, 1))
    figure = Figure(figsize=(6.4, 4.8), dpi=120, facecolor=LIGHT.paper, layout="constrained")
    axes = figure.add_subplot()
    means = {point: float(np.average([s.mean for s in there], weights=[s.runs for s in there]))
             for point, there in points.items()}  # fmt: skip
    if len(points) >= SPARSE * len(across) * len(down):
        table = np.array([[means.get((x, y), np.nan) for x in across] for y in down])
        drawn: Any = axes.imshow(table, cmap="viridis", origin="lower", aspect="auto")
        axes.set_xticks(range(len(across)), [f"{value:g}" for value in across])
        axes.set_yticks(range(len(down)), [f"{value:g}" for value in down])
        _write_cells(axes, table, across, down, points)
        style_axes(axes, LIGHT)
        axes.grid(False)
    else:
        style_axes(axes, LIGHT)
        places = np.array(list(means))
        drawn = axes.scatter(places[:, 0], places[:, 1], c=list(means.values()), cmap="viridis", s=90,
                             edgecolors=LIGHT.ink, linewidths=0.6, zorder=2)  # fmt: skip
        for values, scale in ((places[:, 0], axes.set_xscale), (places[:, 1], axes.set_yscale)):
            if values.min() > 0 and values.max() > 20 * values.min():
                scale("log")
    figure.colorbar(drawn, ax=axes, label=metric)
    axes.set_xlabel(names[0], color=LIGHT.ink, fontsize=11)
    axes.set_ylabel(names[1], color=LIGHT.ink, fontsize=11)
    seeds = sorted({setting.runs for setting in settings})
    over = f"mean of {seeds[0]}" if len(seeds) == 1 else f"mean of {seeds[0]} to {seeds[-1]}"
    axes.set_title(f"{metric}, {over} run(s)", color=LIGHT.ink, fontsize=12, fontweight="bold", loc="left",
                   parse_math=False)  # fmt: skip
    return to_png(figure)


def _write_cells(
    axes: Any,
    table: np.ndarray,
    across: list[float],
    down: list[float],
    points: dict[tuple[float, float], list[Setting]],
) -> None:
    """The mean in each cell, and its standard deviation where one setting of several seeds is all there is."""
    low, high = np.nanmin(table), np.nanmax(table)
    for i, y in enumerate(down):
        for j, x in enumerate(across):
            if np.isnan(table[i, j]):
                continue
            there = points[x, y]
            spread = f"\n±{100 * there[0].std:.1f}" if len(there) == 1 and there[0].std is not None else ""
            bright = table[i, j] > low + 0.6 * (high - low)
            axes.text(j, i, f"{100 * table[i, j]:.1f}{spread}", ha="center", va="center", fontsize=10,
                      color="black" if bright else "white")  # fmt: skip
