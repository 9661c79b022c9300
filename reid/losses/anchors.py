"""Anchors of the triplet losses, with their hardest positives and negatives.

All losses of a step share one matrix of distances for mining, and one pass that computes the distances of the pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reid.losses.distances import euclidean, squared_for_mining
from reid.losses.gather import GlobalBatch


@dataclass(frozen=True)
class Anchors:
    """A rows of this rank as anchors, with the two distances that a triplet loss compares."""

    d_ap: Tensor
    """(A,) distance to the positive, with gradient."""
    d_an: Tensor
    """(A,) distance to the nearest negative, with gradient."""
    nearest: Tensor
    """(A,) int64, which candidate that negative is. Equal numbers are equal candidates; an image has its place."""
    weight: Tensor
    """(A,) weight in the mean over the anchors of all ranks (see Layout); 0 for a row that is not an anchor."""
    push_weight: Tensor
    """(A,) the same, or 0 for an anchor without a negative."""

    def in_units_of(self, unit: Tensor) -> Anchors:
        """Return the anchors with distances divided by `unit` (a scalar without gradient)."""
        return replace(self, d_ap=self.d_ap / unit, d_an=self.d_an / unit)


@dataclass(frozen=True)
class Images:
    """The N images among which triplets are mined: those of this rank or of all ranks."""

    features: Tensor
    """(N, D), with gradient."""
    identity: Tensor
    """(N,) int64."""
    weight: Tensor
    """(B,) weight of this rank's rows as anchors (see Layout)."""
    start: int = 0
    """Images before those of this rank."""


def find_anchors(batch: GlobalBatch, images: Images | None, centroids: bool) -> dict[str, Anchors]:
    """Return the anchors (B,) among `images`, if given, and among `centroids`, if asked for, by these names.

    Among images the positive is the farthest image of the same identity, the negative the nearest of another. Among
    centroids the positive is the mean of the other rows of the identity, the negative the nearest mean of another.
    """
    layout, features = batch.layout, batch.features
    tables, identities = [], []
    if images is not None:
        tables, identities = [images.features], [images.identity]
    if centroids:
        tables.append(batch.sums / layout.counts[:, None])
        identities.append(torch.arange(len(batch.sums), device=features.device))
    table, num_images = torch.cat(tables), 0 if images is None else len(images.features)
    squared = squared_for_mining(features, table, None if images is None else images.start)
    chosen = _mine(squared, layout.identity[:, None] == torch.cat(identities), num_images)
    if centroids:
        chosen.append(layout.identity + num_images)
    partners = table[torch.cat(chosen)].unflatten(0, (len(chosen), len(features)))
    distances = euclidean(features, partners).unbind()
    anchors = {}
    if images is not None:
        anchors["images"] = Anchors(distances[0], distances[1], chosen[1], images.weight, images.weight)
    if centroids:
        d_an, to_own_mean = distances[-2:]
        d_ap = layout.leave_out * to_own_mean
        anchors["centroids"] = Anchors(d_ap, d_an, chosen[-2], layout.anchor_weight, layout.push_weight)
    return anchors


@torch.no_grad()
def _mine(squared: Tensor, same: Tensor, num_images: int) -> list[Tensor]:
    """Return the candidate (B,) of each row for three purposes, of which those without candidates are left out.

    They are the farthest image of the same identity, the nearest image of another, and the nearest centroid of
    another. A row may be its own farthest image, if all others are at distance 0, which is then its distance.

    Args:
        squared: (B, N) squared distances to candidates: `num_images` images, then centroids.
        same: (B, N) bool, whether a candidate is of the row's identity.
    """
    others = squared.masked_fill(same, torch.inf)
    chosen = []
    if num_images:
        farthest = torch.where(same[:, :num_images], squared[:, :num_images], -torch.inf).argmax(dim=1)
        chosen = [farthest, others[:, :num_images].argmin(dim=1)]
    if num_images < squared.shape[1]:
        chosen.append(others[:, num_images:].argmin(dim=1) + num_images)
    return chosen
