"""What a model finds hard: the queries of lowest AP, and the pairs of identities that it takes for each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reid import metrics
from reid.metrics.features import Features
from reid.metrics.retrieval import Result
from reid.reports.rank_lists import Labels, RankedImage

HARD_QUERIES = 20
CONFUSED_PAIRS = 10
DEPTH = 50  # results of a query that are searched for identities before its first match


@dataclass(frozen=True)
class HardQuery:
    """A query of low AP.

    first_rank: of its first match, from 1.
    wrong: the best entry of another identity, and its score; None if there is none.
    """

    query: RankedImage
    ap: float
    first_rank: int
    wrong: RankedImage | None
    score: float

    @property
    def entries(self) -> list[RankedImage]:
        return [entry for entry in (self.query, self.wrong) if entry]

    def to_json(self) -> dict[str, Any]:
        wrong = self.wrong and {
            "file": self.wrong.name, "image": self.wrong.caption, "row": self.wrong.row, "score": self.score,
        }  # fmt: skip
        return {
            "file": self.query.name,
            "image": self.query.caption,
            "row": self.query.row,
            "ap": self.ap,
            "first_match_rank": self.first_rank,
            "best_wrong": wrong,
        }


def choose_hard_queries(query: Features, gallery: Features, result: Result, metric: str) -> list[HardQuery]:
    """Return the queries of lowest AP, the worst first, without their images. result: of the image protocol."""
    order = np.argsort(result.ap, kind="stable")[:HARD_QUERIES]
    rows = np.flatnonzero(result.valid)[order]
    query_labels, gallery_labels = Labels("query", query), Labels("gallery", gallery)
    same = [int(((gallery_labels.pids == query_labels.pids[row]) & ~gallery_labels.distractors).sum()) for row in rows]
    k = min(max(same) + 1, len(gallery))  # one of them is of another identity
    indices, scores = metrics.top_k(query.take(torch.from_numpy(rows)), gallery, k, "image", metric)
    hard = []
    for i, row, found, of_found in zip(order, rows, indices.numpy(), scores.numpy(), strict=True):
        others = (found >= 0) & (
            (gallery_labels.pids[found] != query_labels.pids[row]) | gallery_labels.distractors[found]
        )
        best = int(others.argmax()) if others.any() else None
        wrong = None if best is None else gallery_labels.show(int(found[best]), False)
        score = float("nan") if best is None else float(of_found[best])
        shown = query_labels.show(int(row), True)
        hard.append(HardQuery(shown, float(result.ap[i]), int(result.first_ranks[i]), wrong, score))
    return hard


@dataclass(frozen=True)
class Confusion:
    """Queries of one identity, `pid`, that have an image of another, `other`, before their first match.

    queries: their number, of `of_queries` that can match.
    query, wrong: the example of highest score, with the rank of the wrong entry.
    """

    pid: int
    other: int
    queries: int
    of_queries: int
    query: RankedImage
    wrong: RankedImage
    rank: int
    score: float

    @property
    def entries(self) -> list[RankedImage]:
        return [self.query, self.wrong]

    def to_json(self) -> dict[str, Any]:
        return {
            "pid": self.pid,
            "taken_for_pid": self.other,
            "queries": self.queries,
            "of_queries": self.of_queries,
            "example": {"query": self.query.name, "result": self.wrong.name, "rank": self.rank, "score": self.score},
        }


def find_confusions(query: Features, gallery: Features, result: Result, metric: str) -> list[Confusion]:
    """Return the pairs of identities that are confused by most queries, without their images.

    Distractors are of no identity and left out. The first DEPTH results of a query are searched.

    result: of the image protocol.
    """
    query_labels, gallery_labels = Labels("query", query), Labels("gallery", gallery)
    rows, late = np.flatnonzero(result.valid), result.first_ranks > 1
    pids, number = np.unique(query_labels.pids[rows], return_counts=True)
    of_queries = dict(zip(pids.tolist(), number.tolist(), strict=True))
    rows, first_ranks = rows[late], result.first_ranks[late]
    if not len(rows):
        return []
    k = min(int(first_ranks.max()) - 1, DEPTH)
    part = query.take(torch.from_numpy(rows))
    indices, scores = (table.numpy() for table in metrics.top_k(part, gallery, k, "image", metric))
    before = (indices >= 0) & (np.arange(k) < first_ranks[:, None] - 1) & ~gallery_labels.distractors[indices]
    best: dict[tuple[int, int], list[tuple[float, int, int]]] = {}  # of two pids: score, query and place, per query
    for i, place in _first_of_each(np.where(before, gallery_labels.pids[indices], -1)):
        pair = int(query_labels.pids[rows[i]]), int(gallery_labels.pids[indices[i, place]])
        best.setdefault(pair, []).append((float(scores[i, place]), i, place))
    ranked = sorted(best.items(), key=lambda item: (-len(item[1]), -max(item[1])[0], item[0]))
    confusions = []
    for (pid, other), found in ranked[:CONFUSED_PAIRS]:
        score, i, place = max(found, key=lambda each: each[0])
        example = query_labels.show(int(rows[i]), True), gallery_labels.show(int(indices[i, place]), False)
        confusions.append(Confusion(pid, other, len(found), of_queries[pid], *example, place + 1, score))
    return confusions


def _first_of_each(pids: np.ndarray) -> Sequence[tuple[int, int]]:
    """Return row and column of the first entry of each pid in each row of a table (Q, k); -1 is no entry."""
    query, place = np.nonzero(pids >= 0)
    _, first = np.unique(np.stack([query, pids[query, place]]), axis=1, return_index=True)
    return list(zip(query[first].tolist(), place[first].tolist(), strict=True))
