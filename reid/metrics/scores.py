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

    The rows may be float16; they are multiplied as float32, part by part.

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
        if not isinstance(entries, slice) or queries.is_cuda:
            return self._multiply_tile(queries, entries)
        scores = queries.new_empty(len(queries), entries.stop - entries.start)
        for begin, end in itertools.pairwise(even_edges(scores.shape[1], TILE)):
            part = slice(entries.start + begin, entries.start + end)
            self._multiply_tile(queries, part, out=scores[:, begin:end])
        return scores

    def _multiply_tile(self, queries: Tensor, entries: slice | Tensor, out: Tensor | None = None) -> Tensor:
        if self.bias is not None:
            return torch.addmm(self.bias[entries], queries, self.rows[entries].float().T, out=out)
        scores = torch.mm(queries, self.rows[entries].float().T, out=out)
        return scores if self.scale is None else scores.mul_(self.scale[entries])


def cosine_vectors(embeddings: Tensor, squares: Tensor) -> Vectors:
    """Return the vectors (N, D) that `normalize(queries) * SAFE_LENGTH` are multiplied with; squares (N,): their norms.

    Divides the scores by the norms, not the features, which may be too many to copy. A zero vector scores zero.
    """
    if embeddings.shape[1] == 1:  # only two directions: the rounding of 1 / norm must not order equal ones
        embeddings = squares = embeddings.float().sign()
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
    return (_count_by_bucket if scores.is_cuda else _count_by_sorting)(scores, matches, entries)


def _count_by_sorting(scores: Tensor, matches: Tensor, entries: Tensor) -> Tensor:
    """Count on the CPU in numpy, whose sort is 15 times as fast as torch's.

    256 x 15,913 scores with 20 matches a query take 9 (good features) to 30 ms (random ones) on two cores, the product
    at 2,048 dimensions 140 ms.
    """
    above = torch.zeros(matches.shape, dtype=torch.int64)
    if not above.numel():
        return above
    tables = [table.numpy() for table in (scores, matches, entries, (matches > NEVER).sum(1), above)]
    step = max(1, COUNTED // max(1, scores.shape[1]))
    for start in range(0, len(scores), step):
        _count_rows(*(table[start : start + step] for table in tables))
    return above


def _count_rows(
    scores: np.ndarray, matches: np.ndarray, entries: np.ndarray, number: np.ndarray, above: np.ndarray
) -> None:
    """Fill `above` (B, P); number (B,): how many of a query's P matches are real."""
    last = np.where(number > 0, matches[np.arange(len(matches)), number - 1], np.float32(np.inf))
    reach = scores >= last[:, None]  # the others, often most, rank behind all matches
    ends = np.cumsum([np.count_nonzero(row) for row in reach])
    near = np.split(scores[reach], ends[:-1])
    _sort_each(near, many=8 * int(ends[-1]) > scores.size)
    for row, ordered in enumerate(near):
        sought = matches[row, : number[row]]
        found = len(ordered) - ordered.searchsorted(sought, "right")
        tied = found < len(ordered) - ordered.searchsorted(sought)
        for value in np.unique(sought[tied]) if tied.any() else ():
            equal = (sought == value).nonzero()[0]
            found[equal] += (scores[row] == value).nonzero()[0].searchsorted(entries[row, equal])
        above[row, : number[row]] = found


def _sort_each(arrays: list[np.ndarray], many: bool) -> None:
    """Sort in place; with threads only if there is much to sort, because short sorts wait for Python's lock."""
    if not many:
        for array in arrays:
            array.sort()
        return
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: _sort_each(part, many=False), (arrays[i::threads] for i in range(threads))))


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


PRODUCT_ROWS, GALLERY_BLOCK = 256, 98_304  # at most 96 MiB of scores at a time, which all of MSMT17's gallery needs
TILE = (
    1024  # entries multiplied together on a CPU: 1 MiB of scores; MKL takes up to 1.6 times as long for wide products
)
COUNTED = 1 << 22  # scores counted at a time: 16 MiB
TIE_BLOCK = 1 << 24  # scores at a time while ties are resolved


def even_edges(size: int, most: int) -> list[int]:
    """Return the ends of parts of at most `most` and similar lengths: a narrow product may round differently."""
    number = max(1, -(-size // most))
    return [size * i // number for i in range(number + 1)]


def cut(size: int, listed: Tensor | None = None) -> list[slice]:
    """Cut rows into slices of at most GALLERY_BLOCK and similar lengths.

    If only the rows `listed` (E,), ascending, are entries, return slices of these, each from one slice of the rows.
    """
    edges = even_edges(size, GALLERY_BLOCK)
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
