"""The global batch: the features of all ranks, or their sums per identity, with gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reid.data.layout import Layout, build_layout
from reid.data.transfer import move
from reid.distributed import gather_padded, gather_rows, gather_sizes, is_distributed, rank
from reid.losses.distances import as_float, check_batch, unit_vectors


class GlobalBatch:
    """The features of a step in one or several spaces: those of this rank, and what the losses need of all ranks.

    What they need of all ranks is gathered at its first use, for all `shared` spaces together.

    Args:
        features: this rank's (B, D) float32 or float64, by the name of their space.
        layout: of the global batch.
        shared: the spaces of `sums` and `images`; default: all.
        shares_images: gather the features themselves, D floats an image of all ranks; the sums then need no gather of
            their own.
    """

    def __init__(
        self, features: dict[str, Tensor], layout: Layout, shared: Sequence[str] | None = None,
        shares_images: bool = False,
    ) -> None:  # fmt: skip
        self.features, self.layout, self.shares_images = features, layout, shares_images
        self.shared = tuple(features if shared is None else shared)
        self._sums: Tensor | None = None
        self._images: Tensor | None = None

    @property
    def images(self) -> dict[str, Tensor]:
        """Features (N, D) of all ranks in rank order, with gradient, by shared space."""
        return self._split(self._all_images())

    @property
    def sums(self) -> dict[str, Tensor]:
        """Sums (C, D) per identity over all ranks, with gradient, equal on every rank, by shared space.

        Costs one all-gather of S·D floats a space, for the S slots of each rank (see `Layout`), and one reduce-scatter
        in the backward pass.
        """
        if self._sums is None:
            self._sums = self._sum_identities()
        return self._split(self._sums)

    def _split(self, rows: Tensor) -> dict[str, Tensor]:
        widths = [self.features[space].shape[1] for space in self.shared]
        return dict(zip(self.shared, rows.split(widths, dim=1), strict=True))

    def _own_rows(self) -> Tensor:
        """Return this rank's features (B, Z·D) in the Z shared spaces."""
        rows = [self.features[space] for space in self.shared]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def _all_images(self) -> Tensor:
        if self._images is None:
            self._images = self._gather_images() if is_distributed() else self._own_rows()
        return self._images

    def _gather_images(self) -> Tensor:
        layout, rows = self.layout, self._own_rows()
        if layout.keep is None:
            return gather_rows(rows)
        padding = rows.new_zeros((layout.longest - len(rows), rows.shape[1]))
        return gather_rows(torch.cat([rows, padding]))[layout.keep]

    def _sum_identities(self) -> Tensor:
        layout, identities = self.layout, len(self.layout.labels)
        if self.shares_images:
            return _sum_rows(self._all_images(), layout.row_identity, identities)
        sums = gather_rows(_sum_rows(self._own_rows(), layout.slot, layout.slots))
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


def find_global_batch(features: Tensor, pids: Tensor, space: str = "raw", shares_images: bool = False) -> GlobalBatch:
    """Return the global batch of features (B, D), half precision as float32, and pids (B,); see `find_layout`.

    space: raw, or unit: the features divided by their norms.
    """
    check_batch(features, pids)
    features = as_float(features)
    if space not in ("raw", "unit"):
        raise ValueError(f"space = {space!r}; choose raw or unit, and give features after the neck for the space neck")
    layout = find_layout(pids, features.dtype)
    features = features if space == "raw" else unit_vectors(features)
    return GlobalBatch({space: features}, layout, shares_images=shares_images)
