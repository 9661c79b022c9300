"""Scores of queries against gallery features under a metric, exact and without a second copy of the features."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NORM_ROWS = 8192  # features squared at a time: 64 MiB at 2,048 dimensions


@dataclass(frozen=True)
class Vectors:
    """What a metric ranks by: products with rows (N, D), times `scale` (N,), plus `bias` (N,), where given.

    listed (E,), ascending: the rows that are entries, where not all are; the others are multiplied and dropped, which
    a copy of the entries would spare at the price of its memory.
    """

    rows: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None
    listed: Tensor | None = None

    def scores(self, queries: Tensor, entries: slice | Tensor) -> Tensor:
        """(B, E) float32 of queries (B, D) against some entries; larger is nearer."""
        if self.listed is None:
            return self._multiply(queries, entries)
        rows = self.listed[entries]
        if not isinstance(entries, slice) or not len(rows):
            return self._multiply(queries, rows)
        begin, end = int(rows[0]), int(rows[-1]) + 1
        scores = self._multiply(queries, slice(begin, end))
        return scores if end - begin == len(rows) else scores[:, rows - begin]

    def _multiply(self, queries: Tensor, entries: slice | Tensor) -> Tensor:
        if self.bias is not None:
            return torch.addmm(self.bias[entries], queries, self.rows[entries].T)
        scores = queries @ self.rows[entries].T
        return scores if self.scale is None else scores.mul_(self.scale[entries])


def squared_norms(embeddings: Tensor) -> Tensor:
    """(N,) squared lengths of (N, D), without a second array of that size."""
    squares = embeddings.new_empty(len(embeddings))
    for i in range(0, len(embeddings), NORM_ROWS):
        squares[i : i + NORM_ROWS] = embeddings[i : i + NORM_ROWS].square().sum(1)
    return squares


def _cosine(embeddings: Tensor, squares: Tensor) -> Vectors:
    """The scores are divided by the norms, not the features, which may be too many to copy. A zero scores zero."""
    return Vectors(embeddings, scale=1 / squares.sqrt().clamp(min=1e-12))


def _euclidean(embeddings: Tensor, squares: Tensor) -> Vectors:
    """q.g - |g|^2 / 2 = (|q|^2 - d^2) / 2: ranks as the distance does, for a query."""
    return Vectors(embeddings, bias=squares / -2)


METRICS: dict[str, Callable[[Tensor, Tensor], Vectors]] = {"cosine": _cosine, "euclidean": _euclidean}
