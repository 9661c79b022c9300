"""Gradient error, against one process, of the ways in which centroid losses are spread over ranks.

python -m tests.bench.exactness        prints a Markdown table; seconds
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reid.data.layout import build_layout
from reid.distributed import rank, world_size
from reid.losses import centroid
from reid.losses.anchors import Anchors, find_anchors
from reid.losses.gather import GlobalBatch, find_global_batch
from tests.support.batches import KnownSums
from tests.support.pool import Pool

DIM, MARGIN = 8, 3.0


def batch(number: int) -> tuple[Tensor, Tensor]:
    """Rank `number`'s images and pids: 3 to 5 identities with 2 to 4 images each."""
    generator = torch.Generator().manual_seed(number)
    pids = torch.arange(3 + number % 3).repeat_interleave(2 + number % 3) + 10 * number
    return torch.randn(len(pids), DIM, generator=generator, dtype=torch.float64), pids


def exact(features: Tensor, pids: Tensor) -> Tensor:
    return centroid.modified_centroid_triplet(features, pids, 0.1, MARGIN)


def times_world_size(features: Tensor, pids: Tensor) -> Tensor:
    return world_size() * exact(features, pids)


def anchors_with(batch: GlobalBatch, sums: Tensor) -> Anchors:
    return find_anchors(KnownSums(batch.features["raw"], batch.layout, sums), centroids="raw")["centroids"]


def detached_remotes(features: Tensor, pids: Tensor) -> Tensor:
    found = find_global_batch(features, pids)
    sums = found.sums["raw"]
    own = features.new_zeros(sums.shape).index_add(0, found.layout.identity, features)
    anchors = anchors_with(found, sums.detach() - own.detach() + own)
    return centroid.modified_centroid_triplet_of(anchors, 0.1, MARGIN)


def no_gather(features: Tensor, pids: Tensor) -> Tensor:
    layout = build_layout([pids.numpy()], dtype=features.dtype)
    own = features.new_zeros((layout.slots, DIM)).index_add(0, layout.slot, features)
    anchors = anchors_with(GlobalBatch({"raw": features}, layout), own)
    return centroid.modified_centroid_triplet_of(anchors, 0.1, MARGIN)


def mean_of_local_means(features: Tensor, pids: Tensor) -> Tensor:
    found = find_global_batch(features, pids)
    anchors = anchors_with(found, found.sums["raw"])
    weight = (anchors.weight > 0).to(features.dtype)
    weight = weight / weight.sum().clamp(min=1)
    anchors = replace(anchors, weight=weight, push_weight=weight)
    return centroid.modified_centroid_triplet_of(anchors, 0.1, MARGIN)


WAYS = {
    "gather with gradient, local anchors, share (W/M)·Σ": exact,
    "the same, multiplied by W once more": times_world_size,
    "sums of other ranks detached": detached_remotes,
    "no gather: each rank sees its own negatives": no_gather,
    "mean over each rank's anchors, then over ranks": mean_of_local_means,
}


def gradient(way: str) -> Tensor:
    """The gradient that DDP leaves on the parameters of one linear layer."""
    torch.manual_seed(0)
    model = nn.Linear(DIM, DIM, dtype=torch.float64)
    distributed = DistributedDataParallel(model)
    images, pids = batch(rank())
    WAYS[way](distributed(images), pids).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def one_process(ranks: int) -> Tensor:
    torch.manual_seed(0)
    model = nn.Linear(DIM, DIM, dtype=torch.float64)
    parts = [batch(number) for number in range(ranks)]
    exact(model(torch.cat([i for i, _ in parts])), torch.cat([p for _, p in parts])).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def main() -> None:
    assert not dist.is_initialized()
    pool = Pool(4)
    print("| way | 2 ranks | 3 ranks | 4 ranks |\n|---|---|---|---|")
    for way in WAYS:
        errors = []
        for ranks in (2, 3, 4):
            expected = one_process(ranks)
            found = pool.run(ranks, gradient, way)
            errors.append(max(float((g - expected).norm() / expected.norm()) for g in found))
        print(f"| {way} | " + " | ".join(f"{error:.1e}" for error in errors) + " |")
    pool.close()


if __name__ == "__main__":
    main()
