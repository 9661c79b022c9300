"""A loader of the drawn training images, and what it takes to compare batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from reid.config import AugmentConfig, DataConfig
from reid.data.augmentation import Augmentation
from reid.data.images import Pixels
from reid.data.joined import Dataset, Joined
from reid.data.manifest import Manifest
from reid.data.plan import Plan
from reid.data.train_loader import Batch, TrainLoader
from tests.support.drawn import HEIGHT, WIDTH

PIXELS = Pixels(HEIGHT, WIDTH)
AUGMENTATION = Augmentation(
    AugmentConfig(pad=4, rotate_degrees=10, scale=0.1, jitter=0.5, grey=0.1, blur=0.5, policy="trivial")
)
STEPS = 5  # more than one pass of every stream


def make_loader(
    root: Path, manifest: Manifest, rank=0, world_size=1, workers=0, on_damage="stop", **knobs
) -> TrainLoader:
    """knobs: of the plan."""
    split = manifest.split("train")
    plan = Plan(split.images, split.shard, len(split.shards), identities=8, images=3, streams=4, seed=7, steps=STEPS)
    data = DataConfig(root=str(root), height=HEIGHT, width=WIDTH, workers=workers, on_damage=on_damage)
    return TrainLoader(
        data, Joined((Dataset(str(root), "drawn", manifest),)), replace(plan, **knobs), AUGMENTATION, rank, world_size
    )


def hash_batches(batches: Iterable[tuple[int, int, Batch]]) -> str:
    """Hex sha256 of what is in each batch, of its crops and flips and of its layout; of integers only."""
    digest = hashlib.sha256()
    for _, _, batch in batches:
        changes, layout = batch.changes, batch.layout
        columns = (batch.ids, batch.labels, changes.rows, changes.columns, layout.labels, layout.row_identity)
        for tensor in columns:
            digest.update(tensor.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def tensors_of(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: getattr(batch, name) for name in ("images", "labels", "ids")} | batch.changes._asdict()


def assert_same(found: list[tuple[int, int, Batch]], wanted: list[tuple[int, int, Batch]]) -> None:
    assert [entry[:2] for entry in found] == [entry[:2] for entry in wanted]
    for (_, _, one), (_, _, other) in zip(found, wanted, strict=True):
        for name, tensor in tensors_of(one).items():
            assert torch.equal(tensor, tensors_of(other)[name]), name
