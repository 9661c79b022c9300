"""Features of every image of a split, extracted and ranked by all ranks together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from reid.config import Config, EvaluateConfig
from reid.data.augmentation import normalize
from reid.data.eval_loader import EvalLoader
from reid.data.images import Pixels
from reid.data.manifest import Manifest, load_manifest
from reid.distributed import gather_objects, gather_padded, gather_sizes, rank, world_size
from reid.evaluation.dataset_report import Evaluated, name_image
from reid.evaluation.external_features import check_finite
from reid.metrics import Features, rerank, retrieval
from reid.metrics.features import JUNK
from reid.metrics.retrieval import Result
from reid.precision import AUTOCAST_DTYPES, forward_pass
from reid.reports.tables import RERANKED

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Extracted:
    """The same on every rank: `features` of N images, and `index` (N,), their places in the split's storage order."""

    features: Features
    index: Tensor


@torch.no_grad()
def extract(
    model: nn.Module,
    root: str | Path,
    manifest: Manifest,
    split: str,
    pixels: Pixels,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    rows: np.ndarray | None = None,
) -> Extracted:
    """Features (after the neck, not normalised) of every image of a split but junk, each image exactly once.

    rows: of these identities alone.

    `model` is the unwrapped module (a DDP wrapper would wait for the other ranks), set to eval mode for the duration.
    Ranks share the shards. `dtype` other than float32 autocasts the forward pass; features come back as float32.
    """
    part = manifest.split(split)
    loader = EvalLoader(root, part, list(range(len(part.shards)))[rank() :: world_size()], pixels, batch_size, rows)
    was_training = model.training
    model.eval()
    embeddings, pids, camids, index = [], [], [], []
    for batch in loader.batches(workers):
        with forward_pass(device, dtype):
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
    expected = torch.from_numpy(np.flatnonzero(np.repeat(loader.wanted, part.images)))
    if not torch.equal(all_keys[:, 0].cpu(), expected):
        raise ValueError(f"{root}: {len(all_keys)} {split} images were read, the manifest lists {len(expected)}")
    index, pid, camid = all_keys.T.contiguous()
    distractors = None if manifest.distractor_pid is None else pid == manifest.distractor_pid
    return Extracted(Features(everyone, pid, camid, distractors), index.cpu())


def _concatenate(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def evaluate_over_ranks(
    query: Features, gallery: Features, protocols: Iterable[str], max_rank: int = 50, metric: str = "cosine"
) -> dict[str, Result]:
    """Every protocol's result, equal on every rank: each rank ranks its slice of the queries."""
    part = query.take(torch.arange(len(query.pids)).tensor_split(world_size())[rank()])
    return {
        protocol: retrieval.merge(
            gather_objects(retrieval.evaluate(part, gallery, protocol, metric, max_rank, partial=True))
        )
        for protocol in protocols
    }


def load_manifests(roots: Sequence[str]) -> dict[str, Manifest]:
    """ValueError on data without queries and gallery, and on data given twice."""
    manifests: dict[str, Manifest] = {}
    for root in roots:
        manifest = load_manifest(root)
        for split in ("query", "gallery"):
            if not (manifest.split(split).pids != JUNK).any():
                raise ValueError(f"{root}: the {split} split holds no image; there is nothing to evaluate")
        same = [other for other, known in manifests.items() if known.fingerprint == manifest.fingerprint]
        if root in manifests or same:
            raise ValueError(f"--data: {root} holds the same data as {(same or [root])[0]}; give each dataset once")
        manifests[root] = manifest
    return manifests


def evaluate_model(
    model: torch.nn.Module,
    root: str,
    manifest: Manifest,
    config: Config,
    options: EvaluateConfig,
    accelerator: Accelerator,
) -> Evaluated:
    """Features are extracted once, in float32 unless --precision says otherwise, and serve every protocol."""
    pixels = Pixels.from_config(config.data)
    splits = []
    for split in ("query", "gallery"):
        features = extract(
            model, root, manifest, split, pixels, batch_size=options.batch_size, workers=options.workers,
            device=accelerator.device, dtype=AUTOCAST_DTYPES[options.precision],
        ).features  # fmt: skip
        check_finite(features, f"{root}: {split}", lambda i, split=split: name_image(manifest, split, i))  # type: ignore[misc]
        splits.append(features)
    return rank_protocols(splits[0], splits[1], options)


def rank_protocols(query: Features, gallery: Features, options: EvaluateConfig) -> Evaluated:
    """Every protocol's result. One without a possible match is left out with a warning, unless all are."""
    results: dict[str, Result] = {}
    warnings: list[str] = []
    first_error: ValueError | None = None
    max_rank = max(options.max_rank, *options.ranks)
    for protocol in options.protocols:
        try:
            results |= evaluate_over_ranks(query, gallery, [protocol], max_rank, options.metric)
        except ValueError as error:
            first_error = first_error or error
            warnings.append(f"{protocol} is left out: {error}")
    if first_error and not results:
        raise first_error
    for asked, row in RERANKED.items():
        if not options.rerank or asked not in options.protocols or rank():  # one rank: it needs all queries at once
            continue
        try:
            results[row] = rerank.evaluate_reranked(
                query, gallery, asked, options.metric, options.rerank_k1, options.rerank_k2, options.rerank_lambda,
                max_rank,
            )  # fmt: skip
        except ValueError as error:
            warnings.append(f"{row} is left out: {error}")
    return Evaluated(query, gallery, results, warnings)
