"""Sweeps without a server: W&B's sweep file, proposals by W&B's own engine (`sweeps`), and what became of each run."""

from __future__ import annotations

import difflib
import importlib
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

PROGRAM, ARGS, STOP_FILE = "train.py", "${args}", "${envvar:STOP_FILE}"
FIGURES = ("mAP", "mINP", "rank1")
METRICS = ("eval/best_mAP", *(f"eval/{kind}/{figure}" for kind in ("image", "centroid", "val") for figure in FIGURES),
           "train/loss")  # fmt: skip
STATES = ("planned", "running", "finished", "failed", "stopped")  # stopped: early, by hyperband
Knobs = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run of a sweep: its knobs, its state (one of STATES) and the metric at each evaluation so far."""

    number: int
    knobs: Knobs
    state: str
    history: tuple[float, ...]

    @property
    def metric(self) -> float | None:
        """The newest value; None before the first evaluation."""
        return self.history[-1] if self.history else None


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file. launcher: the words of its command before train.py; flags: those after it."""

    path: Path
    document: dict[str, Any]
    launcher: tuple[str, ...]
    flags: tuple[str, ...]

    @property
    def metric(self) -> str:
        return str(self.document["metric"]["name"])

    @property
    def maximizes(self) -> bool:
        return self.document["metric"].get("goal", "minimize") == "maximize"

    @property
    def stops_early(self) -> bool:
        return "early_terminate" in self.document

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        parameters: dict[str, dict[str, Any]] = self.document["parameters"]
        return parameters


def read_sweep(path: Path) -> Sweep:
    """ValueError on what W&B's schema refuses, a metric that training never logs, or a command without train.py."""
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as a sweep: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: not a sweep file: it has no keys")
    if broken := _engine().schema_violations_from_proposed_config(document):
        raise ValueError(f"{path}: {'; '.join(broken)}")
    metric = document.get("metric", {}).get("name", "")
    if metric not in METRICS:
        nearest = difflib.get_close_matches(str(metric), METRICS, n=1, cutoff=0.0)[0]
        raise ValueError(f"{path}: metric.name = {metric!r} is never logged; the nearest that is: {nearest}")
    words = [str(word) for word in document.get("command", [])]
    command = [word for word in (_fill_in(path, word, document.get("program", "")) for word in words) if word]
    if PROGRAM not in command or ARGS not in words:
        raise ValueError(f"{path}: `command` must name {PROGRAM} and {ARGS}; see configs/sweeps/w1_margin.yaml")
    at = command.index(PROGRAM)
    return Sweep(path, document, tuple(command[:at]), tuple(command[at + 1 :]))


def _fill_in(path: Path, word: str, program: str) -> str:
    """A word of `command` as W&B's agent would fill it in; empty for one that has no meaning without the agent."""
    known = {"env": "", "args": "", "interpreter": sys.executable, "program": program}

    def fill(found: re.Match[str]) -> str:
        name = found[1]
        variable = name.removeprefix("envvar:")
        if name in known:
            return known[name]
        if variable == name or variable not in os.environ:
            raise ValueError(
                f"{path}: `command` has {found[0]}, which is not filled in here: known are {', '.join(known)} and "
                "envvar:NAME of variables that are set"
            )
        return os.environ[variable]

    # The place of a stop file is given by whoever starts the run.
    return "" if STOP_FILE in word else re.sub(r"\$\{([^}]*)\}", fill, word)


def check_knobs(sweep: Sweep, known: Iterable[str]) -> None:
    """ValueError on a parameter that is no knob of the trainer, with the nearest that is one."""
    names = list(known)
    for name in sweep.parameters:
        if "parameters" in sweep.parameters[name]:
            raise ValueError(f"{sweep.path}: {name!r} holds parameters of its own; write each with a dot, as loss.w1")
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise ValueError(f"{sweep.path}: there is no knob {name!r}; the nearest is {nearest!r}")


def corners(sweep: Sweep) -> list[Knobs]:
    """Settings that together hold every listed value, and both ends of every range, at least once."""
    ends = {name: _ends(parameter) for name, parameter in sweep.parameters.items()}
    first = {name: values[0] for name, values in ends.items() if values}
    return [first, *({**first, name: value} for name, values in ends.items() for value in values[1:])]


def _ends(parameter: Mapping[str, Any]) -> list[Any]:
    if "values" in parameter or "value" in parameter:
        return list(parameter.get("values", [parameter.get("value")]))
    if str(parameter.get("distribution", "uniform")) in ("log_uniform", "inv_log_uniform", "q_log_uniform"):
        return [math.exp(parameter[end]) for end in ("min", "max") if end in parameter]  # these give exponents
    return [parameter[end] for end in ("min", "max") if end in parameter]


def propose(sweep: Sweep, runs: Sequence[Run], number: int) -> list[Knobs]:
    """Up to `number` further settings; fewer at the end of a grid. One after the other for Bayes, whose `runs` count.

    A grid comes seed by seed: its first runs cover the other knobs.
    """
    engine = _engine()
    config = engine.SweepConfig(sweep.document)
    if sweep.document["method"] == "grid":
        grid = [run.config for run in engine.next_runs(config, [], n=10**6) if run is not None]
        seeds = sweep.parameters.get("seed", {}).get("values", [])
        settings = [_to_knobs(point) for point in grid]
        settings.sort(key=lambda knobs: seeds.index(knobs["seed"]) if knobs.get("seed") in seeds else 0)
        tried = [run.knobs for run in runs]
        return [knobs for knobs in settings if knobs not in tried][:number]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the engine's Gaussian process on its first few points
        proposed = engine.next_runs(config, [_to_engine(sweep, run) for run in runs], n=number)
    return [_to_knobs(run.config) for run in proposed if run is not None]


def falls_behind(sweep: Sweep, runs: Sequence[Run], number: int) -> bool:
    """Whether the sweep's early termination would end run `number` now."""
    if not sweep.stops_early:
        return False
    engine = _engine()
    seen = [_to_engine(sweep, run) for run in runs]
    return any(run.name == str(number) for run in engine.stop_runs(engine.SweepConfig(sweep.document), seen))


def _engine() -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its models are of pydantic 1's style
            return importlib.import_module("sweeps")
    except ImportError as error:
        raise ValueError(f"sweeps need the package of that name ({error}): pip install 'mctl-reid[sweep]'") from error


def _to_engine(sweep: Sweep, run: Run) -> Any:
    # By their aliases: version 0.2 ignores the names of these fields without a word, and proposes blindly.
    states = {"planned": "pending", "stopped": "killed"}
    history = [{sweep.metric: value} for value in run.history]
    return _engine().SweepRun(
        name=str(run.number),
        config={name: {"value": value} for name, value in run.knobs.items()},
        state=states.get(run.state, run.state),
        sampledHistory=history,
        summaryMetrics=history[-1] if history else {},
    )


def _to_knobs(config: Mapping[str, Any]) -> Knobs:
    """Plain numbers of six digits: what is written on the command line is what the engine hears of later."""
    knobs: Knobs = {}
    for name, entry in config.items():
        value = entry["value"]
        value = value.item() if hasattr(value, "item") else value
        knobs[name] = float(f"{value:.6g}") if isinstance(value, float) else value
    return knobs


def read_history(run: Path, metric: str) -> tuple[float, ...]:
    """The metric at each log step of a run that has it."""
    path = run / "metrics.jsonl"
    values = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:  # being written just now
            break
        if metric in entry:
            values.append(float(entry[metric]))
    return tuple(values)
