"""What a sweep found: a table of its runs, a table of settings over seeds, a heat map of two knobs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reid.reports.style import COLORMAP, LIGHT, Theme, add_colorbar, start_chart, to_png
from reid.sweeps.spec import STATES, Knobs, Run

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


def find_best(runs: Sequence[Run], maximizes: bool) -> Run | None:
    """Return the finished run of the best metric, the first of equal ones; None if none is finished."""
    finished = [(run.metric, run) for run in runs if run.state == "finished" and run.metric is not None]
    return (max if maximizes else min)(finished, key=lambda pair: pair[0])[1] if finished else None


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
    """Return the two knobs with most values, all numbers, in alphabetical order; None if fewer than two vary."""
    values: dict[str, set[Any]] = {}
    for name in settings[0].knobs if settings else ():
        of_all = [setting.knobs.get(name) for setting in settings]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in of_all):  # not null
            values[name] = set(of_all)
    varied = sorted((name for name in values if len(values[name]) > 1), key=lambda name: -len(values[name]))
    return (min(varied[:2]), max(varied[:2])) if len(varied) > 1 else None


def name_metric(metric: str) -> tuple[str, Callable[[float | None], str]]:
    """Return the name of a metric with its unit, and how its values are shown: shares in percent."""
    if metric.startswith("eval/"):
        return f"{metric} (%)", lambda value: "-" if value is None else f"{100 * value:.1f}"
    return metric, lambda value: "-" if value is None else f"{value:.4g}"


def draw_heat_map(
    settings: Sequence[Setting], names: tuple[str, str], metric: str, maximizes: bool, theme: Theme = LIGHT
) -> bytes:
    """Return a PNG of the metric over two knobs (across, down): its mean over seeds and over the other knobs.

    A cell that is one setting with several seeds also has their standard deviation. The best cell has a frame and a
    star.
    """
    from matplotlib.patches import Rectangle

    cells: dict[tuple[float, float], list[Setting]] = {}
    for setting in settings:
        cells.setdefault((setting.knobs[names[0]], setting.knobs[names[1]]), []).append(setting)
    means = {c: np.average([s.mean for s in same], weights=[s.runs for s in same]) for c, same in cells.items()}
    across, down = (sorted({cell[axis] for cell in cells}) for axis in (0, 1))
    best = (max if maximizes else min)(means, key=lambda cell: means[cell])
    least, most = (count(setting.runs for setting in settings) for count in (min, max))
    over = f"{least}" if least == most else f"{least} to {most}"
    label, show = name_metric(metric)
    figure, axes = start_chart(theme, f"{label}, mean of {over} run(s)", names, (6.4, 4.8))
    if len(cells) >= SPARSE * len(across) * len(down):
        table = np.array([[means.get((x, y), np.nan) for x in across] for y in down])
        drawn: Any = axes.imshow(table, cmap=COLORMAP, origin="lower", aspect="auto")
        axes.set_xticks(range(len(across)), [f"{value:g}" for value in across])
        axes.set_yticks(range(len(down)), [f"{value:g}" for value in down])
        axes.grid(False)
        for (x, y), (setting, *others) in cells.items():
            spread = "" if others or setting.std is None else f"\n±{show(setting.std)}"
            star = "★ " if (x, y) == best else ""
            axes.text(across.index(x), down.index(y), f"{star}{show(means[x, y])}{spread}", ha="center", va="center",
                      fontsize=12, color="black" if drawn.norm(means[x, y]) > 0.6 else "white")  # fmt: skip
        corner = across.index(best[0]) - 0.5, down.index(best[1]) - 0.5
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=theme.lines[1], linewidth=3, clip_on=False))
    else:
        xs, ys = zip(*cells, strict=True)
        drawn = axes.scatter(xs, ys, c=[*means.values()], cmap=COLORMAP, s=90,
                             edgecolors=theme.soft, linewidths=0.6, zorder=2)  # fmt: skip
        axes.scatter(*best, s=260, facecolors="none", edgecolors=theme.lines[1], linewidths=2.4, zorder=3)
        for values, set_scale in ((across, axes.set_xscale), (down, axes.set_yscale)):
            if values[0] > 0 and values[-1] > 20 * values[0]:
                set_scale("log")
    bar = add_colorbar(figure, axes, drawn, "", theme)
    bar.ax.yaxis.set_major_formatter(lambda value, _: show(value))
    return to_png(figure)
