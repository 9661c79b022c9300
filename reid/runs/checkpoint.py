"""Checkpoints of a run: written aside and renamed, checked by their hashes, newest sound one first; no pickled code."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.optim import Optimizer

FORMAT = 2  # 2: hashes of the files, the best checkpoint by name, identities dropped in this epoch, fp16 scaler
NAME = re.compile(r"epoch-(\d+)-step-(\d+)")


class NotRemoved(OSError):
    """The new checkpoint is whole, an old one could not be removed."""


class Scaler(Protocol):
    """The loss scaler of fp16 (torch.amp.GradScaler): a few numbers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Progress:
    """Where a run stands: the next step to make is (epoch, step).

    best: the figures of the best evaluation so far; best_name: the checkpoint that has them, which is kept. due: the
    evaluation of the epoch that ended here is still to be made. dropped: rows of damaged identities that were left out
    earlier in this epoch; dropped_total: how many were left out in the epochs before, all together.
    """

    epoch: int
    step: int
    best: Mapping[str, float] = field(default_factory=dict)
    best_name: str = ""
    due: bool = False
    dropped: Sequence[int] = ()
    dropped_total: int = 0

    @property
    def name(self) -> str:
        """The name of its checkpoint."""
        return f"epoch-{self.epoch:04d}-step-{self.step:06d}"


def save(
    folder: Path,
    model: nn.Module,
    objective: nn.Module,
    optimizer: Optimizer,
    progress: Progress,
    describes: Mapping[str, Any],
    keep: int,
    scaler: Scaler | None = None,
) -> Path:
    """Write checkpoints/epoch-<eeee>-step-<ssssss> and drop all but the newest `keep` and the best.

    `describes` (JSON) says what the checkpoint belongs to (model knobs, number of classes, data, plan, optimizer);
    `load` compares it. The name appears only once every file is on disk, so a kill at any moment leaves the earlier
    ones whole. OSError, for example on a full disk, leaves them whole, too. Newer ones are damaged, as the run went on
    from an earlier one: they are dropped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / progress.name
    building = folder / f".{final.name}.writing"
    for left in [*folder.glob(".*.writing"), *folder.glob(".*.replaced")]:  # by a run that was killed while it wrote
        shutil.rmtree(left)
    try:
        _write(building, model, objective, optimizer, progress, describes, scaler)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    if final.exists():  # of the same step, by a run that goes on from an earlier one: set aside until ours is in place
        final.rename(folder / f".{final.name}.replaced")
    building.rename(final)
    _sync(folder)
    shutil.rmtree(folder / f".{final.name}.replaced", ignore_errors=True)
    _prune(folder, progress, keep)
    return final


def amend(folder: Path, progress: Progress, keep: int) -> Path:
    """Put another `progress` (of the same step) into the checkpoint that is there, as an evaluation gives it."""
    final = folder / progress.name
    state = read_state(final) | asdict(progress)
    new = final / "state.json.new"
    try:
        new.write_text(json.dumps(state, indent=2))
        _sync(new)
        new.replace(final / "state.json")
    except OSError:
        new.unlink(missing_ok=True)
        raise
    _sync(final)
    _prune(folder, progress, keep)
    return final


def _prune(folder: Path, progress: Progress, keep: int) -> None:
    """Drop what is newer than the checkpoint of `progress`, and all but the newest `keep` and the best."""
    found = find(folder)
    place = [path.name for path in found].index(progress.name)
    for path in [*found[:place], *found[place + keep :]]:
        if path.name != progress.best_name:
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise NotRemoved(error.errno, error.strerror, str(path)) from error


def restore(folder: Path) -> None:
    """Put back what a run set aside, if it was killed before the new one was in its place."""
    for aside in folder.glob(".*.replaced"):
        final = folder / aside.name.removeprefix(".").removesuffix(".replaced")
        if not final.exists():
            aside.rename(final)


def _write(
    building: Path,
    model: nn.Module,
    objective: nn.Module,
    optimizer: Optimizer,
    progress: Progress,
    describes: Mapping[str, Any],
    scaler: Scaler | None,
) -> None:
    building.mkdir()
    optimizer_state = io.BytesIO()
    torch.save({**optimizer.state_dict(), "names": _names(optimizer, model)}, optimizer_state)
    # Written as bytes: the libraries' own writers turn a full disk into errors of their own.
    (building / "model.safetensors").write_bytes(save_tensors(_tensors(model)))
    (building / "objective.safetensors").write_bytes(save_tensors(_tensors(objective)))
    (building / "optimizer.pt").write_bytes(optimizer_state.getbuffer())
    state = {
        "format": FORMAT,
        **asdict(progress),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "describes": describes,
        "files": {path.name: _hash(path) for path in sorted(building.iterdir())},
    }
    (building / "state.json").write_text(json.dumps(state, indent=2))
    for path in building.iterdir():
        _sync(path)
    _sync(building)


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, newest first."""
    if not folder.is_dir():
        return []
    named = [(NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return [path for _, path in sorted(((int(m[1]), int(m[2])), path) for m, path in named if m)][::-1]


def find_sound(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest sound checkpoint, and what is wrong with newer ones. ValueError if there are only damaged ones."""
    damaged = []
    for path in find(folder):
        try:
            check(path)
        except ValueError as error:
            damaged.append(str(error))
        else:
            return path, damaged
    if damaged:
        raise ValueError(f"{folder} holds no sound checkpoint: {'; '.join(damaged)}")
    return None, []


def check(path: Path) -> None:
    """ValueError if a file of the checkpoint is missing or has other bytes than were written."""
    for name, digest in read_state(path)["files"].items():
        with _naming(path):
            found = _hash(path / name)
        if found != digest:
            raise ValueError(f"{path}: damaged checkpoint: {name} has other bytes than were written")


def load(
    path: Path,
    model: nn.Module,
    describes: Mapping[str, Any],
    objective: nn.Module | None = None,
    optimizer: Optimizer | None = None,
    scaler: Scaler | None = None,
) -> Progress:
    """Restore what is given and return where the run stands. Errors name the checkpoint and what does not fit."""
    state = read_state(path)
    for key, value in describes.items():
        saved = state["describes"].get(key, value)  # what earlier versions did not note
        if saved != value:
            raise ValueError(
                f"{path} belongs to another run: its {_difference(key, saved, value)}; give the knobs it was trained "
                "with, or another --name"
            )
    load_weights(path, model)
    if objective is not None:
        _load_tensors(path / "objective.safetensors", objective)
    if optimizer is not None:
        with _naming(path):
            _load_optimizer(path / "optimizer.pt", optimizer, model)
    if scaler is not None and state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    return Progress(
        state["epoch"], state["step"], state["best"], state["best_name"], state.get("due", False),
        tuple(state["dropped"]), state.get("dropped_total", 0),
    )  # fmt: skip


def _difference(key: str, saved: Any, here: Any) -> str:
    """The first entry that differs, where both have entries."""
    if isinstance(saved, Mapping) and isinstance(here, Mapping):
        name = next(name for name in {**saved, **here} if saved.get(name) != here.get(name))
        return f"{key} has {name} = {saved.get(name)!r}, here it is {here.get(name)!r}"
    return f"{key} is {saved!r}, here it is {here!r}"


def _names(optimizer: Optimizer, model: nn.Module) -> list[str]:
    """The model's names of the optimizer's parameters, in its order; "" of others."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names.get(parameter, "") for group in optimizer.param_groups for parameter in group["params"]]


def _load_optimizer(file: Path, optimizer: Optimizer, model: nn.Module) -> None:
    """The moments of each parameter, by its name: groups, rates and decays are those of the present knobs."""
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
            # Fused kernels take moments for laid out as the parameter is, which channels_last decides.
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def read_state(path: Path) -> dict[str, Any]:
    """What state.json says: epoch, step, best, and under `describes` what the checkpoint belongs to."""
    if not (path / "state.json").is_file():
        raise ValueError(f"{path} is not a checkpoint: it has no state.json")
    with _naming(path):
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        if state["format"] == FORMAT and {
            "epoch",
            "step",
            "best",
            "best_name",
            "dropped",
            "scaler",
            "describes",
            "files",
        } <= set(state):
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
    more = sorted(set(state) - set(module.state_dict()))
    if more:
        raise ValueError(f"{file} holds another model: it has {more[0]}, which this one lacks")
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
