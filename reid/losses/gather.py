"""The global batch: the features of all ranks, or their sums per identity, with gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reid.data.layout import Layout, build_layout
from reid.data.transfer import move
from reid.distributed import gather_padded, gather_rows, gather_sizes, is_distributed, rank
from reid.losses.distances import as_float, check_batch


class GlobalBatch:
    """The features of a step: those of this rank, and what the losses need of all ranks, gathered when first used.

    Args:
        features: (B, D) float32 or float64, this rank's.
        layout: of the global batch.
        shares_images: gather the features themselves, N·D floats; the sums then need no gather of their own.
        sums: see the property, if known.
    """

    def __init__(
        self, features: Tensor, layout: Layout, shares_images: bool = False, sums: Tensor | None = None
    ) -> None:
        self.features, self.layout, self.shares_images = features, layout, shares_images
        self._sums, self._images = sums, None if is_distributed() else features

    def normalized(self) -> GlobalBatch:
        """Return the global batch of the unit vectors."""
        return GlobalBatch(F.normalize(self.features, dim=1), self.layout, self.shares_images)

    @property
    def images(self) -> Tensor:
        """Features (N, D) of all ranks in rank order, with gradient."""
        if self._images is None:
            self._images = self._gather_images()
        return self._images

    @property
    def sums(self) -> Tensor:
        """Sums (C, D) per identity over all ranks, with gradient, equal on every rank.

        Costs one all-gather of S·D floats and, backward, one reduce-scatter.
        """
        if self._sums is None:
            self._sums = self._sum_identities()
        return self._sums

    def _gather_images(self) -> Tensor:
        layout, features = self.layout, self.features
        if layout.keep is None:
            return gather_rows(features)
        padding = features.new_zeros((layout.longest - len(features), features.shape[1]))
        return gather_rows(torch.cat([features, padding]))[layout.keep]

    def _sum_identities(self) -> Tensor:
        layout, identities = self.layout, len(self.layout.labels)
        if self.shares_images:
            return _sum_rows(self.images, layout.row_identity, identities)
        sums = gather_rows(_sum_rows(self.features, layout.slot, layout.slots))
        return sums if layout.merge is None else _sum_rows(sums, layout.merge, identities)


def _sum_rows(rows: Tensor, place: Tensor, places: int) -> Tensor:
    """Return (places, D) the sums of those `rows` (N, D) with the same `place` (N,)."""
    return rows.new_zeros((places, rows.shape[1])).index_add(0, place, rows)


def find_layout(pids: Tensor, dtype: torch.dtype = torch.float32) -> Layout:
    """Return the layout of a global batch of which this rank holds `pids` (B,) int64.

    The host waits for the device, and ranks tell each other their pids. A training loop that knows its batches in
    advance builds the layout with `reid.data.layout.build_layout` instead.
    """
    sizes = gather_sizes(len(pids), pids.device)
    parts = gather_padded(pids, sizes).cpu().split(sizes)
    return move(build_layout([part.numpy() for part in parts], rank(), dtype=dtype), pids.device)


def find_global_batch(features: Tensor, pids: Tensor, shares_images: bool = False) -> GlobalBatch:
    """Return the global batch of features (B, D), half precision as float32, and pids (B,); see `find_layout`."""
    check_batch(features, pids)
    features = as_float(features)
    return GlobalBatch(features, find_layout(pids, features.dtype), shares_images)
