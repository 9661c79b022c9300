"""The weighted sum of the losses that training minimises, and what it sees on the way."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    """The weighted sum of the losses; a weight of 0 switches a loss off (and its cost).

    total = cross_entropy * CE + triplet * T + quadruplet * Q + mctl * MCTL + ctl * CTL + center * C

    With `relative`, MCTL and CTL measure distances in units of the running mean distance between the centroids of the
    global batch (momentum 0.9, equal on every rank, saved with the model): one margin then fits features of any norm.
    """

    spread: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        cross_entropy_weight: float = 1.0,
        smoothing: float = 0.1,
        triplet_weight: float = 1.0,
        triplet_margin: float | None = 0.3,
        triplet_scope: str = "local",
        quadruplet_weight: float = 0.0,
        quadruplet_margin2: float = 0.25,
        mctl_weight: float = 1.0,
        ctl_weight: float = 0.0,
        w1: float = 0.1,
        w2: float | None = None,
        margin: float = 0.5,
        reading: str = "paper",
        normalize: bool = False,
        relative: bool = False,
        center_weight: float = 5e-4,
        center_lr: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.weights = {
            "cross_entropy": cross_entropy_weight,
            "triplet": triplet_weight,
            "quadruplet": quadruplet_weight,
            "mctl": mctl_weight,
            "ctl": ctl_weight,
            "center": center_weight,
        }
        self.smoothing, self.triplet_margin, self.triplet_scope = smoothing, triplet_margin, triplet_scope
        self.quadruplet_margin2 = quadruplet_margin2
        self.w1, self.w2, self.margin, self.reading = w1, w2, margin, reading
        self.normalize, self.relative = normalize, relative
        self.center = CenterLoss(num_classes, dim, center_lr, generator)
        self.register_buffer("spread", torch.tensor(0.0))
        self._raw_centroids: Centroids | None = None  # of this step, so that the centers need no second gather

    def forward(self, features: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """features (B, D) before the neck, logits (B, C), labels (B,): the total and the terms and diagnostics.

        All are shares: their mean over ranks is the value for the global batch. The terms carry no gradient.
        """
        # Widened once, so that the gradients of the terms add up in float32.
        features, logits = as_float(features), as_float(logits)
        losses: dict[str, Tensor] = {}
        eyes: dict[str, Tensor] = {}
        if self.weights["cross_entropy"]:
            losses["cross_entropy"] = cross_entropy(logits, labels, self.smoothing)
        if self.weights["triplet"]:
            losses["triplet"] = batch_hard_triplet(features, labels, self.triplet_margin, self.triplet_scope)
        if self.weights["quadruplet"]:
            losses["quadruplet"] = quadruplet(
                features, labels, self.triplet_margin or 0.5, self.quadruplet_margin2, self.triplet_scope
            )
        if self.weights["mctl"] or self.weights["ctl"]:
            anchors = self._anchors(features, labels)
            unit = self.spread.clamp(min=1e-12) if self.relative else torch.ones_like(self.spread)
            eyes = diagnose(anchors, self.margin * unit, against_positive=not self.weights["mctl"])
            if self.relative:
                anchors = anchors.in_units_of(unit)
                eyes["centroid_spread"] = unit.clone()
            if self.weights["mctl"]:
                losses["mctl"] = modified_centroid_triplet_of(anchors, self.w1, self.margin, self.w2)
            if self.weights["ctl"]:
                losses["ctl"] = centroid_triplet_of(anchors, self.margin)
        if self.weights["center"]:
            losses["center"] = self.center(features, labels)
        if not losses:
            raise ValueError(
                "every loss weight is 0; give one of loss.{cross_entropy,triplet,quadruplet,mctl,ctl,center}"
            )
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        eyes["feature_norm"] = global_mean(
            features.detach().float().norm(dim=1).sum(), torch.full((), float(len(labels)), device=labels.device)
        )
        return total, {name: loss.detach() for name, loss in losses.items()} | eyes

    def _anchors(self, features: Tensor, labels: Tensor) -> Anchors:
        """The anchors of MCTL and CTL; with `relative` the spread follows the centroids on the way."""
        with torch.autocast(features.device.type, enabled=False):
            features = as_float(features)
            if self.normalize:
                features = F.normalize(features, dim=1)
            centroids = None
            if self.relative or self.reading == "paper":
                centroids = gather_centroids(features, labels)
                self._raw_centroids = None if self.normalize else centroids.detach()
            if self.relative and centroids is not None and self.training:
                self._follow_spread(centroids)
            return centroid_anchors(features, labels, self.reading, centroids=centroids)

    @torch.no_grad()
    def _follow_spread(self, centroids: Centroids) -> None:
        means = centroids.means.float()
        pairs = len(means) * (len(means) - 1)
        if pairs:
            now = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist").sum() / pairs
            followed = torch.where(self.spread > 0, 0.9 * self.spread + 0.1 * now, now)
            self.spread.copy_(torch.where(now.isfinite(), followed, self.spread))  # not if features overflowed

    def update_centers(self, features: Tensor, labels: Tensor) -> None:
        """Move the centers by the batch that `forward` has just seen; once per optimizer step, on every rank."""
        if self.weights["center"]:
            with torch.no_grad():
                self.center.update(self._raw_centroids or gather_centroids(as_float(features.detach()), labels))
        self._raw_centroids = None


@torch.no_grad()
def diagnose(anchors: Anchors, margin: Tensor, against_positive: bool = False) -> dict[str, Tensor]:
    """What the centroid losses see in this step, on the device, as shares (their mean over ranks is the global value).

    hinge_active: share of anchors whose hinge is active, MCTL's (d_an < margin) or, `against_positive`, CTL's
    (d_ap + margin > d_an). d_ap, d_an: mean distances. negative_entropy: entropy in nats of which identity is the
    nearest negative, among this rank's anchors; near 0 one identity attracts everybody.
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
