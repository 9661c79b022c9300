"""What a sweep found: a table of its runs, a table of settings over seeds, a heat map of two knobs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reid.files import write_atomically
from reid.sweeps.spec import STATES, Knobs, Run, Sweep

SPARSE = 0.5  # if a smaller share of cells has a value, the heat map is a scatter plot


@dataclass(frozen=True)
class Setting:
    """The finished runs that differ only by the seed."""

    knobs: Knobs
    mean: float
    std: float | None  # of one run; None if there is only one
    runs: int


def group_seeds(runs: Sequence[Run], maximizes: bool) -> list[Setting]:
    """Return the settings of finished runs, the best first."""
    groups: dict[str, list[float]] = {}
    for run in runs:
        if run.state == "finished" and run.metric is not None:
            others = {name: value for name, value in run.knobs.items() if name != "seed"}
            groups.setdefault(json.dumps(others), []).append(run.metric)
    settings = []
    for knobs, values in groups.items():
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        settings.append(Setting(json.loads(knobs), float(np.mean(values)), std, len(values)))
    return sorted(settings, key=lambda setting: setting.mean, reverse=maximizes)


def write_results(folder: Path, sweep: Sweep, runs: Sequence[Run]) -> str:
    """Write runs.csv, settings.txt and, for two knobs or more, heat_map.png; return the text."""
    metric = sweep.metric
    settings = group_seeds(runs, maximizes=sweep.document["metric"].get("goal") == "maximize")
    text = f"{describe_states(runs)}\n{format_settings(settings, metric)}\n"
    write_atomically(folder / "runs.csv", format_csv(runs, metric))  # jobs that end together write the same files
    write_atomically(folder / "settings.txt", text)
    if axes := choose_axes(settings):
        write_atomically(folder / "heat_map.png", draw_heat_map(settings, axes, metric))
        text += f"heat map: {folder / 'heat_map.png'}\n"
    return text + f"runs: {folder / 'runs.csv'}"


def describe_states(runs: Sequence[Run]) -> str:
    counts = {state: sum(run.state == state for run in runs) for state in STATES}
    return f"{len(runs)} runs: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def format_csv(runs: Sequence[Run], metric: str) -> str:
    out = io.StringIO()
    names = dict.fromkeys(name for run in runs for name in run.knobs)
    writer = csv.DictWriter(out, ["run", *names, "state", metric], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"run": run.number, **run.knobs, "state": run.state, metric: run.metric} for run in runs)
    return out.getvalue()


def format_settings(settings: Sequence[Setting], metric: str) -> str:
    """Return columns of text: knobs, mean over seeds, standard deviation of one run, number of runs."""
    names = list(dict.fromkeys(name for setting in settings for name in setting.knobs))
    rows = [[*names, metric, "std", "runs"]]
    for setting in settings:
        std = "" if setting.std is None else f"{setting.std:.4f}"
        knobs = [str(setting.knobs.get(name, "")) for name in names]
        rows.append([*knobs, f"{setting.mean:.4f}", std, str(setting.runs)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(word.rjust(width) for word, width in zip(row, widths, strict=True)) for row in rows)


def choose_axes(settings: Sequence[Setting]) -> tuple[str, str] | None:
    """Return the two numeric knobs with most values, in alphabetical order; None if fewer than two vary."""
    values: dict[str, set[float]] = {}
    for setting in settings:
        for name, value in setting.knobs.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                values.setdefault(name, set()).add(value)
    varied = sorted((name for name in values if len(values[name]) > 1), key=lambda name: -len(values[name]))
    return (min(varied[:2]), max(varied[:2])) if len(varied) > 1 else None


def draw_heat_map(settings: Sequence[Setting], names: tuple[str, str], metric: str) -> bytes:
    """Return a PNG of the metric over two knobs (across, down): its mean over seeds and over the other knobs."""
    from matplotlib.figure import Figure

    from reid.reports.figures import LIGHT, style_axes, to_png

    cells: dict[tuple[float, float], Setting] = {}
    for setting in settings:
        cell = setting.knobs[names[0]], setting.knobs[names[1]]
        cells[cell] = _merge(cells[cell], setting) if cell in cells else setting
    across, down = (sorted({cell[axis] for cell in cells}) for axis in (0, 1))
    figure = Figure(figsize=(6.4, 4.8), dpi=120, facecolor=LIGHT.paper, layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes, LIGHT)
    if len(cells) >= SPARSE * len(across) * len(down):
        drawn: Any = _draw_cells(axes, cells, across, down)
    else:
        x, y = zip(*cells, strict=True)
        drawn = axes.scatter(x, y, c=[setting.mean for setting in cells.values()], cmap="viridis", s=90,
                             edgecolors=LIGHT.ink, linewidths=0.6, zorder=2)  # fmt: skip
        for values, set_scale in ((across, axes.set_xscale), (down, axes.set_yscale)):
            if values[0] > 0 and values[-1] > 20 * values[0]:
                set_scale("log")
    figure.colorbar(drawn, ax=axes, label=metric)
    axes.set_xlabel(names[0], color=LIGHT.ink, fontsize=11)
    axes.set_ylabel(names[1], color=LIGHT.ink, fontsize=11)
    least, most = (count(setting.runs for setting in settings) for count in (min, max))
    over = f"{least}" if least == most else f"{least} to {most}"
    axes.set_title(f"{metric}, mean of {over} run(s)", color=LIGHT.ink, fontsize=12, fontweight="bold", loc="left",
                   parse_math=False)  # fmt: skip
    return to_png(figure)


def _merge(first: Setting, second: Setting) -> Setting:
    runs = first.runs + second.runs
    return Setting({}, (first.runs * first.mean + second.runs * second.mean) / runs, None, runs)


def _draw_cells(axes: Any, cells: dict[tuple[float, float], Setting], across: list[float], down: list[float]) -> Any:
    """Draw the mean in each cell, and its standard deviation if the cell is one setting with several seeds."""
    table = np.array([[cells[x, y].mean if (x, y) in cells else np.nan for x in across] for y in down])
    drawn = axes.imshow(table, cmap="viridis", origin="lower", aspect="auto")
    axes.set_xticks(range(len(across)), [f"{value:g}" for value in across])
    axes.set_yticks(range(len(down)), [f"{value:g}" for value in down])
    axes.grid(False)
    for (x, y), setting in cells.items():
        spread = "" if setting.std is None else f"\n±{100 * setting.std:.1f}"
        axes.text(across.index(x), down.index(y), f"{100 * setting.mean:.1f}{spread}", ha="center", va="center",
                  fontsize=10, color="black" if drawn.norm(setting.mean) > 0.6 else "white")  # fmt: skip
    return drawn
