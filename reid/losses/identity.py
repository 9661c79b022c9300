"""Losses of one feature and its identity: cross-entropy and center loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid.config import LossConfig
from reid.distributed import global_mean
from reid.losses.centroid import Centroids
from reid.losses.distances import as_float


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = LossConfig.smoothing) -> Tensor:
    """Cross-entropy with label smoothing (Szegedy et al., 2016): targets (1 - s) * onehot + s / C.

    Args:
        logits: (B, C).
        labels: (B,) int64, in [0, C).

    Returns:
        This rank's share of the mean over the images of all ranks.
    """
    with torch.autocast(logits.device.type, enabled=False):
        total = F.cross_entropy(as_float(logits), labels, label_smoothing=smoothing, reduction="sum")
        return global_mean(total, torch.full((), float(len(labels)), device=labels.device))


class CenterLoss(nn.Module):
    """Center loss (Wen et al., ECCV 2016): L = sum_i |f_i - c_{y_i}|^2 / B, with one learned center per identity.

    The centers (C, D) are a float32 buffer. `update` makes a step of SGD on the *unweighted* loss in closed form, from
    sums over all ranks, so the centers are equal on every rank and independent of a gradient scaler.
    """

    centers: Tensor

    def __init__(
        self, num_classes: int, dim: int, lr: float = LossConfig.center_lr, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.lr = lr
        self.register_buffer("centers", torch.randn(num_classes, dim, generator=generator))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return this rank's share of the loss. features (B, D); labels (B,) in [0, C)."""
        with torch.autocast(features.device.type, enabled=False):
            gaps = as_float(features) - self.centers[labels]
            return global_mean(gaps.square().sum(), torch.full((), float(len(labels)), device=labels.device))

    @torch.no_grad()
    def update(self, centroids: Centroids) -> None:
        """Make the step c_y -= lr * 2 * (n_y c_y - S_y) / B, with the sums S and counts n of the global batch.

        A center that would become infinite or NaN, because features overflowed, does not change.
        """
        rows = self.centers[centroids.pids]
        sums, counts = centroids.sums.detach().to(rows.dtype), centroids.counts.to(rows.dtype)
        gradient = 2 * (counts[:, None] * rows - sums) / counts.sum()
        moved = rows - self.lr * gradient
        self.centers[centroids.pids] = torch.where(moved.isfinite().all(dim=1, keepdim=True), moved, rows)
