"""The centroid losses: the modified centroid triplet loss (MCTL) and the centroid triplet loss (CTL)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reid.losses.anchors import Anchors, find_anchors
from reid.losses.distances import check_margin, euclidean, squared_for_mining
from reid.losses.gather import GlobalBatch, find_global_batch

READINGS = ("paper", "rounds")


def modified_centroid_triplet(
    features: Tensor,
    pids: Tensor,
    w1: float = 0.1,
    margin: float = 0.5,
    reading: str = "paper",
    space: str = "raw",
    w2: float | None = None,
) -> Tensor:
    """Modified centroid triplet loss (MCTL; Alnissany & Dayoub, J. Big Data 10:74, 2023).

        L = mean over anchors A of  w1 * d(A, c_p)^2 + w2 * max(0, margin - min_N d(A, c_N))^2

    c_p is the mean of the anchor's identity without the anchor, c_N the mean of another identity, both over the global
    batch. An identity with one image in the global batch gives no anchor, but is a negative. With one identity in the
    batch only the first term is left. The host waits for the device to find the identities (see `find_layout`).

    Args:
        features: (B, D), this rank's: before the neck, as in the paper; or after it with `space` unit, which training
            calls the space neck.
        pids: (B,) int64.
        w1: weight of the first term, the pull, in [0, 1]; default: the paper's.
        margin: greater than 0, in units of distance; default: that of the code which the paper builds on.
        reading: paper, or rounds: the same two terms in the K rounds of `centroid_triplet`.
        space: raw features, or unit: features divided by their norms.
        w2: weight of the second term, the push; default: 1 - w1.

    Returns:
        A scalar, this rank's share.

    Raises:
        ValueError: w1, w2 or margin is out of range, reading or space is unknown, or the shapes do not fit.
    """
    return modified_centroid_triplet_of(centroid_anchors(features, pids, reading, space), w1, margin, w2)


def modified_centroid_triplet_of(anchors: Anchors, w1: float, margin: float, w2: float | None = None) -> Tensor:
    """Compute MCTL from anchors; see `modified_centroid_triplet`."""
    if not 0.0 <= w1 <= 1.0:
        raise ValueError(f"w1 = {w1} lies outside [0, 1]; the paper uses 0.1")
    if w2 is not None and not w2 >= 0:
        raise ValueError(f"w2 = {w2} must not be below 0; without it, it is 1 - w1")
    check_margin(margin)
    pull = anchors.weight.dot(anchors.d_ap.square())
    push = anchors.push_weight.dot(F.relu(margin - anchors.d_an).square())
    return torch.add(w1 * pull, push, alpha=1.0 - w1 if w2 is None else w2)


def centroid_triplet(
    features: Tensor, pids: Tensor, margin: float = 0.5, reading: str = "paper", space: str = "raw"
) -> Tensor:
    """Centroid triplet loss (CTL; Wieczorek, Rychalska & Dąbrowski, ICONIP 2021).

        L = mean over anchors A of  max(0, d(A, c_p) - min_N d(A, c_N) + margin)

    Arguments, result and errors as for `modified_centroid_triplet`. There are two readings:
        paper: anchors are the samples, c_p leaves the anchor out, c_N are full means.
        rounds: as in the authors' code. In round i the query of each identity is its i-th image, and its centroid is
            the mean of its other images. The loss is batch-hard triplet with queries and centroids as anchors,
            averaged over the anchors of a round, then over rounds.
    """
    return centroid_triplet_of(centroid_anchors(features, pids, reading, space), margin)


def centroid_triplet_of(anchors: Anchors, margin: float) -> Tensor:
    """Compute CTL from anchors; see `centroid_triplet`."""
    check_margin(margin)
    return anchors.push_weight.dot(F.relu(anchors.d_ap - anchors.d_an + margin))


def centroid_anchors(features: Tensor, pids: Tensor, reading: str = "paper", space: str = "raw") -> Anchors:
    """Return this rank's anchors for CTL and MCTL. Arguments as for `modified_centroid_triplet`."""
    if reading not in READINGS:
        raise ValueError(f"reading = {reading!r}; choose one of {', '.join(READINGS)}")
    with torch.autocast(features.device.type, enabled=False):
        if reading == "rounds":
            return anchors_in_rounds(find_global_batch(features, pids, space, shares_images=True), space)
        return find_anchors(find_global_batch(features, pids, space), centroids=space)["centroids"]


def anchors_in_rounds(batch: GlobalBatch, space: str) -> Anchors:
    """Return the anchors of the reading `rounds`: this rank's queries, then their centroids.

    All K rounds are computed at once: of the N queries and N centroids of all ranks, only those of one round are
    compared with each other.
    """
    layout, images, size = batch.layout, batch.images[space], len(batch.features[space])
    identity, round_of = layout.row_identity.repeat(2), layout.row_round.repeat(2)
    counts = layout.counts[layout.row_identity]
    has_others = counts >= 2
    others = batch.sums[space][layout.row_identity] - images * has_others[:, None]
    entries = torch.cat([images, others / (counts - 1).clamp(min=1)[:, None]])

    mine = torch.arange(layout.start, layout.start + size, device=images.device)
    mine = torch.cat([mine, mine + len(images)])
    anchors = entries[mine]
    allowed = (round_of[mine][:, None] == round_of) & (identity[mine][:, None] != identity)
    allowed &= torch.cat([torch.ones_like(has_others), has_others])
    nearest = squared_for_mining(anchors, entries).masked_fill(~allowed, torch.inf).argmin(dim=1)
    weight = layout.round_weight.repeat(2)
    return Anchors(
        d_ap=euclidean(anchors[:size], anchors[size:]).repeat(2),
        d_an=euclidean(anchors, entries[nearest]),
        nearest=identity[nearest],
        weight=weight,
        push_weight=weight * allowed.any(dim=1),
    )
