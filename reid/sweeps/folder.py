"""The folder of a sweep without a server: its plan, the flags and state of each run, and its results."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from reid.config import Config, change, check, read_flags, to_flags, to_text
from reid.files import read_text, write_atomically
from reid.reports.style import draw_both
from reid.runs.sweep_names import name_knobs
from reid.sweeps.spec import STATES, Knobs, Run, Sweep, read_history, read_sweep
from reid.sweeps.table import (
    choose_axes,
    describe_states,
    draw_heat_map,
    find_best,
    format_csv,
    format_settings,
    group_seeds,
)

DONE = ("finished", "stopped")


def check_run(sweep: Sweep, flags: Sequence[str]) -> Config:
    """Return the configuration that the flags give. Raises ValueError if the trainer would refuse it."""
    return _check(sweep, lambda: read_flags(flags))


def check_knobs(sweep: Sweep, config: Config, knobs: Knobs) -> Config:
    """Return the configuration of a run from that of another with the same flags. Raises ValueError as check_run."""
    if broken := [flag for flag in to_flags(knobs) if "\n" in flag]:  # a folder keeps one flag on each line
        raise ValueError(f"{sweep.path}: {broken[0]!r} has more than one line; give a value of one line")
    return _check(sweep, lambda: change(config, to_flags(knobs)))


def _check(sweep: Sweep, read: Callable[[], Config]) -> Config:
    try:
        config = read()
        check(config, 1)
    except ValueError as error:
        raise ValueError(f"{sweep.path}: {error}") from error
    return config


class SweepFolder:
    """What is on disk of one sweep, which is all that a later call needs.

    sweep.yaml, plan.json {"flags", "runs": [knobs]}; of run n: flags/<n>, state/<n>, run-<nnnn>/ and run-<nnnn>.log.
    """

    def __init__(self, path: Path) -> None:
        if not (path / "sweep.yaml").is_file():
            raise ValueError(f"{path}: no sweep.yaml; not the --out of a sweep")
        self.path, self.sweep = path, read_sweep(path / "sweep.yaml")
        self.plan = _read_plan(path / "plan.json")
        self._checked: Config | None = None  # of a planned run

    def add(self, knobs: Knobs) -> None:
        """Plan one more run, whose W&B files stay in its folder. Raises ValueError if the trainer would refuse it."""
        number = len(self.plan["runs"])
        tracked = ["--track.wandb=offline", f"--track.group={self.sweep.document.get('name') or self.path.name}",
                   f"--track.name={name_knobs(self.sweep.varied(knobs))}"]  # fmt: skip
        # The last of equal flags wins, so knobs come after all that may hold a --config.
        flags = [*self.sweep.flags, *tracked, *self.plan["flags"], *to_flags(knobs), f"--runs={self.path}",
                 f"--name=run-{number:04d}", "--resume=auto"]  # fmt: skip
        if self._checked is None:
            self._checked = check_run(self.sweep, flags)
        check_knobs(self.sweep, self._checked, knobs)
        write_atomically(self.path / "flags" / str(number), "".join(f"{flag}\n" for flag in flags))
        self.plan["runs"].append(knobs)
        write_atomically(self.path / "plan.json", json.dumps(self.plan, indent=1) + "\n")

    def flags(self, number: int) -> list[str]:
        return read_text(self.path / "flags" / str(number)).splitlines()

    def run_folder(self, number: int) -> Path:
        return self.path / f"run-{number:04d}"

    def set_state(self, number: int, state: str) -> None:
        write_atomically(self.path / "state" / str(number), state + "\n")

    def run(self, number: int) -> Run:
        path = self.path / "state" / str(number)
        state = (read_text(path).strip() if path.exists() else "") or "planned"
        if state not in STATES:
            raise ValueError(f"{path} holds {state[:20]!r}; write one of {', '.join(STATES)} into it")
        history = read_history(self.run_folder(number), self.sweep.metric)
        return Run(number, self.plan["runs"][number], state, history)

    def runs(self) -> list[Run]:
        return [self.run(number) for number in range(len(self.plan["runs"]))]

    def collect(self) -> str:
        """Write runs.csv, settings.txt, sweep.html and, for two knobs or more, heat_map.png; return the text."""
        from reid.sweeps.page import render_page  # imports Jinja2, which a check of a file does not need

        runs, metric, heat_map = self.runs(), self.sweep.metric, self.path / "heat_map.png"
        maximizes = self.sweep.document["metric"].get("goal") == "maximize"
        settings = group_seeds(runs, maximizes)
        text = f"{describe_states(runs)}\n{format_settings(settings, metric)}\n"
        # Atomically, because jobs that end together write the same files.
        write_atomically(self.path / "runs.csv", format_csv(runs, metric))
        write_atomically(self.path / "settings.txt", text)
        page, charts = self.path / "sweep.html", None
        if axes := choose_axes(settings):
            charts = draw_both(partial(draw_heat_map, settings, axes, metric, maximizes))
            write_atomically(heat_map, charts["light"])
            text += f"heat map: {heat_map}\n"
        found = find_best(runs, maximizes)
        best_run = (found, self.run_folder(found.number)) if found else None
        write_atomically(page, render_page(self.path.name, runs, settings, metric, best_run, charts))
        return text + f"runs: {self.path / 'runs.csv'}\npage: {page}"


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(read_text(path))
        flags, runs = plan["flags"], plan["runs"]
        if all(isinstance(flag, str) for flag in flags) and all(isinstance(knobs, dict) for knobs in runs):
            return {"flags": list(flags), "runs": list(runs)}
        reason = "it must list flags and the knobs of each run"
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        reason = repr(error)
    raise ValueError(f"{path} is damaged ({reason}); give another --out")


def claim_folder(path: Path, sweep: Sweep, extra: Sequence[str]) -> SweepFolder:
    """Open the folder of a sweep with `extra` flags; make it if it is new. Raises ValueError for another sweep's."""
    for name in ("flags", "state"):
        (path / name).mkdir(parents=True, exist_ok=True)
    if not (path / "sweep.yaml").exists():
        write_atomically(path / "plan.json", json.dumps({"flags": extra, "runs": []}, indent=1) + "\n")
        write_atomically(path / "sweep.yaml", to_text(sweep.document))
    folder = SweepFolder(path)
    if folder.sweep.document != sweep.document or folder.plan["flags"] != extra:
        raise ValueError(f"{path} holds another sweep, or one with other flags; give another --out")
    return folder
