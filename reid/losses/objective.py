"""The weighted sum of the losses that training minimizes, and diagnostics of the centroid losses."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid.config import LossConfig
from reid.distributed import global_mean
from reid.losses.centroid import (
    Anchors,
    Centroids,
    centroid_anchors,
    centroid_triplet_of,
    gather_centroids,
    modified_centroid_triplet_of,
)
from reid.losses.distances import as_float
from reid.losses.identity import CenterLoss, cross_entropy
from reid.losses.triplet import batch_hard_triplet, quadruplet


class Objective(nn.Module):
    """The weighted sum of the losses; a weight of 0 switches a loss and its cost off.

    With `relative`, MCTL and CTL measure distances in units of the running mean distance between the centroids of the
    global batch (momentum 0.9, equal on every rank, saved with the model): one margin then fits features of any norm.

    Args:
        config: weights and parameters of the losses.
        num_classes: identities that are trained on.
        dim: D, length of a feature.
        generator: of the initial centers; default: torch's global one.
    """

    spread: Tensor

    def __init__(
        self, config: LossConfig, num_classes: int, dim: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.center = CenterLoss(num_classes, dim, config.center_lr, generator)
        self.register_buffer("spread", torch.tensor(0.0))
        self._raw_centroids: Centroids | None = None  # of this step, so that the centers need no second gather

    def forward(self, features: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute this rank's share of the objective: the mean of the shares over ranks is the global value.

        Args:
            features: (B, D), before the neck.
            logits: (B, C).
            labels: (B,) int64, in [0, C).

        Returns:
            The weighted sum, with gradient, and without gradient the losses and diagnostics by name.
        """
        config = self.config
        # Widened once, so that the gradients of the losses add up in float32.
        features, logits = as_float(features), as_float(logits)
        diagnostics: dict[str, Tensor] = {}

        @cache
        def anchors() -> Anchors:
            return self._find_anchors(features, labels, diagnostics)

        terms = {
            "cross_entropy": lambda: cross_entropy(logits, labels, config.smoothing),
            "triplet": lambda: batch_hard_triplet(
                features, labels, config.triplet_margin, config.triplet_scope, diagnostics
            ),
            "quadruplet": lambda: quadruplet(
                features, labels, config.quadruplet_margin, config.quadruplet_margin2, config.triplet_scope
            ),
            "mctl": lambda: modified_centroid_triplet_of(anchors(), config.w1, config.margin, config.w2),
            "ctl": lambda: centroid_triplet_of(anchors(), config.margin),
            "center": lambda: self.center(features, labels),
        }
        losses = {name: terms[name]() for name, weight in config.weights.items() if weight}
        total = torch.stack([config.weights[name] * loss for name, loss in losses.items()]).sum()
        diagnostics["feature_norm"] = global_mean(
            features.detach().float().norm(dim=1).sum(), torch.full((), float(len(labels)), device=labels.device)
        )
        return total, {name: loss.detach() for name, loss in losses.items()} | diagnostics

    def _find_anchors(self, features: Tensor, labels: Tensor, diagnostics: dict[str, Tensor]) -> Anchors:
        """Return the anchors of MCTL and CTL, and add to the diagnostics what they show."""
        config = self.config
        with torch.autocast(features.device.type, enabled=False):
            if config.normalize:
                features = F.normalize(features, dim=1)
            centroids = None
            if config.relative or config.reading == "paper":
                centroids = gather_centroids(features, labels)
                self._raw_centroids = None if config.normalize else centroids.detach()
            if config.relative and centroids is not None and self.training:
                self._update_spread(centroids)
            anchors = centroid_anchors(features, labels, config.reading, centroids=centroids)
        unit = self.spread.clamp(min=1e-12) if config.relative else torch.ones_like(self.spread)
        diagnostics |= diagnose(anchors, config.margin * unit, against_positive=not config.mctl)
        if config.relative:
            anchors = anchors.in_units_of(unit)
            diagnostics["centroid_spread"] = unit.clone()
        return anchors

    @torch.no_grad()
    def _update_spread(self, centroids: Centroids) -> None:
        means = centroids.means.float()
        pairs = len(means) * (len(means) - 1)
        if pairs:
            now = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist").sum() / pairs
            updated = torch.where(self.spread > 0, 0.9 * self.spread + 0.1 * now, now)
            self.spread.copy_(torch.where(now.isfinite(), updated, self.spread))  # not if features overflowed

    def update_centers(self, features: Tensor, labels: Tensor) -> None:
        """Move the centers by the batch that `forward` has just seen; once per optimizer step, on every rank."""
        if self.config.center:
            with torch.no_grad():
                self.center.update(self._raw_centroids or gather_centroids(as_float(features.detach()), labels))
        self._raw_centroids = None


@torch.no_grad()
def diagnose(anchors: Anchors, margin: Tensor, against_positive: bool = False) -> dict[str, Tensor]:
    """Describe the anchors of a step, as shares: their mean over ranks is the global value.

    Args:
        against_positive: the hinge is CTL's, d_ap + margin > d_an, not MCTL's, d_an < margin.

    Returns:
        hinge_active: fraction of anchors whose hinge is active. d_ap, d_an: mean distances. negative_entropy: entropy
        in nats of which identity is the nearest negative, among this rank's anchors; near 0, one identity is the
        nearest negative of most anchors.
    """
    gap = anchors.d_ap + margin - anchors.d_an if against_positive else margin - anchors.d_an
    weight = anchors.weight * anchors.has_negative
    weight = weight / weight.sum().clamp(min=1e-12)
    shared = (anchors.nearest[:, None] == anchors.nearest).to(weight.dtype) @ weight
    return {
        "hinge_active": anchors.mean(((gap > 0) & anchors.has_negative).to(gap.dtype)),
        "d_ap": anchors.mean(anchors.d_ap),
        "d_an": anchors.mean(anchors.d_an * anchors.has_negative),
        "negative_entropy": -(weight * shared.clamp(min=1e-12).log()).sum(),
    }
