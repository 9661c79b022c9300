"""Scores of queries against gallery features under a metric, without a second copy of the features."""

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

NORM_ROWS = 8192  # features squared at a time: 64 MiB at 2,048 dimensions


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


def squared_norms(embeddings: Tensor, unit: float = 1.0) -> Tensor:
    """Return (N,) squared lengths of (N, D), in units of 1 / `unit`, without another array of that size."""
    squares = embeddings.new_empty(len(embeddings))
    for i in range(0, len(embeddings), NORM_ROWS):
        rows = embeddings[i : i + NORM_ROWS]
        squares[i : i + NORM_ROWS] = (rows if unit == 1 else rows * unit).square().sum(1)
    return squares


SMALL = 2.0**-64  # squared norms below may have lost digits: float32 has all of them from 2**-126
SAFE_LENGTH = 2.0**60  # of cosine's queries: products with vectors of norms from LEAST to 2**64 stay in range
# float32 has 24 bits of a number from 2**-126 on, 8 of this one (as bfloat16), and fewer of a smaller one.
LEAST = 2.0**-142


def norms(embeddings: Tensor, squares: Tensor) -> Tensor:
    """Return (N,) lengths of (N, D) from their squared norms (N,), exact also where a square leaves float32's range."""
    lengths = squares.sqrt()
    for rows in (squares < SMALL).nonzero().squeeze(1).split(NORM_ROWS):
        scale = _inverse_scale(embeddings[rows])
        lengths[rows] = squared_norms(embeddings[rows] * scale[:, None]).sqrt() / scale
    return lengths


def check_rows(
    embeddings: Tensor, squares: Tensor, name_of: Callable[[int], str], checked: Tensor | bool = True
) -> None:
    """Raise ValueError if a row cannot be compared: not finite, or too large or small for float32.

    Args:
        embeddings: (N, D).
        squares: (N,) their squared norms.
        name_of: returns the name of row i for the error.
        checked: (N,) bool, False for rows that may hold anything.
    """
    bad = ~squares.isfinite()
    for rows in (squares < SMALL).nonzero().squeeze(1).split(NORM_ROWS):
        largest = torch.linalg.vector_norm(embeddings[rows], torch.inf, dim=1)
        bad[rows] = (largest > 0) & (largest < LEAST)
    found = (bad & checked).nonzero().squeeze(1).tolist()
    if found:
        row = embeddings[found[0]]
        fault = "too small for float32" if float(row.abs().max()) < 1 else "too large for float32"
        raise ValueError(
            f"{name_of(found[0])} is {fault if row.isfinite().all() else 'not finite'} ({len(found)} of {len(bad)} "
            "rows are); look at that image, or for a diverged model"
        )


def normalize(embeddings: Tensor) -> Tensor:
    """Return (N, D) rows of length 1 at any scale of a row; a row of zeros stays."""
    scale = _inverse_scale(embeddings)
    return F.normalize(embeddings if bool((scale == 1).all()) else embeddings * scale[:, None])


def _inverse_scale(embeddings: Tensor) -> Tensor:
    """Return (N,) the power of two that brings the largest number of a small row to [0.5, 1); 1 for other rows."""
    largest = torch.linalg.vector_norm(embeddings, torch.inf, dim=1)
    inverse = (torch.frexp(largest).mantissa / largest).clamp(max=2.0**126)  # more would not be a float32
    return torch.where((largest > 0) & (largest.square() < SMALL), inverse, 1.0)


def common_unit(*lengths: Tensor) -> float:
    """Return the power of two in whose units the squares of all norms (N,), finite, stay in float32's range.

    It is 1 unless a norm is small. Raises ValueError if the norms differ too much: by a factor of about 2**125.
    """
    known = torch.cat([some[some > 0] for some in lengths])
    if not len(known) or float(known.min().square()) >= SMALL:
        return 1.0
    exponent = math.frexp(float(known.max()))[1]
    # The largest norm becomes at most 2**62, and, with the unit twice as `Search` has it, at most 2**126.
    unit = 2.0 ** min(62 - exponent, (126 - exponent) // 2, 126)
    if float(known.min()) * unit < 2.0**-63:
        raise ValueError(
            f"norms of features reach from {float(known.min()):.1e} to {float(known.max()):.1e}: float32 cannot hold "
            "the squares of both, so they have no Euclidean distances; look at these images, or compare by cosine"
        )
    return unit


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
