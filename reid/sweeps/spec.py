"""Sweep files as W&B takes them; W&B's own engine, the package `sweeps`, proposes runs and decides which end early."""

from __future__ import annotations

import difflib
import importlib
import math
import os
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from reid.config import Config, knob_types, read_yaml, suggest_knob
from reid.runs.folder import RunFolder
from reid.runs.logged import METRICS, read_metrics, without_dataset

PROGRAM, ARGS, STOP_FILE = "train.py", "${args}", "${envvar:STOP_FILE}"
SET_HERE = ("config", "name", "runs", "resume", "stop_file")  # flags that the command or the sweep program gives
LARGEST_GRID = 100_000  # runs; the engine holds all of them in memory
STATES = ("planned", "running", "finished", "failed", "stopped")  # stopped: early, by hyperband
Knobs = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    number: int
    knobs: Knobs
    state: str  # one of STATES
    history: tuple[float, ...]  # the metric at each evaluation so far

    @property
    def metric(self) -> float | None:
        """The newest value; None before the first evaluation."""
        return self.history[-1] if self.history else None


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file."""

    path: Path
    document: dict[str, Any]
    metric: str = ""
    launcher: tuple[str, ...] = ()  # the words of its command before train.py
    flags: tuple[str, ...] = ()  # and those after it, without the knobs

    def varied(self, knobs: Knobs) -> Knobs:
        """Return the knobs that have more than one value in the sweep; all if none has."""
        fixed = {
            name
            for name, parameter in self.document["parameters"].items()
            if "value" in parameter or len(parameter.get("values", [])) == 1
        }
        return {name: value for name, value in knobs.items() if name not in fixed} or knobs


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file. Raises ValueError if W&B refuses it, or if its metric, parameters or command cannot work."""
    document = read_yaml(path)
    engine = _engine()
    _check_shape(path, document)
    try:
        violations = engine.schema_violations_from_proposed_config(document)
    except Exception as error:  # the engine's answer to shapes that its schema does not describe
        raise ValueError(f"{path}: cannot be read as a sweep: {error!r}") from error
    if violations:
        raise ValueError(f"{path}: {'; '.join(violations)}")
    ranges = document["parameters"].values() if document["method"] == "grid" else []
    size = math.prod(len(p.get("values", [])) or p.get("max", 0) - p.get("min", 0) + 1 for p in ranges)
    if size > LARGEST_GRID:
        raise ValueError(f"{path}: a grid of {size:,} runs; at most {LARGEST_GRID:,}: list fewer values, or use random")
    metric = str(document.get("metric", {}).get("name", ""))
    if without_dataset(metric) not in METRICS:
        near = difflib.get_close_matches(metric, METRICS, n=1)
        hint = f"the nearest that is: {near[0]}" if near else "use eval/best_mAP, or another of docs/training.md"
        raise ValueError(f"{path}: metric.name = {metric!r} is never logged; {hint}")
    words = [str(word) for word in document.get("command", [])]
    command = [word for word in (_fill_in(path, word, document.get("program", "")) for word in words) if word]
    if PROGRAM not in command or ARGS not in words:
        raise ValueError(f"{path}: `command` must name {PROGRAM} and {ARGS}; see configs/sweeps/w1_margin.yaml")
    at = command.index(PROGRAM)
    return Sweep(path, document, metric, tuple(command[:at]), tuple(command[at + 1 :]))


def _check_shape(path: Path, document: Any) -> None:
    """Check what the schema of W&B leaves open, and that parameters are knobs."""
    if not isinstance(document, dict):
        raise ValueError(f"{path}: cannot be read as a sweep: it needs method, metric, parameters and command")
    shapes = {"parameters": dict, "metric": dict, "command": list, "program": str, "method": str}
    for key, shape in shapes.items():
        if not isinstance(document.get(key, shape()), shape):
            raise ValueError(f"{path}: {key} = {document[key]}: write it as in configs/sweeps/w1_margin.yaml")
    for word in document.get("command", []):
        if not isinstance(word, str | int | float):
            raise ValueError(f"{path}: the word {word!r} of `command` is not text; put it in quotes")
    if not document.get("parameters"):
        raise ValueError(f"{path}: `parameters` is empty; name at least one knob, as loss.w1")
    known = knob_types(Config)
    for name, parameter in document["parameters"].items():
        if name in SET_HERE:
            raise ValueError(f"{path}: {name!r} cannot be swept: `command` or the sweep program gives it")
        if not isinstance(parameter, dict) or "parameters" in parameter:
            raise ValueError(
                f"{path}: parameter {name!r} = {parameter}: name each knob in full with a dot, as loss.w1, and give "
                "values, value, or min and max below it"
            )
        if name not in known:
            raise ValueError(f"{path}: unknown knob {name!r}. {suggest_knob(name, known)}")
        if parameter.get("values", [0]) == []:
            raise ValueError(f"{path}: parameter {name!r} has no values; list at least one")


def _fill_in(path: Path, word: str, program: str) -> str:
    """Fill in a word of `command` as W&B's agent does; "" for the stop file, which the sweep program names itself."""
    if STOP_FILE in word:
        return ""
    values = {f"envvar:{name}": value for name, value in os.environ.items()}
    values.update(env="", args="", interpreter=sys.executable, program=program)
    try:
        return re.sub(r"\$\{([^}]*)\}", lambda found: values[found[1]], word)
    except KeyError as error:
        raise ValueError(
            f"{path}: `command` has ${{{error.args[0]}}}, which is not filled in here: known are env, args, "
            "interpreter, program and envvar:NAME of variables that are set"
        ) from None


def corners(sweep: Sweep) -> list[Knobs]:
    """Return settings that hold every listed value, both ends of every range and the median of unbounded ranges."""
    ends: dict[str, list[Any]] = {}
    for name, parameter in sweep.document["parameters"].items():
        listed = parameter.get("values") or [parameter[key] for key in ("value", "min", "max") if key in parameter]
        ends[name] = listed or [_engine("sweeps.params").HyperParameter(name, parameter).ppf(0.5)]
    first = {name: values[0] for name, values in ends.items()}
    return [first, *({**first, name: value} for name, values in ends.items() for value in values[1:])]


def propose(sweep: Sweep, runs: Sequence[Run], number: int) -> list[Knobs]:
    """Return up to `number` further settings; fewer at the end of a grid.

    A grid comes seed by seed, so that its first runs cover the other knobs. Bayes learns from the results in `runs`,
    so ask it for one setting at a time.
    """
    is_grid = sweep.document["method"] == "grid"
    known = [] if is_grid else [_to_engine(sweep, run) for run in runs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the engine's Gaussian process on its first few points
        proposed = _engine().next_runs(sweep.document, known, n=10**6 if is_grid else number)
    settings = [_to_knobs(run.config) for run in proposed if run is not None]
    if is_grid:
        tried = [run.knobs for run in runs]
        seeds = sweep.document["parameters"].get("seed", {}).get("values", [])
        settings = [knobs for knobs in settings if knobs not in tried]
        settings.sort(key=lambda knobs: seeds.index(knobs["seed"]) if seeds else 0)
    return settings[:number]


def should_stop(sweep: Sweep, runs: Sequence[Run], number: int) -> bool:
    """Return whether the sweep's early termination would end run `number` now."""
    if "early_terminate" not in sweep.document:
        return False
    ended = _engine().stop_runs(sweep.document, [_to_engine(sweep, run) for run in runs])
    return str(number) in [run.name for run in ended]


def _engine(module: str = "sweeps") -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its models are of pydantic 1's style
            return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"sweeps need the package of that name ({error}): pip install 'mctl-reid[sweep]'") from error


def _to_engine(sweep: Sweep, run: Run) -> Any:
    return _engine().SweepRun(
        name=str(run.number),
        config={name: {"value": value} for name, value in run.knobs.items()},
        state={"planned": "pending", "stopped": "killed"}.get(run.state, run.state),
        sampledHistory=[{sweep.metric: value} for value in run.history],  # version 0.2 ignores the name `history`
    )


def _to_knobs(config: dict[str, dict[str, Any]]) -> Knobs:
    """Return plain numbers of six digits, so that the command line holds exactly what the engine is told later."""
    values = {name: entry["value"] for name, entry in config.items()}
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in plain.items()}


def read_history(run: Path, metric: str) -> tuple[float, ...]:
    """Read the metric from a run's log, at each step that has it. Raises ValueError for a damaged line."""
    path = RunFolder(run).metrics
    if not path.exists():
        return ()
    entries, damaged = read_metrics(path)
    if damaged:
        raise ValueError(f"{path}: line {damaged[0]} is damaged: not a JSON object with a step; remove it")
    values = [entry[metric] for entry in entries if metric in entry]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{path}: {metric} = {value!r} is not a finite number; remove that line")
    return tuple(map(float, values))
