"""Distances between features, and checks of the arguments of losses."""

from __future__ import annotations

import torch
from torch import Tensor


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Return the distances (...,) between rows of a and b (..., D), with gradient 0 at distance 0.

    Computed from differences: x^2 + y^2 - 2xy loses the digits of small distances at the norms of raw features.
    """
    squared = (a - b).square().sum(dim=-1)
    nonzero = squared > 0
    return torch.where(nonzero, squared, torch.ones_like(squared)).sqrt() * nonzero


@torch.no_grad()
def find_nearest(
    anchors: Tensor, candidates: Tensor, forbidden: Tensor, farthest: bool = False
) -> tuple[Tensor, Tensor]:
    """Find the nearest (or farthest) allowed candidate of each anchor.

    Mining needs no gradient; distances of the chosen pairs are then computed by `euclidean`. Here x^2 + y^2 - 2xy is
    safe: its error in float64 is 1e-13 of the squared norm, less than that of differences in float32.

    Args:
        anchors: (..., A, D).
        candidates: (..., N, D).
        forbidden: (..., A, N) bool.

    Returns:
        The index (..., A) of the candidate, and whether there is one (..., A).
    """
    middle = candidates.mean(dim=-2, keepdim=True)
    a, b = (anchors - middle).double(), (candidates - middle).double()
    squares = a.square().sum(dim=-1)[..., :, None] + b.square().sum(dim=-1)[..., None, :]
    distances = squares - 2 * a @ b.transpose(-1, -2)
    distances = distances.masked_fill(forbidden, -torch.inf if farthest else torch.inf)
    best = distances.argmax(dim=-1) if farthest else distances.argmin(dim=-1)
    return best, ~forbidden.all(dim=-1)


def as_float(tensor: Tensor) -> Tensor:
    """Return float16 and bfloat16 tensors as float32, others unchanged (float64 is used by exactness tests)."""
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
