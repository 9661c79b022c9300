"""The centroid losses: the modified centroid triplet loss (MCTL) and the centroid triplet loss (CTL)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from reid.config import LossConfig
from reid.distributed import gather_padded, gather_sizes, rank, world_size
from reid.losses.distances import as_float, check_batch, check_margin, euclidean, find_nearest


@dataclass(frozen=True)
class Centroids:
    """The identities of a global batch, sorted by pid and equal on every rank."""

    sums: Tensor
    """(C, D), with gradient to the features of all ranks."""
    counts: Tensor
    """(C,), of the dtype of the sums."""
    pids: Tensor
    """(C,) int64."""

    @property
    def means(self) -> Tensor:
        """Full centroids (C, D)."""
        return self.sums / self.counts[:, None]

    def detach(self) -> Centroids:
        return Centroids(self.sums.detach(), self.counts, self.pids)

    def index(self, pids: Tensor) -> Tensor:
        """Return the row (N,) of each of `pids` (N,), all of which must be present."""
        return torch.searchsorted(self.pids, pids)

    def leave_one_out(self, features: Tensor, rows: Tensor) -> Tensor:
        """Return for each feature (N, D) the centroid (N, D) of its identity, `rows` (N,), without the feature.

        An identity with one image has no such centroid: its row holds the feature (finite, so that a mask of zeros
        keeps gradients at zero), and must be masked by `counts >= 2`.
        """
        others = self.counts[rows] - 1
        return (self.sums[rows] - features * (others > 0)[:, None]) / others.clamp(min=1)[:, None]


def sum_by_pid(features: Tensor, pids: Tensor, counts: Tensor | None = None) -> Centroids:
    """Sum features (N, D) per identity on this rank, with gradient.

    Args:
        pids: (N,) int64, any order.
        counts: (N,) number of features in each row, if rows are sums; default: 1.
    """
    unique, rows = torch.unique(pids, return_inverse=True)
    if counts is None:
        counts = features.new_ones(len(pids))
    sums = features.new_zeros((len(unique), features.shape[1])).index_add(0, rows, features)
    totals = features.new_zeros(len(unique)).index_add(0, rows, counts.to(features.dtype))
    return Centroids(sums, totals, unique)


def gather_centroids(features: Tensor, pids: Tensor) -> Centroids:
    """Sum features per identity over all ranks, with gradient.

    Args:
        features: (B, D) float, this rank's; B may differ between ranks.
        pids: (B,) int64, any order, any number of rows per identity.

    Returns:
        Centroids of the global batch. An identity that lies on several ranks is merged. Costs one all-gather of P·D
        floats and two of O(P), with P the largest number of identities on a rank, and backward one reduce-scatter.
    """
    local = sum_by_pid(features, pids)
    sizes = gather_sizes(len(local.pids), features.device)
    if len(sizes) == 1:
        return local
    keys = gather_padded(torch.stack([local.pids, local.counts.long()], dim=1), sizes)
    sums = gather_padded(local.sums, sizes)
    return sum_by_pid(sums, keys[:, 0], counts=keys[:, 1])


READINGS = ("paper", "rounds")


@dataclass(frozen=True)
class Anchors:
    """This rank's anchors with the two distances that the centroid losses use."""

    d_ap: Tensor
    """(A,) distance to the positive centroid, with gradient."""
    d_an: Tensor
    """(A,) distance to the nearest negative centroid, with gradient."""
    has_negative: Tensor
    """(A,) bool."""
    nearest: Tensor
    """(A,) int64, identity of the global batch of that negative."""
    weight: Tensor
    """(A,) 1 / (number of anchors in the global batch), or 0 for a row that is not an anchor."""

    def mean(self, values: Tensor) -> Tensor:
        """Return this rank's share of the mean of `values` (A,) over the anchors of all ranks."""
        return world_size() * (self.weight * values).sum()

    def in_units_of(self, unit: Tensor) -> Anchors:
        """Return the anchors with distances divided by `unit` (a scalar without gradient)."""
        return replace(self, d_ap=self.d_ap / unit, d_an=self.d_an / unit)


def modified_centroid_triplet(
    features: Tensor,
    pids: Tensor,
    w1: float = LossConfig.w1,
    margin: float = LossConfig.margin,
    reading: str = "paper",
    normalize: bool = False,
    w2: float | None = None,
) -> Tensor:
    """Modified centroid triplet loss (MCTL; Alnissany & Dayoub, J. Big Data 10:74, 2023).

        L = mean over anchors A of  w1 * d(A, c_p)^2 + w2 * max(0, margin - min_N d(A, c_N))^2

    c_p is the mean of the anchor's identity without the anchor, c_N the mean of another identity, both over the global
    batch. An identity with one image in the global batch gives no anchor, but is a negative. With one identity in the
    batch only the pull term is left.

    Args:
        features: (B, D), before the neck.
        pids: (B,) int64.
        w1: weight of the pull, in [0, 1]; the paper uses 0.1.
        margin: greater than 0, in units of distance.
        reading: paper, or rounds: the same two terms in the K rounds of `centroid_triplet`.
        normalize: Euclidean distance of unit vectors instead of raw features.
        w2: weight of the push; default: 1 - w1.

    Returns:
        A scalar, this rank's share.
    """
    anchors = centroid_anchors(features, pids, reading, normalize)
    return modified_centroid_triplet_of(anchors, w1, margin, w2)


def modified_centroid_triplet_of(anchors: Anchors, w1: float, margin: float, w2: float | None = None) -> Tensor:
    """Compute MCTL from anchors; see `modified_centroid_triplet`."""
    if not 0.0 <= w1 <= 1.0:
        raise ValueError(f"w1 = {w1} lies outside [0, 1]; the paper uses 0.1")
    check_margin(margin)
    w2 = 1.0 - w1 if w2 is None else w2
    push = F.relu(margin - anchors.d_an).square() * anchors.has_negative
    return anchors.mean(w1 * anchors.d_ap.square() + w2 * push)


def centroid_triplet(
    features: Tensor, pids: Tensor, margin: float = LossConfig.margin, reading: str = "paper", normalize: bool = False
) -> Tensor:
    """Centroid triplet loss (CTL; Wieczorek, Rychalska & Dąbrowski, ICONIP 2021).

        L = mean over anchors A of  max(0, d(A, c_p) - min_N d(A, c_N) + margin)

    Arguments and result as for `modified_centroid_triplet`. There are two readings:
        paper: anchors are the samples, c_p leaves the anchor out, c_N are full means.
        rounds: as in the authors' code. In round i the query of each identity is its i-th image, and its centroid is
            the mean of its other images. The loss is batch-hard triplet with queries and centroids as anchors,
            averaged over the anchors of a round, then over rounds.
    """
    return centroid_triplet_of(centroid_anchors(features, pids, reading, normalize), margin)


def centroid_triplet_of(anchors: Anchors, margin: float) -> Tensor:
    """Compute CTL from anchors; see `centroid_triplet`."""
    check_margin(margin)
    return anchors.mean(F.relu(anchors.d_ap - anchors.d_an + margin) * anchors.has_negative)


def centroid_anchors(
    features: Tensor, pids: Tensor, reading: str = "paper", normalize: bool = False, centroids: Centroids | None = None
) -> Anchors:
    """Return this rank's anchors for CTL and MCTL. centroids: of the same (normalized) features, if known."""
    if reading not in READINGS:
        raise ValueError(f"reading = {reading!r}; choose one of {', '.join(READINGS)}")
    check_batch(features, pids)
    with torch.autocast(features.device.type, enabled=False):
        features = as_float(features)
        if normalize:
            features = F.normalize(features, dim=1)
        if reading == "rounds":
            return _anchors_in_rounds(features, pids)
        return _anchors_of_samples(features, pids, centroids or gather_centroids(features, pids))


def _anchors_of_samples(features: Tensor, pids: Tensor, centroids: Centroids) -> Anchors:
    own = centroids.index(pids)
    means = centroids.means
    nearest, has_negative = find_nearest(
        features, means, forbidden=own[:, None] == torch.arange(len(means), device=own.device)
    )
    is_anchor = centroids.counts[own] >= 2
    num_anchors = centroids.counts[centroids.counts >= 2].sum().clamp(min=1)
    return Anchors(
        d_ap=euclidean(features, centroids.leave_one_out(features, own)),
        d_an=euclidean(features, means[nearest]),
        has_negative=has_negative,
        nearest=nearest,
        weight=is_anchor / num_anchors,
    )


def _anchors_in_rounds(features: Tensor, pids: Tensor) -> Anchors:
    """Compute all K rounds at once: of the N queries and N centroids of all ranks, only those of one round meet."""
    sizes = gather_sizes(len(features), features.device)
    queries, all_pids = gather_padded(features, sizes), gather_padded(pids, sizes)
    unique, row_of, counts = torch.unique(all_pids, return_inverse=True, return_counts=True)
    round_of = _occurrence(row_of, counts)
    sums = queries.new_zeros((len(unique), features.shape[1])).index_add(0, row_of, queries)
    others = Centroids(sums, counts.to(features.dtype), unique).leave_one_out(queries, row_of)
    has_centroid = counts[row_of] >= 2

    start = sum(sizes[: rank()])
    mine = slice(start, start + len(features))
    entries = torch.cat([queries, others])
    anchors = torch.cat([queries[mine], others[mine]])
    another_round = round_of[mine].repeat(2)[:, None] != round_of.repeat(2)
    same_identity = row_of[mine].repeat(2)[:, None] == row_of.repeat(2)
    absent = ~torch.cat([torch.ones_like(has_centroid), has_centroid])
    nearest, has_negative = find_nearest(anchors, entries, forbidden=another_round | same_identity | absent)

    # torch.bincount with weights adds in no fixed order on CUDA. There are at most as many rounds as rows.
    anchors_per_round = 2 * features.new_zeros(len(round_of)).index_add(0, round_of, has_centroid.to(features.dtype))
    num_rounds = (anchors_per_round > 0).sum().clamp(min=1)
    weight = has_centroid[mine] / (anchors_per_round[round_of[mine]].clamp(min=1) * num_rounds)
    return Anchors(
        d_ap=euclidean(queries[mine], others[mine]).repeat(2),
        d_an=euclidean(anchors, entries[nearest]),
        has_negative=has_negative,
        nearest=row_of.repeat(2)[nearest],
        weight=weight.repeat(2),
    )


def _occurrence(column: Tensor, counts: Tensor) -> Tensor:
    """Return for each row (N,) how many rows of the same column come before it."""
    order = torch.argsort(column, stable=True)
    first = torch.cumsum(counts, dim=0) - counts
    occurrence = torch.empty_like(column)
    occurrence[order] = torch.arange(len(column), device=column.device) - first[column[order]]
    return occurrence
