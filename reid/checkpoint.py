"""Checkpoints of a run: written aside and renamed, newest first on resume, no pickled code."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

FORMAT = 1


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
    shutil.rmtree(final, ignore_errors=True)
    building.rename(final)
    _sync(folder)
    for old in find(folder)[keep:]:
        shutil.rmtree(old)
    return final


def find(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, newest first."""
    return sorted(folder.glob("epoch-*-step-*"), reverse=True) if folder.is_dir() else []


def load(
    path: Path,
    model: nn.Module,
    describes: Mapping[str, Any],
    objective: nn.Module | None = None,
    optimizer: Optimizer | None = None,
) -> Progress:
    """Restore what is given and return where the run stands. Errors name the checkpoint and what does not fit."""
    if not (path / "state.json").is_file():
        raise ValueError(f"{path} is not a checkpoint: it has no state.json")
    state = json.loads((path / "state.json").read_text())
    if state.get("format") != FORMAT:
        raise ValueError(f"{path} has checkpoint format {state.get('format')}; this version reads format {FORMAT}")
    for key, value in describes.items():
        if state["describes"].get(key) != value:
            raise ValueError(
                f"{path} belongs to another run: its {key} is {state['describes'].get(key)!r}, here it is {value!r}; "
                "give the knobs it was trained with, or another --name"
            )
    load_weights(path, model)
    if objective is not None:
        objective.load_state_dict(load_file(path / "objective.safetensors"))
    if optimizer is not None:
        optimizer.load_state_dict(torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True))
    return Progress(state["epoch"], state["step"], state["best"])


def load_weights(path: Path, model: nn.Module) -> None:
    """The model's weights alone. Errors name the first tensor that does not fit."""
    file = path / "model.safetensors"
    if not file.is_file():
        raise ValueError(f"{path} is not a checkpoint: it has no model.safetensors")
    state, own = load_file(file), model.state_dict()
    for name, value in own.items():
        if name not in state or state[name].shape != value.shape:
            found = tuple(state[name].shape) if name in state else "absent"
            raise ValueError(f"{file} holds another model: {name} is {found}, expected {tuple(value.shape)}")
    model.load_state_dict(state)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
