"""Distances between features, and what every loss checks of its arguments."""

from __future__ import annotations

import torch
from torch import Tensor


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Distances (...,) between rows of a and b (..., D), from direct differences, with gradient 0 at distance 0.

    x^2 + y^2 - 2xy would lose the digits of small distances at the norms of raw ResNet features.
    """
    squared = (a - b).square().sum(dim=-1)
    nonzero = squared > 0
    return torch.where(nonzero, squared, torch.ones_like(squared)).sqrt() * nonzero


@torch.no_grad()
def find_nearest(
    anchors: Tensor, candidates: Tensor, forbidden: Tensor, farthest: bool = False
) -> tuple[Tensor, Tensor]:
    """Index of the nearest (or farthest) allowed candidate of each anchor, and whether there is one.

    anchors (..., A, D), candidates (..., N, D), forbidden (..., A, N). Mining needs no gradient, so no (A, N, D) array
    and no graph are kept; the chosen pairs' distances are then taken with `euclidean`. Here x^2 + y^2 - 2xy is safe:
    in float64 it errs by 1e-13 of the squared norm, less than direct differences in float32, at a product's cost.
    """
    middle = candidates.mean(dim=-2, keepdim=True)
    a, b = (anchors - middle).double(), (candidates - middle).double()
    squares = a.square().sum(dim=-1)[..., :, None] + b.square().sum(dim=-1)[..., None, :]
    distances = squares - 2 * a @ b.transpose(-1, -2)
    distances = distances.masked_fill(forbidden, -torch.inf if farthest else torch.inf)
    best = distances.argmax(dim=-1) if farthest else distances.argmin(dim=-1)
    return best, ~forbidden.all(dim=-1)


def as_float(tensor: Tensor) -> Tensor:
    """float32 at least: halves are widened, float64 stays (the exactness tests use it)."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def check_batch(features: Tensor, pids: Tensor) -> None:
    if features.ndim != 2 or pids.ndim != 1 or len(features) != len(pids):
        raise ValueError(
            "features must be (B, D) and pids (B,), with the same B; "
            f"got {tuple(features.shape)} and {tuple(pids.shape)}"
        )


def check_margin(margin: float) -> None:
    if not margin > 0:
        raise ValueError(f"margin = {margin} must be greater than 0")
