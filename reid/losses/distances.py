"""Distances between features, and checks of the arguments of losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALL = 1e-30  # of a distance; smaller than any between float32 numbers near 1


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Return the distances (...,) between rows of a and b (..., D), with gradient 0 at distance 0.

    Computed from differences: x^2 + y^2 - 2xy loses the digits of small distances at the norms of raw features.
    """
    return torch.linalg.vector_norm(a - b, dim=-1)


def distances_of_pairs(rows: Tensor, chosen: Tensor, spaces: int = 1) -> Tensor:
    """Return the distances (k, B) between anchors and chosen rows, as `euclidean` does.

    Args:
        rows: (R, D), which begin with the anchors: B rows in each of the Z spaces.
        chosen: (k, B) int64, places of rows; the first k / Z are for the anchors in the first space, and so on.
        spaces: Z.
    """
    distances: Tensor = _DistancesOfPairs.apply(rows, chosen, spaces)
    return distances


class _DistancesOfPairs(torch.autograd.Function):
    """Written out, because autograd launches twice as many kernels backward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, chosen: Tensor, spaces: int) -> Tensor:
        size = chosen.shape[1]
        anchors = rows[: spaces * size].unflatten(0, (spaces, 1, size))
        differences = anchors - rows[chosen].unflatten(0, (spaces, -1))
        distances = torch.linalg.vector_norm(differences, dim=-1)
        ctx.save_for_backward(differences, distances, chosen)
        ctx.num_rows = len(rows)
        return distances.flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        differences, distances, chosen = ctx.saved_tensors
        # A difference of 0 has gradient 0, by whatever it is divided.
        directions = differences * (gradient.view_as(distances) / distances.clamp(min=SMALL))[..., None]
        of_rows = directions.new_zeros(ctx.num_rows, directions.shape[-1])
        of_rows.index_add_(0, chosen.flatten(), directions.flatten(0, 2), alpha=-1)
        of_anchors = directions.sum(dim=1).flatten(0, 1)
        of_rows[: len(of_anchors)].add_(of_anchors)
        return of_rows, None, None


def unit_vectors(rows: Tensor) -> Tensor:
    """Return rows (N, D) divided by their norms, with gradient; a row of zeros stays."""
    unit: Tensor = _UnitVectors.apply(rows)
    return unit


class _UnitVectors(torch.autograd.Function):
    """Written out, because autograd launches twice as many kernels."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_(min=1e-12)
        unit = rows / norms
        ctx.save_for_backward(unit, norms)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        unit, norms = ctx.saved_tensors
        along = (gradient * unit).sum(dim=1, keepdim=True)
        return torch.addcmul(gradient, along, unit, value=-1) / norms


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
