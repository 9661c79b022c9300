"""A training run's folder, made without training."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from reid import Embedder
from reid.config import Config, save
from reid.model.network import ReIDModel
from reid.runs import checkpoint
from reid.runs.checkpoint import Parts, TrainState
from reid.training.setup import checkpoint_facts
from tests.support.drawn import HEIGHT, WIDTH, Drawn

FEW = 6


def make_run(
    folder: Path, drawn: Drawn, seed: int = 0, encoder: str = "resnet10", damage: float | None = None, **knobs: Any
) -> Path:
    """A run as training leaves it, of an encoder that has learned nothing and shows few features: with all of them it
    tells the drawn identities apart so well that all figures would be 1. knobs: of `data`, or e.g. model__embedding."""
    config = Config(name=folder.name, runs=str(folder.parent))
    config.data.root, config.data.height, config.data.width = str(drawn.root), HEIGHT, WIDTH
    for name, value in knobs.items():
        section, _, knob = name.rpartition("__")
        setattr(getattr(config, section or "data"), knob, value)
    config.model.encoder, config.model.weights = encoder, "none"
    torch.manual_seed(seed)
    model = ReIDModel(len(drawn.manifest.split("train").pids), config.model, config.data.image_size)
    model.neck.weight.data[FEW:] = 0.0 if damage is None else damage
    rest = torch.nn.Linear(1, 1)
    folder.mkdir(parents=True)
    save(config, folder / "config.yaml")
    for epoch in (1, 2):
        about = checkpoint_facts(config, [drawn.manifest.fingerprint], len(drawn.manifest.split("train").pids))
        parts = Parts(model, about, rest, torch.optim.SGD(rest.parameters()))
        checkpoint.save(folder / "checkpoints", parts, TrainState(epoch, 0), keep=2)
    return folder


def load_once(patch: pytest.MonkeyPatch) -> None:
    """Let `Embedder.load` keep what it returns and return it again when it is asked for the same.

    For tests of the programs that load a run: reading its configuration and building its model takes most of a call.
    """
    patch.setattr(Embedder, "load", staticmethod(cache(Embedder.load)))
