"""Global batches that are hard on code that only works when every rank looks the same."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reid.data.layout import Layout, build_layout
from reid.losses.gather import GlobalBatch
from reid.losses.objective import Losses

DIM = 6


def split_batch(name: str, world_size: int, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    """The (features, pids) of each rank. Every rank makes the whole batch and takes its own part."""
    generator = torch.Generator().manual_seed(7)
    pids = PIDS[name](world_size)
    parts = []
    for rank, own in enumerate(pids):
        scale = 30.0 if name == "inactive hinges on one rank" and rank == 0 else 1.0
        features = torch.randn(len(own), DIM, generator=generator, dtype=torch.float64) * scale
        parts.append((features.to(dtype), torch.tensor(own)))
    return parts


def losses_of(features: Tensor, total: Tensor) -> Losses:
    """What the objective would return of these features and this loss, without terms."""
    layout = build_layout([np.arange(len(features))])
    logits = features.new_zeros(len(features), 1)
    return Losses(total, {}, features.clone(), layout, sums=None, logits=logits, anchors={})


def _even(world_size: int) -> list[list[int]]:
    return [[2 * rank, 2 * rank + 1] * 3 for rank in range(world_size)]


def _unequal(world_size: int) -> list[list[int]]:
    return [[10 * rank] * (rank + 2) + [10 * rank + 1] * 3 for rank in range(world_size)]


def _shared(world_size: int) -> list[list[int]]:
    return [[99, 99, rank, rank, rank] for rank in range(world_size)]


def _singletons(world_size: int) -> list[list[int]]:
    return [[100, 101, 102]] + [[rank, rank, 50 + rank, 50 + rank, rank] for rank in range(1, world_size)]


PIDS = {
    "even": _even,
    "unequal images per rank": _unequal,
    "an identity on every rank": _shared,
    "a rank of singletons": _singletons,
    "inactive hinges on one rank": _even,
}


class KnownSums(GlobalBatch):
    """A global batch of raw features (B, D) whose sums (C, D) are given instead of gathered."""

    def __init__(self, features: Tensor, layout: Layout, sums: Tensor) -> None:
        super().__init__({"raw": features}, layout)
        self._sums = sums
