"""Checkpoints of a run: written aside and renamed, newest first on resume, no pickled code."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

FORMAT = 1
NAME = re.compile(r"epoch-(\d+)-step-(\d+)")


@dataclass(frozen=True)
class Progress:
    """Where a run stands: the next step to make is (epoch, step); `best` holds the best evaluation so far."""

    epoch: int
    step: int
    best: Mapping[str, float]


def save(
    folder: Path,
    model: nn.Module,
    objective: nn.Module,
    optimizer: Optimizer,
    progress: Progress,
    describes: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write checkpoints/epoch-<eeee>-step-<ssssss> and drop all but the newest `keep`.

    `describes` (JSON) says what the checkpoint belongs to (model knobs, number of classes, data); `load` compares it.
    The name appears only once every file is on disk, so a kill at any moment leaves the earlier ones whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"epoch-{progress.epoch:04d}-step-{progress.step:06d}"
    building = folder / f".{final.name}.writing"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    save_file(_tensors(model), building / "model.safetensors")
    save_file(_tensors(objective), building / "objective.safetensors")
    torch.save(optimizer.state_dict(), building / "optimizer.pt")
    state = {"format": FORMAT, "epoch": progress.epoch, "step": progress.step, "best": dict(progress.best)}
    (building / "state.json").write_text(json.dumps({**state, "describes": describes}, indent=2))
    for file in building.iterdir():
        _sync(file)
    _sync(building)
    if final.exists():  # of the same step, by a run that goes on from an earlier one: set aside until ours is in place
        final.rename(folder / f".{final.name}.replaced")
    building.rename(final)
    _sync(folder)
    shutil.rmtree(folder / f".{final.name}.replaced", ignore_errors=True)
    for old in find(folder)[keep:]:
        shutil.rmtree(old)
    return final


def find(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, newest first."""
    if not folder.is_dir():
        return []
    named = [(NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return [path for _, path in sorted(((int(m[1]), int(m[2])), path) for m, path in named if m)][::-1]


def load(
    path: Path,
    model: nn.Module,
    describes: Mapping[str, Any],
    objective: nn.Module | None = None,
    optimizer: Optimizer | None = None,
) -> Progress:
    """Restore what is given and return where the run stands. Errors name the checkpoint and what does not fit."""
    state = read_state(path)
    for key, value in describes.items():
        if state["describes"].get(key) != value:
            raise ValueError(
                f"{path} belongs to another run: its {key} is {state['describes'].get(key)!r}, here it is {value!r}; "
                "give the knobs it was trained with, or another --name"
            )
    load_weights(path, model)
    if objective is not None:
        _load_tensors(path / "objective.safetensors", objective)
    if optimizer is not None:
        with _naming(path):
            optimizer.load_state_dict(torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True))
    return Progress(state["epoch"], state["step"], state["best"])


def read_state(path: Path) -> dict[str, Any]:
    """What state.json says: epoch, step, best, and under `describes` what the checkpoint belongs to."""
    if not (path / "state.json").is_file():
        raise ValueError(f"{path} is not a checkpoint: it has no state.json")
    with _naming(path):
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        if state["format"] == FORMAT and {"epoch", "step", "best", "describes"} <= set(state):
            return state
    raise ValueError(f"{path} has checkpoint format {state.get('format')}; this version reads format {FORMAT}")


def load_weights(path: Path, model: nn.Module) -> None:
    """The model's weights alone. Errors name the first tensor that does not fit."""
    if not (path / "model.safetensors").is_file():
        raise ValueError(f"{path} is not a checkpoint: it has no model.safetensors")
    _load_tensors(path / "model.safetensors", model)


def _load_tensors(file: Path, module: nn.Module) -> None:
    with _naming(file.parent):
        state = load_file(file)
    for name, value in module.state_dict().items():
        if name not in state or state[name].shape != value.shape:
            found = tuple(state[name].shape) if name in state else "absent"
            raise ValueError(f"{file} holds another model: {name} is {found}, expected {tuple(value.shape)}")
    module.load_state_dict(state)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever reading a damaged file raises into one line that names the checkpoint and the mend."""
    try:
        yield
    except Exception as error:  # json, safetensors and torch have many ways to say that a file is damaged
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: damaged checkpoint: {reason}; delete it to go on from the one before") from error


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
