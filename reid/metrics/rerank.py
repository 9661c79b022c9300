"""k-reciprocal re-ranking (Zhong et al., CVPR 2017) in memory proportional to (Q + G) k, without a matrix.

Queries and gallery entries are nodes of one graph. A node's k-reciprocal set holds those of its k1 + 1 nearest nodes
(itself among them) that have it among theirs, joined by the set of a member (with k1 / 2 instead of k1) if more than
two thirds of that lie inside. d is the squared Euclidean distance divided by the node's largest. The set's weights
exp(-d) are scaled to sum to one, then averaged over the node's k2 nearest: a sparse row V[i]. With
m = sum_c min(V[i, c], V[j, c]) the Jaccard distance of i and j is 1 - m / (2 - m), and a query ranks by
(1 - lambda) Jaccard + lambda d.

Entries without a common neighbour have m = 0 and still a distance, so every gallery entry has its exact rank. The
rules (same camera, distractors) apply when entries are ranked; neighbourhoods use no labels. Weights are integer
multiples of 2**-30, whose sums are the same in any order, on any device.

Several ranks share the work: each finds the neighbours, the sets and the averages of its share of the nodes, and ranks
its share of the queries. Distances are equal to the last bit for any number of ranks.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reid.metrics.features import Features
from reid.metrics.norms import normalize, squared_norms
from reid.metrics.protocols import PROTOCOLS, find
from reid.metrics.ranking import Search
from reid.metrics.scores import PRODUCT_ROWS, Vectors, best_of_scores, cut, expand_ranges, join_best
from reid.precision import exact_products

ITEMS = 1 << 22  # items of expanded lists at a time, about 100 MiB
FLOATS = 1 << 20  # feature values at a time, 4 MiB, which fit into caches
ONE = 1 << 30  # the weight 1


@dataclass(frozen=True)
class Ranks:
    """The ranks that re-rank together, by default this process without others.

    gather: returns a tensor (N, ...) of every rank, joined in rank order; N may differ between ranks.
    """

    rank: int = 0
    number: int = 1
    gather: Callable[[Tensor], Tensor] = lambda rows: rows

    def share(self, size: int) -> slice:
        """Return this rank's rows of `size` rows."""
        return slice(size * self.rank // self.number, size * (self.rank + 1) // self.number)


class Reranked(Search):
    """A search whose scores are minus the re-ranked distances; `retrieval.evaluate_search` evaluates it as any other.

    Costs a product of all nodes with all nodes. With several ranks it searches this rank's share of the queries; the
    results of all ranks are joined by `retrieval.merge`.

    Args:
        query: all queries, not a slice: neighbourhoods need every query.
        gallery: as for `evaluate`. One copy of all features is kept.
        protocol: one that can be re-ranked. Under `centroid` each query sees another centroid of its identity, so it
            would need its own graph; the graph of the listed centroids would let it match through images by its camera.
        metric: distances of raw features (`euclidean`) or of normalized ones (`cosine`).
        k1: neighbours of a node.
        k2: neighbours that a set is averaged over.
        lambda_: share of the original distance; 1 = no re-ranking.
        ranks: the ranks that share the work. All of them must give the same features.

    Raises ValueError on another protocol, and on numbers out of range.
    """

    def __init__(
        self,
        query: Features,
        gallery: Features,
        protocol: str = "image",
        metric: str = "cosine",
        k1: int = 20,
        k2: int = 6,
        lambda_: float = 0.3,
        ranks: Ranks = Ranks(),
    ) -> None:
        known = [name for name, row in PROTOCOLS.items() if row.can_rerank]
        if protocol not in known:
            raise ValueError(
                f"protocol {protocol!r} cannot be re-ranked; give {' or '.join(known)} (under `centroid` each query "
                "sees another centroid of its identity, so there is no common graph of neighbours)"
            )
        if k1 < 1 or k2 < 1:
            raise ValueError(f"k1 is {k1} and k2 is {k2}; give at least 1")
        if not 0 <= lambda_ <= 1:
            raise ValueError(f"lambda_ is {lambda_}; give a share between 0 (only Jaccard) and 1 (no re-ranking)")
        self._part = ranks.share(len(query))
        super().__init__(query.take(self._part), gallery, protocol, metric, partial=ranks.number > 1)
        if not squared_norms(query.embeddings).isfinite().all():  # `Search` checks all but junk, a neighbour here
            raise ValueError(
                "re-ranking uses junk queries as neighbours, and one is not finite or too large; leave it out"
            )
        nodes = torch.cat([query.embeddings, self.gallery.embeddings])
        nodes = normalize(nodes) if metric == "cosine" else nodes.mul_(self.unit)
        self._squares = squared_norms(nodes)
        vectors = Vectors(nodes, bias=self._squares / -2)
        self.queries = nodes[self._part]
        self.entries = Vectors(nodes[len(query) :], bias=self._squares[len(query) :] / -2)
        self._lambda = lambda_
        with torch.no_grad(), exact_products(self.device):
            part = ranks.share(len(nodes))
            found = find_neighbours(vectors, self._squares, max(k1 + 1, k2), part)
            nearest, self._farthest = map(ranks.gather, found)
            row, member = find_reciprocal(nearest[:, : k1 + 1], k1, part)
            number = min(k2, len(nodes))
            value = weigh(nodes, row, member, self._farthest, ONE / number)
            row, member, value = map(ranks.gather, (row, member, value))
            self._sets = Sparse.of(row, member, value, len(nodes))
            if number > 1:
                row, member, value = map(ranks.gather, average(self._sets, nearest[:, :number], part))
                self._sets = Sparse.of(row, member, value, len(nodes))
        self._inverted = self._sets.inverted(len(query))

    def scores(self, rows: slice, entries: slice | Tensor) -> Tensor:
        nodes = self._nodes(rows)
        overlap = self._overlap(nodes, entries).float() / ONE
        jaccard = 1 - overlap / (2 - overlap)
        distances = self._squares[nodes, None] - 2 * super().scores(rows, entries)
        farthest = self._farthest[nodes, None]
        return -((1 - self._lambda) * jaccard + self._lambda * distances.clamp(min=0) / farthest)

    def _nodes(self, rows: slice) -> slice:
        """Return the nodes of some of this rank's queries."""
        return slice(self._part.start + rows.start, self._part.start + rows.stop)

    def _overlap(self, rows: slice, entries: slice | Tensor) -> Tensor:
        """Return (B, E) int32 sums of the smaller weights over common columns, for nodes `rows`. Entries ascend."""
        width = entries.stop - entries.start if isinstance(entries, slice) else len(entries)
        sums = torch.zeros((rows.stop - rows.start) * width, dtype=torch.int32, device=self.device)
        row, mine = expand_ranges(self._sets.begin[rows], self._sets.count[rows])
        column = self._sets.column[mine]
        for some in split_items(self._inverted.count[column]):
            of, other = expand_ranges(self._inverted.begin[column[some]], self._inverted.count[column[some]])
            entry = self._inverted.column[other]
            if isinstance(entries, slice):
                place = torch.where((entry >= entries.start) & (entry < entries.stop), entry - entries.start, -1)
            else:
                place = find(entry, entries)
            smaller = torch.minimum(self._sets.value[mine[some]][of], self._inverted.value[other])
            inside = place >= 0
            sums.scatter_add_(0, (row[some][of] * width + place)[inside], smaller[inside])
        return sums.view(-1, width)


@dataclass(frozen=True)
class Sparse:
    """A sparse matrix: row i has count[i] items of column and value (M,) from begin[i]; int32 in units of 1 / ONE."""

    begin: Tensor
    count: Tensor
    column: Tensor
    value: Tensor

    @classmethod
    def of(cls, row: Tensor, column: Tensor, value: Tensor, size: int) -> "Sparse":
        """Build from triples (M,) with ascending rows."""
        count = torch.bincount(row, minlength=size)
        return cls(count.cumsum(0) - count, count, column, value.int())

    def inverted(self, first: int) -> "Sparse":
        """Return the transpose of the rows from `first`, which are counted from there."""
        row, place = expand_ranges(self.begin[first:], self.count[first:])
        column, order = self.column[place].sort(stable=True)
        return Sparse.of(column, row[order], self.value[place][order], len(self.count))


def find_neighbours(vectors: Vectors, squares: Tensor, k: int, part: slice) -> tuple[Tensor, Tensor]:
    """Return, for the P nodes of `part`, nearest (P, min(k, N)): the nodes nearest to each, itself among them, ties by
    number; and farthest (P,): the squared distance to the farthest node, 1 if all nodes are equal."""
    nearest = [torch.empty(0, min(k, len(squares)), dtype=torch.int64, device=squares.device)]
    farthest = [squares[:0]]
    for i in range(part.start, part.stop, PRODUCT_ROWS):
        size = min(PRODUCT_ROWS, part.stop - i)
        queries = Search.pad(vectors.rows[i : i + size])
        best, lowest = [], []
        for entries in cut(len(squares)):
            scores = vectors.scores(queries, entries)[:size]
            lowest.append(scores.amin(1))
            best.append(best_of_scores(scores, k, entries.start))
        nearest.append(join_best(best, k)[0])
        farthest.append(squares[i : i + size] - 2 * torch.stack(lowest).amin(0))
    all_farthest = torch.cat(farthest)
    return torch.cat(nearest), all_farthest.where(all_farthest > 0, 1)


def find_reciprocal(nearest: Tensor, k1: int, part: slice) -> tuple[Tensor, Tensor]:
    """Return row and member (M,), sorted, of the expanded k-reciprocal sets of the nodes of `part`, from nearest
    (N, k1 + 1 or N) of all nodes."""
    half = nearest[:, : round(k1 / 2) + 1]
    mutual, half_mutual = _is_mutual(nearest), _is_mutual(half)
    size = len(nearest)
    keys = []
    for rows in _split_rows(part, nearest.shape[1] ** 2 * half.shape[1]):
        near, kept = nearest[rows], mutual[rows]
        others, theirs = half[near], half_mutual[near] & kept[..., None]
        inside = (others[..., None] == near.masked_fill(~kept, -1)[:, None, None]).any(3)
        joins = 3 * (inside & theirs).sum(2) > 2 * theirs.sum(2)
        members = torch.cat([near, others.flatten(1)], dim=1)
        chosen = torch.cat([kept, (theirs & joins[..., None]).flatten(1)], dim=1)
        keys.append((rows[:, None].to(near.device) * size + members)[chosen].unique())
    key = torch.cat(keys)
    return key // size, key % size


def _is_mutual(nearest: Tensor) -> Tensor:
    """Return (N, K) bool, True if the row is among its neighbour's nearest as well."""
    own = torch.arange(len(nearest), device=nearest.device)[:, None, None]
    parts = _split_rows(slice(0, len(nearest)), nearest.shape[1] ** 2)
    return torch.cat([(nearest[nearest[rows]] == own[rows]).any(2) for rows in parts])


def _split_rows(rows: slice, items_per_row: int) -> tuple[Tensor, ...]:
    return torch.arange(rows.start, rows.stop).split(max(1, ITEMS // items_per_row))


def split_items(count: Tensor) -> list[slice]:
    """Cut lists with `count` (L,) items each into slices of about ITEMS items."""
    ends = torch.bincount(count.cumsum(0) // ITEMS).cumsum(0).tolist()
    return [slice(begin, end) for begin, end in itertools.pairwise([0, *ends]) if end > begin]


def weigh(nodes: Tensor, row: Tensor, member: Tensor, farthest: Tensor, one: float) -> Tensor:
    """Return the weights exp(-d) (M,) of the members of each set, scaled to a sum of `one`."""
    # Members need not be neighbours, so their distances are computed again. All go into one array: a list of small
    # results would fragment the memory between the large temporary ones.
    weights = torch.empty(len(row), dtype=torch.float64, device=nodes.device)
    step = max(1, FLOATS // nodes.shape[1])
    for i in range(0, len(row), step):
        r, m = row[i : i + step], member[i : i + step]
        distances = nodes[r].sub_(nodes[m]).square_().sum(1)
        weights[i : i + step] = (-distances / farthest[r]).exp()
    totals = weights.new_zeros(len(nodes)).index_add_(0, row, weights)
    return (weights / totals[row] * one).round().int()


def average(sets: Sparse, nearest: Tensor, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Return row, column and value (M,) of the sum of the rows of the nearest (N, k2) of each node of `part`; the
    weights of a row add up to 1 / k2."""
    size = len(nearest)
    keys, values = [nearest[:0, 0]], [sets.value[:0]]
    for rows in split_items(sets.count[nearest[part]].sum(1)):
        near = nearest[part][rows].flatten()
        of, place = expand_ranges(sets.begin[near], sets.count[near])
        row = of // nearest.shape[1] + rows.start + part.start
        key, group = (row * size + sets.column[place]).unique(return_inverse=True)
        keys.append(key)
        values.append(torch.zeros_like(key).scatter_add_(0, group, sets.value[place].long()).int())
    key = torch.cat(keys)
    return key // size, key % size, torch.cat(values)
