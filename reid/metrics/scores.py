"""Scores of queries against gallery features under a metric, without a second copy of the features."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reid.metrics.norms import norms, squared_norms

SAFE_LENGTH = 2.0**60  # of cosine's queries: products with vectors of norms from 2**-142 to 2**64 stay in range


@dataclass(frozen=True)
class Vectors:
    """The vectors that a metric multiplies queries with: rows (N, D), times `scale` (N,), plus `bias` (N,), if given.

    listed (E,), ascending: the rows that are entries, if not all are. The others are multiplied and dropped, because a
    copy of the entries would need more memory.
    """

    rows: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None
    listed: Tensor | None = None

    def scores(self, queries: Tensor, entries: slice | Tensor) -> Tensor:
        """Return (B, E) float32 scores of queries (B, D) and some entries; larger is nearer."""
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


def cosine_vectors(embeddings: Tensor, squares: Tensor) -> Vectors:
    """Return the vectors (N, D) that `normalize(queries) * SAFE_LENGTH` are multiplied with; squares (N,): their norms.

    Divides the scores by the norms, not the features, which may be too many to copy. A zero vector scores zero.
    """
    if embeddings.shape[1] == 1:  # only two directions: the rounding of 1 / norm must not order equal ones
        embeddings = squares = embeddings.sign()
        squares = squares.squeeze(1).abs()
    lengths = norms(embeddings, squares) * SAFE_LENGTH
    return Vectors(embeddings, scale=1 / lengths.clamp(min=torch.finfo(torch.float32).tiny))


def euclidean_vectors(embeddings: Tensor, squares: Tensor, unit: float = 1.0) -> Vectors:
    """Return the vectors (N, D) that queries, times `unit` twice, are multiplied with; squares (N,): their norms.

    Scores q.g - |g|^2 / 2 = (|q|^2 - d^2) / 2, in units of 1 / `unit`, rank as minus the distance d for one query.
    """
    return Vectors(embeddings, bias=(squares if unit == 1 else squared_norms(embeddings, unit)) / -2)


METRICS = ("cosine", "euclidean")
NEVER = -torch.inf  # the score of removed entries, below every real one


def count_before(scores: Tensor, matches: Tensor, entries: Tensor) -> Tensor:
    """Count, (B, P), how many of the scores (B, E) rank before each of the matches.

    Args:
        scores: (B, E) of E entries.
        matches: (B, P) scores of each query's matches, descending, NEVER after the last.
        entries: (B, P) the matches' entries, counted from the first of the E; they may lie outside.
    """
    return (_count_by_bucket if scores.is_cuda else _count_by_comparing)(scores, matches, entries)


def _count_by_comparing(scores: Tensor, matches: Tensor, entries: Tensor) -> Tensor:
    """Count row by row in numpy, on the CPU.

    256 x 15,913 scores with 20 matches a query take 3 (good features) to 20 ms (random ones) on one core; sorting the
    rows takes 66 ms, the product at 2,048 dimensions 270 ms.
    """
    rows, thresholds, places = scores.numpy(), matches.numpy(), entries.numpy()
    number = (matches > NEVER).sum(1).numpy()
    above = np.zeros(matches.shape, np.int64)

    def count_rows(numbers: np.ndarray) -> None:
        for r in numbers:
            n = number[r]
            if n:
                above[r, :n] = _count_row(rows[r], thresholds[r, :n], places[r, :n])

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(count_rows, np.array_split(np.arange(len(rows)), threads)))
    return torch.from_numpy(above)


def _count_row(scores: np.ndarray, matches: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """Count for one query, looking only at scores that reach the last match, often few."""
    near = np.flatnonzero(scores >= matches[-1])
    rest = scores[near]
    ordered = np.sort(rest)
    above = len(rest) - np.searchsorted(ordered, matches, "right")
    tied = np.flatnonzero(len(rest) - above > np.searchsorted(ordered, matches))
    before = np.searchsorted(near, entries)
    for i in tied:
        above[i] += np.count_nonzero(rest[: before[i]] == matches[i])
    return above


def _count_by_bucket(scores: Tensor, matches: Tensor, entries: Tensor) -> Tensor:
    """Count on any device, for all rows together, without sorting the scores: each falls between two matches."""
    ascending = matches.flip(1).contiguous()
    above = _count_reaching(scores, ascending, right=False)
    not_below = _count_reaching(scores, ascending, right=True)
    row, place = ((not_below > above) & (matches > NEVER)).nonzero(as_tuple=True)
    column = torch.arange(scores.shape[1], device=scores.device)
    # No more ties at a time than rows, so that their comparisons stay as small as the scores.
    for r, p in zip(row.split(len(scores)), place.split(len(scores)), strict=True):
        equal = scores[r] == matches[r, p][:, None]
        above[r, p] += (equal & (column < entries[r, p][:, None])).sum(1)
    return above


def _count_reaching(scores: Tensor, ascending: Tensor, right: bool) -> Tensor:
    """Count (B, P) of scores (B, E) that exceed, or with `right` reach, each of `ascending` (B, P), largest first."""
    size, buckets = len(scores), ascending.shape[1] + 1
    passed = torch.searchsorted(ascending, scores, right=right)  # how many of the row each score exceeds (or reaches)
    passed += torch.arange(size, device=scores.device)[:, None] * buckets
    counts = torch.bincount(passed.flatten(), minlength=size * buckets).view(size, buckets)
    return counts.flip(1).cumsum(1)[:, :-1]


PRODUCT_ROWS, GALLERY_BLOCK = 256, 65_536  # at most 64 MiB of scores at a time
TIE_BLOCK = 1 << 24  # scores at a time while ties are resolved


def cut(size: int, listed: Tensor | None = None) -> list[slice]:
    """Cut rows into slices of at most GALLERY_BLOCK and similar lengths: a narrow product may round differently.

    If only the rows `listed` (E,), ascending, are entries, return slices of these, each from one slice of the rows.
    """
    number = max(1, -(-size // GALLERY_BLOCK))
    edges = [size * i // number for i in range(number + 1)]
    if listed is not None:
        edges = [int(torch.searchsorted(listed, edge)) for edge in edges]
    return [slice(begin, end) for begin, end in itertools.pairwise(edges) if begin < end] or [slice(0, 0)]


def expand_ranges(begin: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Expand L ranges given by begin and count (L,): return the range (N,) and the place (N,) of every item."""
    of = torch.arange(len(count), device=count.device).repeat_interleave(count)
    nth = torch.arange(len(of), device=count.device) - (count.cumsum(0) - count)[of]
    return of, begin[of] + nth


def best_of_scores(scores: Tensor, k: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """Return the entries, counted from `first`, and values of the k largest of each row, ties by the lower entry.

    torch.topk guarantees no order among ties, so one more is taken, and rows with a tie among these are sorted.
    """
    values, entries = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    tied = (values[:, 1:] == values[:, :-1]).any(1).nonzero().squeeze(1)
    for rows in tied.split(max(1, TIE_BLOCK // max(1, scores.shape[1]))):
        # + 0.0 makes -0.0 equal 0.0 for any sort
        found = (scores[rows] + 0.0).sort(dim=1, descending=True, stable=True)
        values[rows], entries[rows] = (column[:, : values.shape[1]] for column in found)
    return entries[:, :k] + first, values[:, :k]


def join_best(parts: list[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """Return the best k of several results of best_of_scores, given in the order of their entries."""
    entries, values = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
    values, order = values.sort(dim=1, descending=True, stable=True)
    return entries.gather(1, order)[:, :k], values[:, :k]
