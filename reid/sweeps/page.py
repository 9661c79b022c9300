"""The page of a sweep: its best setting, all settings and runs as tables, and the heat map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reid.reports.html import render
from reid.reports.tables import format_now
from reid.sweeps.spec import Run
from reid.sweeps.table import Setting, describe_states, name_metric

SHOWN = 200  # rows of a table; runs.csv has all


def render_page(
    name: str,
    runs: Sequence[Run],
    settings: Sequence[Setting],
    metric: str,
    best_run: tuple[Run, Path] | None,
    charts: dict[str, bytes] | None,
) -> str:
    """Return the page of a sweep.

    Args:
        name: of the sweep.
        settings: the best first.
        best_run: the finished run of the best metric, with its folder.
        charts: the heat map for light and dark pages, if there is one.
    """
    label, show = name_metric(metric)
    names = list(dict.fromkeys(name for setting in settings for name in setting.knobs))
    knobs = list(dict.fromkeys(name for run in runs for name in run.knobs))
    of_settings = [
        (*(str(setting.knobs.get(name, "")) for name in names), show(setting.mean), show(setting.std),
         str(setting.runs))
        for setting in settings[:SHOWN]
    ]  # fmt: skip
    of_runs = [
        (str(run.number), *(str(run.knobs.get(name, "")) for name in knobs), run.state, show(run.metric))
        for run in runs[:SHOWN]
    ]
    return render(
        "sweep.html", name=name, label=label, shown=SHOWN, states=describe_states(runs), charts=charts,
        best=settings[0] if settings else None, best_value=show(settings[0].mean) if settings else "",
        settings=of_settings, setting_columns=[*names, label, "std", "runs"], num_settings=len(settings),
        runs=of_runs, run_columns=["run", *knobs, "state", label], num_runs=len(runs),
        best_run=best_run and (best_run[0].number, show(best_run[0].metric), str(best_run[1])),
        made=format_now(),
    )  # fmt: skip
