"""The files of a checkpoint, and how damage to them is found. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reid.files import hash_file

FORMAT = 3  # 3: state.json has a hash of itself; 2: hashes of the other files
READABLE = (2, 3)
NAME = re.compile(r"epoch-(\d+)-step-(\d+)")
STATE, MODEL, OBJECTIVE, OPTIMIZER = "state.json", "model.safetensors", "objective.safetensors", "optimizer.pt"
TRAINING = "training.safetensors"  # the weights that training continues from, where MODEL is their average
HASHED = (MODEL, OBJECTIVE, OPTIMIZER)
NOTED_LATER = {"ranks", "follows_processes", "steps_per_epoch"}
OPTIONAL = {2: {"due", "dropped_total", *NOTED_LATER}, 3: NOTED_LATER}  # what early checkpoints of a format do not have
CHECKPOINTS = "checkpoints"  # their folder in that of a run
FIX = "restore it from a copy, or use another checkpoint"


def is_checkpoint(path: Path) -> bool:
    """Return whether a folder is a checkpoint by its state.json or, if that was lost, by its name."""
    return (path / STATE).is_file() or (path.is_dir() and NAME.fullmatch(path.name) is not None)


def format_state(state: Mapping[str, Any]) -> str:
    """Return the text of state.json: `state` and its hash, in one file so that both are replaced at once."""
    state = json.loads(json.dumps({**state, "format": FORMAT}))
    return json.dumps({**state, "sha256": _hash_state(state)}, indent=2)


def _hash_state(state: Mapping[str, Any]) -> str:
    bare = {name: value for name, value in state.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()


def read_state(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's state.json. ValueError if it is damaged, or of another format."""
    if not (path / STATE).is_file():
        raise ValueError(f"{path} is not a checkpoint: it has no {STATE}")
    with naming_damage(path):
        try:
            state = json.loads((path / STATE).read_text())
        except ValueError as error:
            raise ValueError(f"{STATE}: {error}") from error
        fault = _find_fault(state, path.name)
    if fault:
        raise ValueError(f"{path}: damaged checkpoint: {STATE} {fault}; {FIX}")
    if state["format"] not in READABLE:
        readable = " and ".join(map(str, READABLE))
        raise ValueError(f"{path} has checkpoint format {state['format']}; this version reads format {readable}")
    found: dict[str, Any] = state
    return found


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


# What the entries of state.json may be.
_RULES: dict[str, Callable[[Any], bool]] = {
    "epoch": _is_count,
    "step": _is_count,
    "best": lambda best: isinstance(best, dict) and all(type(value) in (int, float) for value in best.values()),
    "best_name": lambda name: isinstance(name, str) and (not name or NAME.fullmatch(name) is not None),
    "due": lambda due: isinstance(due, bool),
    "dropped": lambda rows: isinstance(rows, list) and all(map(_is_count, rows)),
    "dropped_total": _is_count,
    "ranks": _is_count,
    "follows_processes": lambda follows: isinstance(follows, bool),
    "steps_per_epoch": _is_count,
    "scaler": lambda scaler: scaler is None or isinstance(scaler, dict),
    "describes": lambda about: (
        isinstance(about, dict) and _is_count(about.get("classes")) and isinstance(about.get("model", {}), dict)
    ),
    "files": lambda files: isinstance(files, dict) and files.keys() - {TRAINING} == set(HASHED),
}


def _find_fault(state: Any, folder: str) -> str | None:
    """Return what is wrong with the content of state.json, or None. Another format is judged by `read_state`."""
    if not isinstance(state, dict) or type(state.get("format")) is not int:
        return "has no format"
    if state["format"] not in READABLE:
        return None
    if (state["format"] > 2 or "sha256" in state) and state.get("sha256") != _hash_state(state):
        return "has other content than was written"
    for name, is_sound in _RULES.items():
        if name in state and not is_sound(state[name]):
            return f"has {name} = {state[name]!r}"
        if name not in state and name not in OPTIONAL[state["format"]]:
            return f"has no {name}"
    named = NAME.fullmatch(folder)
    if named and (int(named[1]), int(named[2])) != (state["epoch"], state["step"]):
        return f"is of epoch {state['epoch']}, step {state['step']}"
    return None


def check(path: Path, names: Sequence[str] = ()) -> None:
    """Raise ValueError if state.json is damaged, or one of the files `names` (default: all) is missing or has other
    bytes."""
    hashes = read_state(path)["files"]
    for name in names or hashes:
        if not (path / name).is_file():
            raise ValueError(f"{path}: damaged checkpoint: {name} is missing; {FIX}")
        with naming_damage(path):
            found = hash_file(path / name)
        if found != hashes[name]:
            raise ValueError(f"{path}: damaged checkpoint: {name} has other bytes than were written; {FIX}")


def find(folder: Path) -> list[Path]:
    """Return the complete checkpoints in `folder`, newest first."""
    if not folder.is_dir():
        return []
    named = [(NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return [path for _, path in sorted(((int(m[1]), int(m[2])), path) for m, path in named if m)][::-1]


def find_undamaged(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest undamaged checkpoint and what is wrong with newer ones. ValueError if all are damaged."""
    damaged = []
    for path in find(folder):
        try:
            check(path)
        except ValueError as error:
            if path.exists():  # otherwise a run that trains has removed it in the meantime
                damaged.append(str(error))
        else:
            return path, damaged
    if damaged:
        raise ValueError(f"{folder} holds no undamaged checkpoint: {'; '.join(damaged)}")
    return None, []


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Turn any error from reading a damaged file into a ValueError that names the checkpoint and the fix."""
    try:
        yield
    except Exception as error:  # json, safetensors and torch have many ways to say that a file is damaged
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: damaged checkpoint: {reason}; {FIX}") from error
