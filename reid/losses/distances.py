"""Distances between features, and checks of the arguments of losses."""

from __future__ import annotations

import torch
from torch import Tensor


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Return the distances (...,) between rows of a and b (..., D), with gradient 0 at distance 0.

    Computed from differences: x^2 + y^2 - 2xy loses the digits of small distances at the norms of raw features.
    """
    return torch.linalg.vector_norm(a - b, dim=-1)


@torch.no_grad()
def squared_for_mining(anchors: Tensor, candidates: Tensor, start: int | None = None) -> Tensor:
    """Return squared distances (A, N) in float64 between anchors (A, D) and candidates (N, D), to choose pairs.

    Mining needs no gradient; distances of the chosen pairs are then computed by `euclidean`. Here x^2 + y^2 - 2xy is
    safe: its error in float64 is 1e-13 of the squared norm, less than that of differences in float32.

    Args:
        start: the candidate at which the anchors begin, if they are candidates themselves.
    """
    b = candidates.double()
    of_b = b.square().sum(dim=1)
    if start is None:
        a = anchors.double()
        of_a = a.square().sum(dim=1)
    else:
        a, of_a = b[start : start + len(anchors)], of_b[start : start + len(anchors)]
    return torch.addmm(of_a[:, None] + of_b, a, b.T, alpha=-2)


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
