"""Exact ranks of matches without a query-by-gallery matrix: scores and rules, block by block.

The rules, for every protocol: a gallery entry of the query's identity and the query's camera (camid -1 equals none)
is removed; junk (pid -1) is dropped; distractors stay and match no query. Equal scores rank in gallery order.

A product scores PRODUCT_ROWS queries against a slice of the gallery; a match's rank is one more than the number of kept
scores above it, and no score is kept after its product. A slice is multiplied with QUERY_BLOCK queries before the next
slice is read, so a memory-mapped gallery is read once for its norms and then once per QUERY_BLOCK queries; only labels
and norms stay in memory.
"""

import itertools
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from reid.metrics.features import JUNK, Features
from reid.metrics.norms import check_rows, common_unit, normalize, norms, squared_norms
from reid.metrics.protocols import build_gallery
from reid.metrics.scores import (
    METRICS,
    NEVER,
    PRODUCT_ROWS,
    SAFE_LENGTH,
    Vectors,
    best_of_scores,
    cosine_vectors,
    count_before,
    cut,
    euclidean_vectors,
    expand_ranges,
    join_best,
)
from reid.precision import exact_products

QUERY_BLOCK = 4096  # queries per reading of the gallery
MATCH_BLOCK = 1024  # matches scored together, if one product does not cover the gallery


@dataclass(frozen=True)
class SameIdentityPairs:
    """All pairs of a query in a product and an entry of its identity, by query, then in gallery order: row (N,) in the
    product, entry (N,), removed (N,) True if a rule removes the pair."""

    row: Tensor
    entry: Tensor
    removed: Tensor

    def write(self, scores: Tensor, part: slice, chosen: Tensor, values: Tensor | float) -> None:
        """Set the scores (B, E) of the slice `part` to `values`, (N,) or a number, at the `chosen` (N,) pairs."""
        at = chosen & (self.entry >= part.start) & (self.entry < part.stop)
        values = values[at] if isinstance(values, Tensor) else scores.new_tensor(values)
        scores[self.row[at], self.entry[at] - part.start] = values


class Search:
    """Scores and rules of one protocol, for one product at a time."""

    def __init__(self, query: Features, gallery: Features, protocol: str, metric: str, partial: bool = False) -> None:
        squares, self.unit = _check(query, gallery, metric, partial)
        self.protocol, self.partial, self.metric = protocol, partial, metric
        self.query, self.gallery = query, build_gallery(query, gallery, protocol)
        entries, listed = self.gallery.rows, self.gallery.listed
        if entries is not gallery.embeddings:
            squares = squared_norms(entries)
        if metric == "cosine":
            self.queries = normalize(query.embeddings) * SAFE_LENGTH
        else:
            self.queries = query.embeddings * self.unit * self.unit
        self.entries = replace(self._vectors(entries, squares), listed=listed)
        self.own = self._vectors(self.gallery.own, squared_norms(self.gallery.own))
        self.device = self.queries.device
        self.slices = cut(len(entries), listed)

        identities = (~self.gallery.distractors).nonzero().squeeze(1)
        pids, order = self.gallery.pids[identities].sort(stable=True)
        self._by_pid = identities[order]  # entries of one identity next to each other, in gallery order
        self._begin = torch.searchsorted(pids, query.pids)
        self._count = torch.searchsorted(pids, query.pids, right=True) - self._begin
        self._count[query.is_distractor()] = 0

    def _vectors(self, rows: Tensor, squares: Tensor) -> Vectors:
        return cosine_vectors(rows, squares) if self.metric == "cosine" else euclidean_vectors(rows, squares, self.unit)

    def products(self, start: int) -> list[slice]:
        """Return the queries of each product, for the QUERY_BLOCK queries from `start`."""
        stop = min(start + QUERY_BLOCK, len(self.query))
        return [slice(i, min(i + PRODUCT_ROWS, stop)) for i in range(start, stop, PRODUCT_ROWS)]

    def scores(self, rows: slice, entries: slice | Tensor) -> Tensor:
        """Return writable (B, E) scores of a product's queries and some entries; larger is nearer."""
        return self.entries.scores(self.pad(self.queries[rows]), entries)[: rows.stop - rows.start]

    def same_identity_pairs(self, rows: slice) -> SameIdentityPairs:
        row, place = expand_ranges(self._begin[rows], self._count[rows])
        entry = self._by_pid[place]
        query = row + rows.start
        return SameIdentityPairs(row, entry, self.gallery.removes(query, self.query.camids[query], entry))

    def own_scores(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return (B,) bool, True if a query of a product has its own centroid; and (B,) the centroid's score."""
        own_of = self.gallery.own_of[rows]
        if not (own_of >= 0).any():
            return own_of >= 0, torch.zeros_like(own_of, dtype=torch.float32)
        # The diagonal of a product, not a sum of products: the same arithmetic as the scores it competes with.
        at = self.pad(own_of.clamp(min=0)[:, None]).squeeze(1)
        return own_of >= 0, self.own.scores(self.pad(self.queries[rows]), at).diagonal()[: len(own_of)]

    @staticmethod
    def pad(rows: Tensor) -> Tensor:
        """Append rows of zeros to (B, D). A product's last bit depends on its shape, so all products have one shape: a
        query then scores the same in any slice of the queries."""
        return F.pad(rows, (0, 0, 0, max(0, PRODUCT_ROWS - len(rows))))


class _Matches:
    """The matches of a product's queries as tables (B, P), best first, ties in gallery order, NEVER after the last:
    scores, entries and `ahead`, the number of entries counted before each; number (B,) of matches."""

    def __init__(self, search: Search, rows: slice, pairs: SameIdentityPairs, scores: Tensor) -> None:
        """scores: (N,) of the pairs."""
        self.rows, self.pairs = rows, pairs
        has_own, own_scores = search.own_scores(rows)
        scores = torch.where(has_own[pairs.row], own_scores[pairs.row], scores)
        kept = ~pairs.removed
        row = pairs.row[kept]
        self.number = torch.bincount(row, minlength=rows.stop - rows.start)
        place = expand_ranges(torch.zeros_like(self.number), self.number)[1]
        shape = len(self.number), int(self.number.max())
        table, entries = scores.new_full(shape, NEVER), row.new_zeros(shape)
        table[row, place], entries[row, place] = scores[kept], pairs.entry[kept]
        self.scores, order = table.sort(dim=1, descending=True, stable=True)
        self.entries = entries.gather(1, order)
        self.ahead = torch.arange(shape[1], device=row.device).repeat(shape[0], 1)

    def count(self, scores: Tensor, part: slice) -> None:
        """Count the entries of the slice `part` that rank before each match. Overwrites their scores (B, E)."""
        # Matches before a match are already counted by its place in the table.
        self.pairs.write(scores, part, torch.ones_like(self.pairs.removed), NEVER)
        self.ahead += count_before(scores, self.scores, self.entries - part.start)


def rank_matches(search: Search, start: int) -> tuple[Tensor, Tensor]:
    """Rank the matches of the QUERY_BLOCK queries from `start`.

    Returns:
        (B, P) 1-based ranks of their matches, ascending; and (B,) how many of the P are real.
    """
    tables = []
    at_once = len(search.slices) == 1
    for rows in search.products(start):
        pairs = search.same_identity_pairs(rows)
        if at_once:  # the product covers the gallery and so holds the scores of the matches
            scores = search.scores(rows, search.slices[0])
            tables.append(_Matches(search, rows, pairs, scores[pairs.row, pairs.entry]))
            tables[-1].count(scores, search.slices[0])
        else:
            tables.append(_Matches(search, rows, pairs, _score_pairs(search, rows, pairs)))
    for part in () if at_once else search.slices:  # slices outside and queries inside, which reads the gallery once
        for table in tables:
            table.count(search.scores(table.rows, part), part)
    widest = max(table.ahead.shape[1] for table in tables)
    ranks = [F.pad(table.ahead + 1, (0, widest - table.ahead.shape[1]), value=1) for table in tables]
    return torch.cat(ranks), torch.cat([table.number for table in tables])


def _score_pairs(search: Search, rows: slice, pairs: SameIdentityPairs) -> Tensor:
    """Return the scores (N,) of the pairs, from products with their entries only, all of one shape."""
    entries, place = pairs.entry.unique(return_inverse=True)
    found = torch.zeros(len(place), device=search.device)
    order = place.argsort()  # pairs of one product next to each other
    edges = torch.arange(0, len(entries) + MATCH_BLOCK, MATCH_BLOCK, device=place.device)
    bounds = torch.searchsorted(place[order], edges).tolist()
    for i, (begin, end) in zip(edges.tolist(), itertools.pairwise(bounds), strict=False):
        some, inside = entries[i : i + MATCH_BLOCK], order[begin:end]
        scores = search.scores(rows, F.pad(some, (0, MATCH_BLOCK - len(some)), value=int(some[-1])))
        found[inside] = scores[pairs.row[inside], place[inside] - i]
    return found


def top_k(
    query: Features, gallery: Features, k: int, protocol: str = "image", metric: str = "cosine"
) -> tuple[Tensor, Tensor]:
    """Find the k best gallery entries of each query after the rules.

    Args:
        query: Q queries.
        gallery: N images.
        k: at least 1; may exceed the number of entries.
        protocol: a key of `reid.metrics.protocols.PROTOCOLS`.
        metric: `cosine` or `euclidean`.

    Returns:
        indices: (Q, k) int64 on the CPU: rows of `gallery` under `image`, entries of `build_gallery` under the others;
            -1 if fewer than k entries are left.
        scores: (Q, k) float32 on the CPU, descending: cosine similarity, or minus the Euclidean distance; -inf if fewer
            than k entries are left.
    """
    search = Search(query, gallery, protocol, metric)
    indices, scores = best_of_search(search, k)
    if metric == "euclidean":
        squares = (query.embeddings.cpu() * search.unit).square().sum(1, keepdim=True)
        scores = -(squares - 2 * scores).clamp(min=0).sqrt() / search.unit
    return indices, scores


@torch.no_grad()
def best_of_search(search: Search, k: int) -> tuple[Tensor, Tensor]:
    """Do `top_k` for any search; scores (Q, k) are those of the search."""
    if k < 1:
        raise ValueError(f"k is {k}; give at least 1")
    if not len(search.query):  # a slice of fewer queries than processes
        return torch.empty(0, k, dtype=torch.int64), torch.empty(0, k)
    with exact_products(search.device):
        best = [pair for i in range(0, len(search.query), QUERY_BLOCK) for pair in _best_of_pass(search, i, k)]
    indices, scores = (torch.cat(column).cpu() for column in zip(*best, strict=True))
    indices = search.gallery.first.cpu()[indices] if search.protocol == "image" else indices
    missing = (0, k - indices.shape[1])
    return F.pad(indices.masked_fill(scores == NEVER, -1), missing, value=-1), F.pad(scores, missing, value=NEVER)


def _best_of_pass(search: Search, start: int, k: int) -> list[tuple[Tensor, Tensor]]:
    products = search.products(start)
    all_pairs = [search.same_identity_pairs(rows) for rows in products]
    best: list[list[tuple[Tensor, Tensor]]] = [[] for _ in products]
    for part in search.slices:
        for rows, pairs, found in zip(products, all_pairs, best, strict=True):
            scores = search.scores(rows, part)
            has_own, own_scores = search.own_scores(rows)
            pairs.write(scores, part, has_own[pairs.row], own_scores[pairs.row])
            pairs.write(scores, part, pairs.removed, NEVER)
            found[:] = [join_best([*found, best_of_scores(scores, k, part.start)], k)]
    return [found[0] for found in best]


def _check(query: Features, gallery: Features, metric: str, partial: bool) -> tuple[Tensor, float]:
    """Raise ValueError on features that cannot be ranked.

    If the queries are a slice, all are checked: every process then finds the same fault, in the same row.

    Returns:
        The squared norms (N,) of the gallery, and the unit of `common_unit`, 1 for cosine.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
    squares, lengths = torch.empty(0), []
    for name, features in (("query", query), ("gallery", gallery)):
        if not len(features) and not (partial and features is query):
            raise ValueError(f"the {name} is empty; give at least one image")
        if not features.embeddings.shape[1]:
            raise ValueError(f"{name} embeddings have no dimension: their shape is {tuple(features.embeddings.shape)}")
        complete = query.taken_from if features is query and query.taken_from is not None else features
        squares, kept = squared_norms(complete.embeddings), complete.pids != JUNK
        check_rows(complete.embeddings, squares, f"{name}: the embedding in row {{}}".format, kept)
        if metric == "euclidean":
            lengths.append(norms(complete.embeddings, squares)[kept])
    if query.embeddings.shape[1] != gallery.embeddings.shape[1]:
        raise ValueError(
            f"query embeddings have {query.embeddings.shape[1]} dimensions, gallery embeddings "
            f"{gallery.embeddings.shape[1]}; take both from one model"
        )
    if query.embeddings.device != gallery.embeddings.device:
        raise ValueError(
            f"query embeddings are on {query.embeddings.device}, gallery embeddings on {gallery.embeddings.device}; "
            "move them to one device"
        )
    return squares, common_unit(*lengths) if lengths else 1.0
