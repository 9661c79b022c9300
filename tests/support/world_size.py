"""A training whose ranks say what they saw: its loss curve, and the images of each step."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from reid.config import AugmentConfig, DataConfig, LossConfig, OptimConfig
from reid.data.augmentation import Augmentation
from reid.data.manifest import load_manifest
from reid.data.plan import Plan
from reid.data.train_loader import TrainLoader
from reid.distributed import gather_objects, is_distributed
from reid.losses.objective import Objective
from reid.model.sync_batchnorm import convert_sync
from reid.training.monitors import mean_over_ranks
from reid.training.optim import Schedule, build_optimizer
from tests.support.drawn import HEIGHT, WIDTH
from tests.support.models import make_model


def train(
    root: Path, dtype: torch.dtype, norm: str, lr: float, steps: int, encoder: str = "resnet10"
) -> tuple[list[float], list[list[list[int]]]]:
    """The loss curve and the image ids of each step's global batch, in rank order."""
    split = load_manifest(root).split("train")
    plan = Plan(split.images, split.shard, len(split.shards), identities=8, images=3, streams=4, steps=steps)
    data = DataConfig(root=str(root), height=HEIGHT, width=WIDTH, workers=0)
    augmentation = Augmentation(AugmentConfig(pad=2))
    rank, world_size = dist.get_rank(), dist.get_world_size()
    loader = TrainLoader(data, split, plan, augmentation, rank, world_size)
    torch.manual_seed(0)
    knobs = {"norm": norm, "sync_batchnorm": True, "last_stride": 2}
    model = make_model(len(split.pids), encoder, image_size=(HEIGHT, WIDTH), **knobs)
    model = model.to(dtype)
    convert_sync(model)
    config = LossConfig(triplet_scope="global", margin=5.0)
    objective = Objective(config, len(split.pids), model.dim, torch.Generator().manual_seed(0)).to(dtype)
    wrapped = DistributedDataParallel(model) if is_distributed() else model
    optim = OptimConfig(lr=lr, warmup_epochs=1)
    optimizer, schedule = build_optimizer(model, optim), Schedule(optim, steps, identities=8)
    curve, ids = [], []
    for _, step, batch in loader.batches(1):
        schedule.apply(optimizer, step)
        outputs = wrapped(augmentation.apply(batch.images, batch.changes).to(dtype))
        losses = objective(*outputs, batch.labels)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        objective.update_centers(losses)
        curve.append(mean_over_ranks({"loss": losses.total})["loss"])
        ids.append([row for part in gather_objects(batch.ids.tolist()) for row in part])
    return curve, ids
