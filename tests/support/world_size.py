"""Whole trainings on some ranks of the pool: the same virtual ranks, on any number of processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from torch import Tensor

from reid.config import Config
from reid.data import train_loader
from reid.data.layout import build_layout
from reid.distributed import rank, world_size
from reid.model.network import Outputs, ReIDModel
from reid.training.train import train
from tests.support.drawn import HEIGHT, WIDTH

ENCODER = "timm/test_resnet"  # stem, residual blocks and BatchNorm of a ResNet, with 0.4 million parameters


def make_config(root: Path, runs: Path, name: str, steps: int = 20, ranks: int = 4) -> Config:
    """The default recipe for small images: batch statistics, local triplets, short groups, augmentation, centers,
    and an average of the weights."""
    config = Config(name=name, runs=str(runs), device="cpu")
    config.data.root, config.data.height, config.data.width, config.data.workers = str(root), HEIGHT, WIDTH, 0
    batch = config.batch
    batch.identities, batch.images, batch.streams, batch.ranks, batch.steps_per_epoch = 8, 3, 4, ranks, steps
    config.augment.pad = 2
    config.model.encoder, config.model.weights, config.model.last_stride = ENCODER, "none", 2
    config.model.drop_path = 0.2
    config.optim.epochs, config.optim.warmup_epochs, config.optim.milestones, config.optim.ema = 1, 0, [], 0.9
    config.track.wandb, config.track.every_steps = "off", 1
    return config


def run(config: Config, dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> bool:
    """`train(config)` on this rank of a pool. Return whether it was stopped.

    Args:
        dropout: of the images, drawn by the model: what a random part of a model would draw.
    """
    with _program(), _precision(dtype, dropout):
        return train(config).stopped


@contextmanager
def _program() -> Iterator[None]:
    """What a launcher and a new process give a program."""
    place = {"WORLD_SIZE": world_size(), "RANK": rank(), "LOCAL_RANK": rank(), "MASTER_ADDR": "127.0.0.1"}
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with mock.patch.dict(os.environ, {name: str(value) for name, value in place.items()}):
            yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def _precision(dtype: torch.dtype, dropout: float) -> Iterator[None]:
    """Make models, layouts and images of this type."""
    forward = ReIDModel.forward

    def of_type(self: ReIDModel, images: Tensor) -> Tensor | Outputs:
        return forward(self, F.dropout(images.to(dtype), dropout, self.training))

    torch.set_default_dtype(dtype)
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(ReIDModel, "forward", of_type))
        patches.enter_context(mock.patch.object(train_loader, "build_layout", partial(build_layout, dtype=dtype)))
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)
