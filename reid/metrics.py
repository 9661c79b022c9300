"""How well a ranking finds its matches: CMC, mAP and mINP.

Queries without a possible match are counted and left out. mAP is the step-wise average precision; the trapezoid of the
Market-1501 authors' script stands beside it. Centroid protocols have one relevant entry a query, so their mAP is the
mean reciprocal rank: never comparable with the image protocol's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reid import ranking
from reid.gallery import UNKNOWN, Features
from reid.ranking import METRICS, top_k

__all__ = ["METRICS", "Features", "Result", "evaluate", "merge", "top_k"]


@dataclass(frozen=True)
class Result:
    """Figures of one protocol, from per-query values (V valid queries, in query order), so that results can be merged.

    cmc (max_rank,): share of valid queries with a match at rank <= i + 1, flat beyond the gallery's size.
    ap, ap_trapezoid, inp, first_ranks (V,): step-wise average precision, its trapezoid variant, matches / rank of the
    last match, 1-based rank of the first match. valid (Q,) bool. gallery_size: entries before per-query removal.
    """

    cmc: np.ndarray
    mAP: float
    mAP_trapezoid: float
    mINP: float
    ap: np.ndarray
    ap_trapezoid: np.ndarray
    inp: np.ndarray
    first_ranks: np.ndarray
    valid: np.ndarray
    gallery_size: int

    @property
    def num_valid_queries(self) -> int:
        return int(self.valid.sum())

    def to_json(self) -> dict:
        """What metrics.json keeps: the figures without the per-query arrays."""
        return {
            "mAP": self.mAP,
            "mAP_trapezoid": self.mAP_trapezoid,
            "mINP": self.mINP,
            "cmc": [float(share) for share in self.cmc],
            "num_valid_queries": self.num_valid_queries,
            "num_queries": len(self.valid),
            "gallery_size": self.gallery_size,
        }


def evaluate(
    query: Features,
    gallery: Features,
    protocol: str = "image",
    metric: str = "cosine",
    max_rank: int = 50,
    partial: bool = False,
) -> Result:
    """Rank the gallery for every query and summarise where the matches stand.

    protocol: `image`, `centroid` or `centroid_all` (reid.gallery). metric: `cosine` (normalised after any averaging)
    or `euclidean` (raw features). partial: `query` is one process's slice of the queries, perhaps an empty one; a slice
    without a valid query is then no error and its means are NaN until `merge`.
    Scores are float32; ties are equal float32 scores. Errors: ValueError on bad input or where no query can match.
    """
    if max_rank < 1:
        raise ValueError(f"max_rank is {max_rank}; give at least 1")
    search = ranking.Search(query, gallery, protocol, metric, partial)
    with torch.no_grad(), ranking.exact_products(search.device):
        parts = [_summarise(*ranking.rank_matches(search, i)) for i in range(0, len(query), ranking.QUERY_BLOCK)]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] or [np.empty(0)] * 5
    result = _result(columns, len(search.gallery), max_rank)
    if not partial:
        _require_valid(result)
    return result


def merge(results: Sequence[Result]) -> Result:
    """One result from those of consecutive slices of the queries.

    Equal to the last digit to the result of the whole, if every process computes with as many threads.
    """
    if len({(result.gallery_size, len(result.cmc)) for result in results}) != 1:
        sizes = [(result.gallery_size, len(result.cmc)) for result in results]
        raise ValueError(f"merge needs results of one gallery and one max_rank; got (gallery, max_rank) {sizes}")
    names = ("valid", "ap", "ap_trapezoid", "inp", "first_ranks")
    columns = [np.concatenate([getattr(result, name) for result in results]) for name in names]
    return _require_valid(_result(columns, results[0].gallery_size, len(results[0].cmc)))


def _summarise(ranks: Tensor, count: Tensor) -> tuple[np.ndarray, ...]:
    """valid (B,), and for the V valid queries AP, trapezoid AP, INP and first rank, from ascending ranks (B, P).

    AP = mean over matches i of i / rank_i. The trapezoid takes, instead of that precision, its mean with the precision
    one rank earlier, (i - 1) / (rank_i - 1), or 1 at the first rank, as the Market-1501 authors' script does.
    """
    valid = count.cpu().numpy() > 0
    rank, number = ranks.cpu().numpy()[valid].astype(float), count.cpu().numpy()[valid]
    if not len(rank):
        return valid, *(np.empty(0) for _ in range(4))
    nth = np.arange(1, rank.shape[1] + 1)
    precision = nth / rank
    before = np.where(rank > 1, (nth - 1) / np.maximum(rank - 1, 1), 1.0)

    def mean(values: np.ndarray) -> np.ndarray:
        # Adds from left to right: the padding, which differs from block to block, then never moves the last digit.
        return np.where(nth <= number[:, None], values, 0).cumsum(axis=1)[:, -1] / number

    last = rank[np.arange(len(rank)), number - 1]
    return valid, mean(precision), mean((precision + before) / 2), number / last, rank[:, 0]


def _result(columns: Sequence[np.ndarray], gallery_size: int, max_rank: int) -> Result:
    valid, ap, ap_trapezoid, inp, first_ranks = columns
    first_ranks = first_ranks.astype(np.int64)
    hits = np.bincount(first_ranks[first_ranks <= max_rank], minlength=max_rank + 1)[1:]
    mean_ap, mean_trapezoid, mean_inp = (float(x.mean()) if len(x) else np.nan for x in (ap, ap_trapezoid, inp))
    cmc = hits.cumsum() / len(ap) if len(ap) else np.full(max_rank, np.nan)
    return Result(
        cmc, mean_ap, mean_trapezoid, mean_inp, ap, ap_trapezoid, inp, first_ranks, valid.astype(bool), gallery_size
    )


def _require_valid(result: Result) -> Result:
    if not result.num_valid_queries:
        raise ValueError(
            f"none of the {len(result.valid)} queries has a possible match among the {result.gallery_size} gallery "
            f"entries; check that both splits number identities alike, and cameras: a match needs another camera than "
            f"the query's, or camid {UNKNOWN} where cameras are unknown"
        )
    return result
