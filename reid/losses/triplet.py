"""Batch-hard triplet and quadruplet losses, mined in the batch of one virtual rank or of all ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reid.config import LossConfig
from reid.losses.anchors import Anchors, Images, find_anchors
from reid.losses.distances import check_margin, euclidean, squared_for_mining
from reid.losses.gather import GlobalBatch, find_global_batch

SCOPES = ("local", "global")


def batch_hard_triplet(features: Tensor, pids: Tensor, margin: float | None = 0.3, scope: str = "local") -> Tensor:
    """Batch-hard triplet loss (Hermans, Beyer & Leibe, 2017).

        L = mean over anchors of  max(0, max_p d(a, p) - min_n d(a, n) + margin);  margin None: softplus(d_ap - d_an)

    Rows without a positive or without a negative are not anchors; the mean is over the anchors of all ranks. The host
    waits for the device to find the identities (see `find_layout`).

    Args:
        features: (B, D).
        pids: (B,) int64.
        margin: greater than 0, or None for the soft margin.
        scope: local mines in this rank's batch, global in that of all ranks.

    Returns:
        A scalar, this rank's share.

    Raises:
        ValueError: margin is out of range, scope is unknown, or the shapes do not fit.
    """
    with torch.autocast(features.device.type, enabled=False):
        batch = find_global_batch(features, pids, shares_images=scope == "global")
        anchors = find_anchors(batch, images_in_scope(batch, "raw", scope))["images"]
        return batch_hard_triplet_of(anchors, margin)


def batch_hard_triplet_of(anchors: Anchors, margin: float | None) -> Tensor:
    """Compute the batch-hard triplet loss from anchors; see `batch_hard_triplet`."""
    gap = anchors.d_ap - anchors.d_an
    if margin is None:
        return anchors.weight.dot(F.softplus(gap))
    check_margin(margin)
    return anchors.weight.dot(F.relu(gap + margin))


def quadruplet(
    features: Tensor,
    pids: Tensor,
    margin: float = 0.5,
    margin2: float = LossConfig.quadruplet_margin2,
    scope: str = "local",
) -> Tensor:
    """Quadruplet loss (Chen et al., CVPR 2017) in batch-hard form.

        L = mean over anchors of  max(0, d(a, p) - d(a, n1) + margin) + max(0, d(a, p) - d(n1, n2) + margin2)

    p is the farthest positive of the anchor, n1 its nearest negative, and n2 the image of a third identity that is
    nearest to n1. margin2 < margin keeps the second term, which does not involve the anchor's negatives, the weaker
    one. With two identities in the batch there is no second term. Other arguments, result and errors as for
    `batch_hard_triplet`.
    """
    with torch.autocast(features.device.type, enabled=False):
        batch = find_global_batch(features, pids, shares_images=scope == "global")
        images = images_in_scope(batch, "raw", scope)
        anchors = find_anchors(batch, images)["images"]
        return quadruplet_of(anchors, images, batch.layout.identity, margin, margin2)


def quadruplet_of(anchors: Anchors, images: Images, identity: Tensor, margin: float, margin2: float) -> Tensor:
    """Compute the quadruplet loss from anchors among `images`; see `quadruplet`. identity: (B,), of the anchors."""
    check_margin(margin)
    if not 0 < margin2 < margin:
        raise ValueError(f"margin2 = {margin2} must lie between 0 and margin = {margin}")
    n1 = images.features[anchors.nearest]
    no_third = images.mask_pairs(identity)[1] | images.mask_pairs(images.identity[anchors.nearest])[1]
    n2 = squared_for_mining(n1, images.features).masked_fill(no_third, torch.inf).argmin(dim=1)
    second = F.relu(anchors.d_ap - euclidean(n1, images.features[n2]) + margin2) * (~no_third).any(dim=1)
    return anchors.weight.dot(F.relu(anchors.d_ap - anchors.d_an + margin) + second)


def images_in_scope(batch: GlobalBatch, space: str, scope: str) -> Images:
    """Return the images among which triplets are mined: local, those of a virtual rank; global, those of all ranks."""
    layout = batch.layout
    if scope == "global":
        return Images(space, batch.images[space], layout.row_identity, layout.push_weight, is_local=False)
    if scope != "local":
        raise ValueError(f"scope = {scope!r}; choose one of {', '.join(SCOPES)}")
    features, virtual_rank = batch.features[space], layout.virtual_rank
    return Images(space, features, layout.identity, layout.triplet_weight, is_local=True, virtual_rank=virtual_rank)
