"""Identity sums and counts of a global batch, and the centroids made of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reid.distributed import gather_padded, gather_sizes


@dataclass(frozen=True)
class Centroids:
    """The identities of a global batch, sorted by pid and equal on every rank.

    sums (C, D) with gradient to the features of all ranks; counts (C,) float of the same dtype; pids (C,) int64.
    """

    sums: Tensor
    counts: Tensor
    pids: Tensor

    @property
    def means(self) -> Tensor:
        """Full centroids (C, D)."""
        return self.sums / self.counts[:, None]

    def detach(self) -> Centroids:
        return Centroids(self.sums.detach(), self.counts, self.pids)

    def index(self, pids: Tensor) -> Tensor:
        """The row (N,) of each of `pids` (N,), all of which must be present."""
        return torch.searchsorted(self.pids, pids)

    def leave_one_out(self, features: Tensor, rows: Tensor) -> Tensor:
        """For each of features (N, D) the centroid (N, D) of its identity `rows` (N,) without itself.

        Where the identity has this one image alone there is no such centroid: those rows hold the feature itself
        (finite, so that a mask of zeros keeps gradients at zero) and must be masked by `counts >= 2`.
        """
        others = self.counts[rows] - 1
        return (self.sums[rows] - features * (others > 0)[:, None]) / others.clamp(min=1)[:, None]


def sum_by_pid(features: Tensor, pids: Tensor, counts: Tensor | None = None) -> Centroids:
    """Sums and counts per identity of `features` (N, D) on this rank alone, with gradient.

    pids (N,) int64 in any order. `counts` (N,), when rows are themselves sums, says of how many; otherwise 1 each.
    """
    unique, rows = torch.unique(pids, return_inverse=True)
    if counts is None:
        counts = features.new_ones(len(pids))
    sums = features.new_zeros((len(unique), features.shape[1])).index_add(0, rows, features)
    totals = features.new_zeros(len(unique)).index_add(0, rows, counts.to(features.dtype))
    return Centroids(sums, totals, unique)


def gather_centroids(features: Tensor, pids: Tensor) -> Centroids:
    """Per-identity sums of this step over all ranks, with gradient.

    features (B, D) float local; pids (B,) int64 local, any order, any count per identity, B may differ by rank.
    An identity on several ranks is merged by its pid. Cost per rank: one all-gather of P*D floats and two of O(P),
    with P the largest number of identities on a rank; backward, one reduce-scatter of the same size.
    """
    local = sum_by_pid(features, pids)
    sizes = gather_sizes(len(local.pids), features.device)
    if len(sizes) == 1:
        return local
    keys = gather_padded(torch.stack([local.pids, local.counts.long()], dim=1), sizes)
    sums = gather_padded(local.sums, sizes)
    return sum_by_pid(sums, keys[:, 0], counts=keys[:, 1])
