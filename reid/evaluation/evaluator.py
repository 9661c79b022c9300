"""Extraction and ranking of features over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reid.config import EvaluateConfig
from reid.data.eval_loader import EvalLoader
from reid.data.images import Pixels
from reid.data.manifest import Manifest
from reid.distributed import gather_objects, gather_padded, gather_sizes, rank, world_size
from reid.evaluation.dataset_report import Evaluation
from reid.evaluation.verification import identify, verify
from reid.metrics.features import Features
from reid.metrics.protocols import PROTOCOLS
from reid.metrics.rerank import Ranks, Reranked
from reid.metrics.retrieval import Result, evaluate, evaluate_search, merge
from reid.model.features import compute_features
from reid.precision import forward_pass


@torch.no_grad()
def extract(
    model: nn.Module,
    root: str | Path,
    manifest: Manifest,
    split: str,
    pixels: Pixels,
    *,
    batch_size: int,
    workers: int | str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    rows: np.ndarray | None = None,
    flip: bool = False,
) -> Features:
    """Extract the features (after the neck, not normalized) of a split; ranks share the shards.

    Args:
        model: the unwrapped module, because a DDP wrapper would wait for the other ranks.
        dtype: autocast of the forward pass, if not float32.
        rows: identities to extract; None = all.
        flip: see `compute_features`.

    Returns:
        Float32 features of every image but junk, each exactly once, in storage order; equal on every rank.
    """
    part = manifest.split(split)
    loader = EvalLoader(root, part, list(range(len(part.shards)))[rank() :: world_size()], pixels, batch_size, rows)
    was_training = model.training
    model.eval()
    embeddings, labels = [], [torch.empty(0, 3, dtype=torch.int64)]
    for batch in loader.batches(workers):
        with forward_pass(device, dtype):
            images = pixels.normalization.apply(batch.images.to(device, non_blocking=True))
            embeddings.append(compute_features(model, images, flip))
        labels.append(torch.stack([batch.index, batch.pids, batch.camids], dim=1))
    model.train(was_training)
    width = max(gather_sizes(embeddings[0].shape[1] if embeddings else 0, device))
    local = torch.cat(embeddings) if embeddings else torch.empty(0, width, device=device)
    sizes = gather_sizes(len(local), device)
    all_labels, features = gather_padded(torch.cat(labels).to(device), sizes), gather_padded(local, sizes)
    order = torch.argsort(all_labels[:, 0])
    index, pids, camids = all_labels[order].T.contiguous()
    expected = torch.from_numpy(np.flatnonzero(np.repeat(loader.wanted, part.images)))
    if not torch.equal(index.cpu(), expected):
        raise ValueError(f"{root}: {len(index)} {split} images were read, the manifest lists {len(expected)}")
    distractors = None if manifest.distractor_pid is None else pids == manifest.distractor_pid
    return Features(features[order], pids, camids, distractors)


def evaluate_over_ranks(
    query: Features, gallery: Features, protocol: str, metric: str = "cosine", max_rank: int = 50
) -> Result:
    """Do `evaluate`; each rank ranks a slice of the queries, and the result is equal on every rank."""
    part = query.take(torch.arange(len(query)).tensor_split(world_size())[rank()])
    return merge(gather_objects(evaluate(part, gallery, protocol, metric, max_rank, partial=True)))


def gather_tensors(local: Tensor) -> Tensor:
    """Concatenate a tensor (N, ...) of every rank in rank order; N may differ between ranks."""
    return gather_padded(local, gather_sizes(len(local), local.device))


def rank_protocols(query: Features, gallery: Features, options: EvaluateConfig) -> Evaluation:
    """Evaluate the protocols of the options, and re-rank. Ranks share the work.

    A protocol without a possible match is left out with a warning. Raises ValueError if that leaves none.
    """
    results: dict[str, Result] = {}
    errors: dict[str, ValueError] = {}
    max_rank = max(options.max_rank, *options.ranks)
    for name in options.protocols:
        try:
            results[name] = evaluate_over_ranks(query, gallery, name, options.metric, max_rank)
        except ValueError as error:
            errors[name] = error
    if not results:
        raise next(iter(errors.values()))
    can_rerank = [row for row in PROTOCOLS.values() if row.can_rerank and row.name in options.protocols]
    knobs = options.metric, options.rerank_k1, options.rerank_k2, options.rerank_lambda
    for row in can_rerank if options.rerank else []:
        try:
            search = Reranked(query, gallery, row.name, *knobs, Ranks(rank(), world_size(), gather_tensors))
            results[row.reranked_name] = merge(gather_objects(evaluate_search(search, max_rank)))
        except ValueError as error:
            errors[row.reranked_name] = error
    return Evaluation(query, gallery, results, [f"{name} is left out: {error}" for name, error in errors.items()])


def add_thresholds(evaluation: Evaluation, options: EvaluateConfig) -> Evaluation:
    """Measure the thresholds that the options ask for; one that cannot be measured is a warning."""
    query, gallery = evaluation.query, evaluation.gallery
    measures: dict[str, Callable[[], dict[str, Any]]] = {}
    if options.verification:
        measures["verification"] = lambda: verify(query, gallery)
    if (share := options.open_set) is not None:
        measures["open_set"] = lambda: identify(query, gallery, share)
    thresholds, warnings = {}, list(evaluation.warnings)
    for name, measure in measures.items():
        try:
            thresholds[name] = measure()
        except ValueError as error:
            warnings.append(f"{name} is left out: {error}")
    return replace(evaluation, thresholds=thresholds, warnings=warnings)
