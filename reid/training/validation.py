"""Evaluation during training: on the test set, or on training identities that are held out for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from reid.config import Config
from reid.data.images import Pixels
from reid.data.manifest import Manifest, Split
from reid.distributed import copy_buffers_from_rank_0
from reid.evaluation.evaluator import evaluate_over_ranks, extract
from reid.metrics import Features

if TYPE_CHECKING:
    from accelerate import Accelerator


def describe_scores(scores: dict[str, float]) -> str:
    parts = [f"{name} {value:.4f}" for name, value in scores.items() if name.endswith(("/mAP", "/rank1"))]
    return ", ".join(parts)


def evaluate_test(
    config: Config, model: torch.nn.Module, manifest: Manifest, pixels: Pixels, accelerator: Accelerator
) -> dict[str, float]:
    """Image and centroid figures of query against gallery, on all ranks; the unwrapped model, as DDP would hang."""
    query, gallery = (
        extract_part(config, model, manifest, pixels, accelerator, split, None) for split in ("query", "gallery")
    )
    scores: dict[str, float] = {}
    for protocol in ("image", "centroid"):
        result = evaluate_over_ranks(query, gallery, protocol)
        scores |= {
            f"{protocol}/mAP": result.mAP,
            f"{protocol}/mINP": result.mINP,
            f"{protocol}/rank1": float(result.cmc[0]),
        }
    return scores


def evaluate_held_out(
    config: Config,
    model: torch.nn.Module,
    manifest: Manifest,
    pixels: Pixels,
    accelerator: Accelerator,
    held_out: np.ndarray,
) -> dict[str, float]:
    """Image figures of the identities that were held out of training."""
    rows = np.flatnonzero(held_out)
    query, gallery = split_queries(extract_part(config, model, manifest, pixels, accelerator, "train", rows))
    result = evaluate_over_ranks(query, gallery, "image")
    return {"val/mAP": result.mAP, "val/mINP": result.mINP, "val/rank1": float(result.cmc[0])}


def extract_part(
    config: Config,
    model: torch.nn.Module,
    manifest: Manifest,
    pixels: Pixels,
    accelerator: Accelerator,
    split: str,
    rows: np.ndarray | None,
) -> Features:
    copy_buffers_from_rank_0(model)
    return extract(
        model, config.data.root, manifest, split, pixels, batch_size=config.eval.batch_size,
        workers=config.data.workers, device=accelerator.device, rows=rows,
    )  # fmt: skip


SEED = 0  # of the choice: the same identities for every run on the same data, whatever the run's seed


def hold_out(split: Split, number: int) -> np.ndarray:
    """`number` rows of a train split, ascending, of identities that can be found. ValueError if there are too few."""
    several = np.array([len(set(cameras) - {-1}) > 1 or set(cameras) == {-1} for cameras in split.cameras], dtype=bool)
    eligible = np.flatnonzero(several & (split.images > 1) & (split.pids >= 0))
    if number > len(eligible) or number >= len(split.pids):
        raise ValueError(
            f"data.val_identities = {number}: {len(eligible)} of the {len(split.pids)} train identities have images of "
            "two cameras (or several images without a camera) and can be held out; give a smaller number"
        )
    return np.sort(np.random.default_rng(SEED).permutation(eligible)[:number])


def split_queries(features: Features) -> tuple[Features, Features]:
    """Query and gallery.

    The first image of each (identity, camera) is a query, but for the identity's last camera, whose images all stay in
    the gallery: so each query has a match. Without cameras the identity's first image is the query.
    """
    pids, camids = features.pids.cpu().numpy(), features.camids.cpu().numpy()
    pairs, first = np.unique(np.stack([pids, camids], axis=1), axis=0, return_index=True)
    last_camera = np.append(pairs[1:, 0] != pairs[:-1, 0], True)
    query = torch.zeros(len(features), dtype=torch.bool)
    query[torch.from_numpy(first[~last_camera | (pairs[:, 1] == -1)])] = True
    return features.take(_places(query)), features.take(_places(~query))


def _places(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(1)
