"""Features of every image of a split, extracted and ranked by all ranks together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from reid import metrics
from reid.augment import normalize
from reid.distributed import gather_objects, gather_padded, gather_sizes, rank, world_size
from reid.loader import EvalLoader, Pixels, read_shards
from reid.manifest import Manifest
from reid.metrics import Features, Result


@dataclass(frozen=True)
class Extracted:
    """The same on every rank: `features` of N images, and `index` (N,), their places in the split's storage order."""

    features: Features
    index: Tensor


@torch.no_grad()
def extract(
    model: nn.Module,
    root: Path,
    manifest: Manifest,
    split: str,
    pixels: Pixels,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Extracted:
    """Features (after the neck, not normalised) of every image of a split but junk, each image exactly once.

    `model` is the unwrapped module (a DDP wrapper would wait for the other ranks), set to eval mode for the duration.
    Ranks share the shards. `dtype` other than float32 autocasts the forward pass; features come back as float32.
    """
    part = manifest.split(split)
    loader = EvalLoader(root, part, list(range(len(part.shards)))[rank() :: world_size()], pixels, batch_size)
    was_training = model.training
    model.eval()
    embeddings, pids, camids, index = [], [], [], []
    for batch in loader.batches(workers):
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            embeddings.append(model(normalize(batch.images.to(device, non_blocking=True))).float())
        pids.append(batch.pids)
        camids.append(batch.camids)
        index.append(batch.index)
    model.train(was_training)
    local_index = _concatenate(index)
    sizes = gather_sizes(len(local_index), device)
    width = max(gather_sizes(embeddings[0].shape[1] if embeddings else 0, device))
    local = torch.cat(embeddings) if embeddings else torch.empty(0, width, device=device)
    keys = torch.stack([local_index, _concatenate(pids), _concatenate(camids)], dim=1).to(device)
    all_keys, everyone = gather_padded(keys, sizes), gather_padded(local, sizes)
    order = torch.argsort(all_keys[:, 0])
    all_keys, everyone = all_keys[order], everyone[order]
    expected = torch.from_numpy(np.flatnonzero(np.repeat(part.pids != -1, part.images)))
    if not torch.equal(all_keys[:, 0].cpu(), expected):
        raise ValueError(f"{root}: {len(all_keys)} {split} images were read, the manifest lists {len(expected)}")
    distractors = None if manifest.distractor_pid is None else all_keys[:, 1] == manifest.distractor_pid
    return Extracted(Features(everyone, all_keys[:, 1], all_keys[:, 2], distractors), all_keys[:, 0].cpu())


def _concatenate(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def evaluate_over_ranks(
    query: Features, gallery: Features, protocols: Iterable[str], max_rank: int = 50, metric: str = "cosine"
) -> dict[str, Result]:
    """Every protocol's result, equal on every rank: each rank ranks its slice of the queries."""
    mine = torch.arange(len(query.pids)).tensor_split(world_size())[rank()]
    part = Features(
        query.embeddings[mine],
        query.pids[mine],
        query.camids[mine],
        None if query.distractors is None else query.distractors[mine],
    )
    return {
        protocol: metrics.merge(
            gather_objects(metrics.evaluate(part, gallery, protocol, metric, max_rank, partial=True))
        )
        for protocol in protocols
    }


def read_images(root: Path, manifest: Manifest, split: str, index: Sequence[int], pixels: Pixels) -> list[np.ndarray]:
    """The images (H, W, 3) uint8 at `index`, places in the split's storage order; opens the shards that hold them."""
    part = manifest.split(split)
    ends = np.cumsum(part.images)
    rows = np.searchsorted(ends, np.asarray(index), side="right")
    wanted: dict[int, list[int]] = {}
    for place, row in zip(index, rows, strict=True):
        wanted.setdefault(int(row), []).append(int(place))
    found: dict[int, np.ndarray] = {}
    for identity in read_shards(root, part, sorted({int(part.shard[row]) for row in wanted})):
        for place in wanted.get(identity.row, []):
            i = place - int(ends[identity.row] - part.images[identity.row])
            found[place] = pixels.decode(identity.data[i], f"{identity.where}.{identity.files[i]}")
    return [found[int(place)] for place in index]
