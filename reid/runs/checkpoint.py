"""Checkpoints of a run: written under a temporary name, checked by hash, without pickled code."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.optim import Optimizer

from reid.config import DataConfig
from reid.config.schema import LATER
from reid.data.normalization import describe_pixels
from reid.files import write_atomically
from reid.model.positions import grid_of
from reid.model.saved import (
    MODEL,
    OBJECTIVE,
    OPTIMIZER,
    STATE,
    TRAINING,
    find,
    format_state,
    hash_file,
    naming_damage,
    read_state,
)
from reid.model.timm_models import is_timm_resnet
from reid.model.weights_file import read_header

# Knobs that set what a checkpoint describes, where its own name is none.
KNOBS = {"data": "data.root", "classes": "data.root, data.val_identities"}
NO_AVERAGE = {"optim.ema": "off"}


class NotRemoved(OSError):
    """The new checkpoint is complete, but an old one could not be removed."""


class Scaler(Protocol):
    """The loss scaler of fp16 (torch.amp.GradScaler): a few numbers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class TrainState:
    """All that a resumed run needs besides tensors. The next step to make is (epoch, step)."""

    epoch: int = 0
    step: int = 0
    best: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the best evaluation so far."""
    best_name: str = ""
    """The checkpoint that was evaluated best; it is kept."""
    due: bool = False
    """The epoch that ended here is still to be evaluated."""
    dropped: Sequence[int] = ()
    """Rows of damaged identities that were left out earlier in this epoch."""
    dropped_total: int = 0
    """Identities that were left out in earlier epochs, summed over epochs."""
    ranks: int = 0
    """V, virtual ranks of the latest step; 0 if it is not known (checkpoints of earlier versions)."""
    follows_processes: bool = False
    """V was the number of processes (batch.ranks = 0)."""
    steps_per_epoch: int = 0
    """Of the latest step; 0 if it is not known (checkpoints of earlier versions)."""

    @property
    def name(self) -> str:
        """The name of its checkpoint."""
        return f"epoch-{self.epoch:04d}-step-{self.step:06d}"


@dataclass
class Parts:
    """What a checkpoint holds in addition to the TrainState.

    describes (JSON): what the checkpoint belongs to: model knobs, number of classes, data, plan, optimizer.
    average: of the model's weights; MODEL is then the average, and TRAINING the model.
    """

    model: nn.Module
    describes: Mapping[str, Any]
    objective: nn.Module | None = None
    optimizer: Optimizer | None = None
    scaler: Scaler | None = None
    average: nn.Module | None = None


def save(folder: Path, parts: Parts, state: TrainState, keep: int) -> Path:
    """Write checkpoints/epoch-<eeee>-step-<ssssss>, and remove all but the newest `keep` and the best.

    The name appears only after every file is on disk, so a kill at any moment leaves the earlier checkpoints intact.
    Newer checkpoints are removed: they are damaged, since the run resumed from an earlier one.

    Raises:
        OSError: for example on a full disk; earlier checkpoints are intact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / state.name
    building = folder / f".{final.name}.writing"
    for left in [*folder.glob(".*.writing"), *folder.glob(".*.replaced")]:  # by a run that was killed while writing
        shutil.rmtree(left)
    try:
        _write(building, parts, state)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    if final.exists():  # of the same step, before a resume from an earlier one: kept until ours is in place
        final.rename(folder / f".{final.name}.replaced")
    building.rename(final)
    _sync(folder)
    shutil.rmtree(folder / f".{final.name}.replaced", ignore_errors=True)
    _prune(folder, state, keep)
    return final


def amend(folder: Path, state: TrainState, keep: int) -> Path:
    """Replace the TrainState (of the same step) in a checkpoint, after its evaluation."""
    final = folder / state.name
    write_atomically(final / STATE, format_state(read_state(final) | asdict(state)))
    _sync(final)
    _prune(folder, state, keep)
    return final


def _prune(folder: Path, state: TrainState, keep: int) -> None:
    """Remove checkpoints newer than that of `state`, and all but the newest `keep` and the best."""
    found = find(folder)
    place = [path.name for path in found].index(state.name)
    for path in [*found[:place], *found[place + keep :]]:
        if path.name != state.best_name:
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise NotRemoved(error.errno, error.strerror, str(path)) from error


def restore(folder: Path) -> None:
    """Put back a checkpoint that a killed run had renamed before its replacement was in place."""
    for aside in folder.glob(".*.replaced"):
        final = folder / aside.name.removeprefix(".").removesuffix(".replaced")
        if not final.exists():
            aside.rename(final)


def _write(building: Path, parts: Parts, state: TrainState) -> None:
    building.mkdir()
    optimizer_state = io.BytesIO()
    assert parts.objective is not None and parts.optimizer is not None
    torch.save({**parts.optimizer.state_dict(), "names": _names(parts.optimizer, parts.model)}, optimizer_state)
    # Written as bytes: the libraries' own writers turn a full disk into errors of their own.
    header = {"grid": json.dumps(grid)} if (grid := grid_of(parts.model)) else None
    modules = {MODEL: parts.model} if parts.average is None else {MODEL: parts.average, TRAINING: parts.model}
    for name, module in modules.items():
        (building / name).write_bytes(save_tensors(_tensors(module), header))
    (building / OBJECTIVE).write_bytes(save_tensors(_tensors(parts.objective)))
    (building / OPTIMIZER).write_bytes(optimizer_state.getbuffer())
    document = {
        **asdict(state),
        "scaler": parts.scaler.state_dict() if parts.scaler is not None else None,
        "describes": parts.describes,
        "files": {name: hash_file(building / name) for name in (*modules, OBJECTIVE, OPTIMIZER)},
    }
    (building / STATE).write_text(format_state(document))
    for path in building.iterdir():
        _sync(path)
    _sync(building)


def read_facts(path: Path) -> dict[str, Any]:
    """Return what a checkpoint describes, with what earlier versions did not note: they normalized all images as those
    of ImageNet, resized them bilinearly, left the strides of timm's ResNets as they are, and averaged no weights."""
    facts: dict[str, Any] = {"average": NO_AVERAGE} | read_state(path)["describes"]
    if "pixels" not in facts:
        facts["pixels"] = describe_pixels(DataConfig())
        if is_timm_resnet(facts.get("model", {}).get("encoder", "")):
            facts["model"] = {**facts["model"], "last_stride": 2}
    return facts


def load(path: Path, parts: Parts) -> TrainState:
    """Load a checkpoint into the parts that are given.

    Raises:
        ValueError: names the checkpoint, and the first knob or tensor that does not match.
    """
    state, facts = read_state(path), read_facts(path)
    for key, value in parts.describes.items():
        saved = facts.get(key, value)  # what earlier versions did not note
        if key == "model":
            saved = {name: default for name, default in LATER.items() if name in value} | saved
        if saved != value:
            raise ValueError(f"{path} belongs to another run: its {_difference(key, saved, value)}, or another --name")
    load_weights(path, parts.model if parts.average is None else parts.average)
    if parts.average is not None:
        _load_tensors(path / TRAINING, parts.model)
    if parts.objective is not None:
        _load_tensors(path / OBJECTIVE, parts.objective)
    with naming_damage(path):
        if parts.optimizer is not None:
            _load_optimizer(path / OPTIMIZER, parts.optimizer, parts.model)
        if parts.scaler is not None and state["scaler"]:
            parts.scaler.load_state_dict(state["scaler"])
    saved_state = {field.name: state[field.name] for field in fields(TrainState) if field.name in state}
    return TrainState(**{**saved_state, "dropped": tuple(state["dropped"])})


def _difference(key: str, saved: Any, here: Any) -> str:
    """Describe the first entry that differs, and name the knobs that set it."""
    what, knobs = f"{key} is", KNOBS.get(key, key)
    if isinstance(saved, Mapping) and isinstance(here, Mapping):
        name = next(name for name in {**saved, **here} if saved.get(name) != here.get(name))
        what, knobs = f"{key} has {name} =", f"model.{name}" if key == "model" else name
        saved, here = saved.get(name), here.get(name)
    return f"{what} {saved!r}, here it is {here!r}; give the knobs it was trained with ({knobs})"


def _names(optimizer: Optimizer, model: nn.Module) -> list[str]:
    """Return the model's names of the optimizer's parameters, in its order; "" for others."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names.get(parameter, "") for group in optimizer.param_groups for parameter in group["params"]]


def _load_optimizer(file: Path, optimizer: Optimizer, model: nn.Module) -> None:
    """Load the moments of each parameter by its name; groups, rates and decays keep their present values."""
    saved = torch.load(file, map_location="cpu", weights_only=True)
    names = _names(optimizer, model)
    moments = {name: saved["state"].get(i) for i, name in enumerate(saved.get("names", names))}
    optimizer.load_state_dict(
        {
            "state": {i: moments[name] for i, name in enumerate(names) if moments.get(name)},
            "param_groups": optimizer.state_dict()["param_groups"],
        }
    )
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            # Fused kernels expect moments in the memory format of the parameter, which channels_last decides.
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def load_weights(path: Path, model: nn.Module) -> None:
    """Load only the model's weights. Errors name the first tensor that does not match."""
    if not (path / MODEL).is_file():
        raise ValueError(f"{path} is not a checkpoint: it has no {MODEL}")
    with naming_damage(path):
        stated = json.loads(read_header(path / MODEL).get("grid", "null"))
    if (grid := grid_of(model)) and stated not in (None, list(grid)):  # their numbers may be equal: 16 x 8 and 8 x 16
        raise ValueError(
            f"{path} holds another model: its position embeddings are for {stated} patches (rows, columns), here they "
            f"are for {list(grid)}; give the data.height and data.width that it was trained with"
        )
    _load_tensors(path / MODEL, model)


def _load_tensors(file: Path, module: nn.Module) -> None:
    with naming_damage(file.parent):
        state = load_file(file)
    for name, value in module.state_dict().items():
        if name not in state or state[name].shape != value.shape:
            found = tuple(state[name].shape) if name in state else "absent"
            raise ValueError(f"{file} holds another model: {name} is {found}, expected {tuple(value.shape)}")
    state.pop("spread", None)  # of an objective of earlier versions
    more = sorted(set(state) - set(module.state_dict()))
    if more:
        raise ValueError(f"{file} holds another model: it has {more[0]}, which this model does not have")
    module.load_state_dict(state)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
