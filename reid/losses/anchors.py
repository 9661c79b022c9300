"""Anchors of the triplet losses, with their hardest positives and negatives.

All losses of a step share one matrix of distances for mining, and one pass that computes the distances of the pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reid.losses.distances import distances_of_pairs, squared_for_mining
from reid.losses.gather import GlobalBatch


@dataclass(frozen=True)
class Anchors:
    """The A anchors of this rank, with the two distances that a triplet loss compares."""

    d_ap: Tensor
    """(A,) distance to the positive, with gradient."""
    d_an: Tensor
    """(A,) distance to the nearest negative, with gradient."""
    nearest: Tensor
    """(A,) int64, that negative: its place among the images, or the identity of a centroid."""
    weight: Tensor
    """(A,) weight in the mean over the anchors of all ranks (see `Layout`); 0 for a row that is not an anchor."""
    push_weight: Tensor
    """(A,) the same, or 0 for an anchor without a negative."""


@dataclass(frozen=True)
class Images:
    """The N images among which triplets are mined: those of this rank or of all ranks."""

    space: str
    """Name of the space of `features`."""
    features: Tensor
    """(N, D), with gradient."""
    identity: Tensor
    """(N,) int64."""
    weight: Tensor
    """(B,) weight of this rank's rows as anchors (see `Layout`)."""
    is_local: bool
    """Whether the images are this rank's B rows, and N = B."""
    virtual_rank: Tensor | None = None
    """(B,) int64, virtual rank of each local image, which is compared with images of the same; None if there is one."""

    def mask_pairs(self, identity: Tensor) -> tuple[Tensor, Tensor]:
        """Return two masks (B, N) for anchors of `identity` (B,): possible positives, and impossible negatives."""
        same = identity[:, None] == self.identity
        if self.virtual_rank is None:
            return same, same
        together = self.virtual_rank[:, None] == self.virtual_rank
        return same & together, same | ~together


def find_anchors(batch: GlobalBatch, images: Images | None = None, centroids: str | None = None) -> dict[str, Anchors]:
    """Return this rank's rows as anchors, A = B, of losses on `images` and of losses on `centroids`, by these names.

    Of images, the positive is the farthest image of the same identity, the negative the nearest of another. Of
    centroids, the positive is the mean of the other rows of the identity, the negative the nearest mean of another.

    Args:
        batch: the global batch.
        images: default: no anchors among images.
        centroids: the space in which anchors and centroids are compared; default: no anchors among centroids.
    """
    layout = batch.layout
    spaces = list(dict.fromkeys(space for space in (images and images.space, centroids) if space))
    size = len(layout.identity)
    table = [batch.features[space] for space in spaces]  # the anchors: B rows in each space
    if images is not None and not images.is_local:
        table.append(images.features)
    if centroids:
        table.append(batch.sums[centroids] / layout.counts[:, None])
    rows, end = torch.cat(table), size * len(spaces)
    squared = squared_for_mining(rows[:end], rows, start=0)
    chosen, anchors = [], {}
    if images is not None:
        start = 0 if images.is_local else end
        inside = squared[:size, start : start + len(images.features)]
        farthest, nearest_image = _mine_images(inside, *images.mask_pairs(layout.identity))
        chosen += [farthest + start, nearest_image + start] if start else [farthest, nearest_image]
    if centroids:
        start = len(rows) - len(layout.counts)
        nearest_centroid = _mine_centroids(squared[end - size :, start:], layout.identity)
        chosen += [nearest_centroid + start, layout.identity + start]
    distances = distances_of_pairs(rows, torch.stack(chosen), len(spaces)).unbind()
    if images is not None:
        anchors["images"] = Anchors(distances[0], distances[1], nearest_image, images.weight, images.weight)
    if centroids:
        d_ap = layout.leave_out * distances[-1]
        anchors["centroids"] = Anchors(d_ap, distances[-2], nearest_centroid, layout.anchor_weight, layout.push_weight)
    return anchors


@torch.no_grad()
def _mine_images(squared: Tensor, positive: Tensor, no_negative: Tensor) -> tuple[Tensor, Tensor]:
    """Return the farthest image (B,) of the same identity, and the nearest image (B,) of another.

    A row may be its own farthest image, if all others are at distance 0, which is then its distance.

    Args:
        squared: (B, N) squared distances.
        positive: (B, N) bool, whether an image may be the farthest.
        no_negative: (B, N) bool, whether an image may not be the nearest.
    """
    farthest = torch.where(positive, squared, -torch.inf).argmax(dim=1)
    return farthest, squared.masked_fill(no_negative, torch.inf).argmin(dim=1)


@torch.no_grad()
def _mine_centroids(squared: Tensor, identity: Tensor) -> Tensor:
    """Return the nearest centroid (B,) of another identity. squared: (B, C) squared distances; identity: (B,)."""
    return squared.scatter(1, identity[:, None], torch.inf).argmin(dim=1)
