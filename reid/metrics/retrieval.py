"""How well a ranking finds its matches: CMC, mAP and mINP.

Queries without a possible match are counted and left out. mAP is the step-wise average precision; the trapezoid of the
Market-1501 authors' script stands beside it. `centroid` and `centroid_all` have one relevant entry a query, so their
mAP is the mean reciprocal rank: never comparable with the image protocol's.
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reid.metrics import bootstrap, ranking
from reid.metrics.features import JUNK, UNKNOWN, Features
from reid.precision import exact_products

PER_QUERY = ("valid", "ap", "ap_trapezoid", "inp", "first_ranks")
KEPT = (*PER_QUERY, "cmc", "gallery_size", "dimension", "own")  # what a file holds; the means follow from it


@dataclass(frozen=True)
class Result:
    """Figures of one protocol, from per-query values (V valid queries, in query order), so that results can be merged.

    cmc (max_rank,): share of valid queries with a match at rank <= i + 1, flat beyond the gallery's size.
    ap, ap_trapezoid, inp, first_ranks (V,): step-wise average precision, its trapezoid variant, matches / rank of the
    last match, 1-based rank of the first match. valid (Q,) bool. gallery_size: entries before per-query removal, of
    `dimension` numbers each. own (N, 2): identity and camera of each centroid that is searched besides the listed ones,
    the identity's without the camera.
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
    dimension: int
    own: np.ndarray

    @property
    def num_valid_queries(self) -> int:
        return int(self.valid.sum())

    @property
    def gallery_bytes(self) -> int:
        """Float32 bytes of all that is searched: the entries and the queries' own centroids."""
        return 4 * self.dimension * (self.gallery_size + len(self.own))

    @property
    def comparisons(self) -> int:
        """Similarities between a query and an entry; a query's own centroid takes its identity's place."""
        return len(self.valid) * self.gallery_size

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95% bootstrap intervals over the queries of `mAP`, `rank1` and `mINP`; NaN without a valid query."""
        names = ("mAP", "rank1", "mINP")
        if not len(self.ap):
            return dict.fromkeys(names, (np.nan, np.nan))
        ends = bootstrap.intervals(np.stack([self.ap, self.first_ranks == 1, self.inp], axis=1))
        return {name: (float(low), float(high)) for name, (low, high) in zip(names, ends, strict=True)}

    def cmc_at(self, ranks: Sequence[int]) -> dict[int, float]:
        """CMC at any ranks, those beyond max_rank and the gallery's size too. ValueError on a rank below 1."""
        if any(rank < 1 for rank in ranks):
            raise ValueError(f"ranks are {list(ranks)}; the first rank is 1")
        count = len(self.first_ranks)
        return {rank: float((self.first_ranks <= rank).sum() / count) if count else np.nan for rank in ranks}

    def to_json(self) -> dict:
        """What metrics.json keeps: the figures without the per-query arrays."""
        return {
            "mAP": self.mAP,
            "mAP_trapezoid": self.mAP_trapezoid,
            "mINP": self.mINP,
            "cmc": [float(share) for share in self.cmc],
            **{f"{name}_interval": list(ends) for name, ends in self.intervals.items()},
            "num_valid_queries": self.num_valid_queries,
            "num_queries": len(self.valid),
            "gallery_size": self.gallery_size,
            "gallery_bytes": self.gallery_bytes,
            "comparisons": self.comparisons,
            "dimension": self.dimension,
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

    protocol: a key of PROTOCOLS. metric: `cosine` (normalised after any averaging) or `euclidean` (raw
    features). partial: `query` is one process's slice of the queries (Features.take), perhaps an empty one; a slice
    without a valid query is then no error and its means are NaN until `merge`.
    Scores are float32; ties are equal float32 scores. Errors: ValueError on bad input or where no query can match.
    """
    _check_max_rank(max_rank)
    if partial and protocol == "ctl_published" and query.whole is None:
        raise ValueError("ctl_published depends on every query; cut the slice with Features.take, which keeps the rest")
    result = evaluate_search(ranking.Search(query, gallery, protocol, metric, partial), max_rank)
    return result if partial else require_valid(result)


def evaluate_search(search: ranking.Search, max_rank: int = 50) -> Result:
    """Summarise where the matches of any search stand; means are NaN where no query is valid."""
    _check_max_rank(max_rank)
    count, dimension = search.query.embeddings.shape
    with torch.no_grad(), exact_products(search.device):
        parts = [_summarise(*ranking.rank_matches(search, i)) for i in range(0, count, ranking.QUERY_BLOCK)]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] or [np.empty(0)] * 5
    return _result(columns, len(search.gallery), dimension, _own(search), max_rank)


def _check_max_rank(max_rank: int) -> None:
    if max_rank < 1:
        raise ValueError(f"max_rank is {max_rank}; give at least 1")


def merge(results: Sequence[Result]) -> Result:
    """One result from those of consecutive slices of the queries.

    Equal to the last digit to the result of the whole, if every process computes with as many threads.
    """
    sizes = [(result.gallery_size, result.dimension, len(result.cmc)) for result in results]
    if len(set(sizes)) != 1:
        raise ValueError(
            f"merge needs results of one gallery and one max_rank; got (gallery, dimension, max_rank) {sizes}"
        )
    columns = [np.concatenate([getattr(result, name) for result in results]) for name in PER_QUERY]
    gallery_size, dimension, max_rank = sizes[0]
    # Slices share centroids: queries of one identity and camera may stand in several.
    own = np.unique(np.concatenate([result.own for result in results]), axis=0)
    return require_valid(_result(columns, gallery_size, dimension, own, max_rank))


def missing_identities(query: Features, gallery: Features) -> int:
    """How many identities of the queries have no image in the gallery, under any camera."""
    asked, held = (split.pids[(split.pids != JUNK) & ~split.is_distractor()] for split in (query, gallery))
    return int((~torch.isin(asked.unique(), held)).sum())


def save_results(path: Path | str, results: Mapping[str, Result]) -> None:
    """Write results by protocol into one .npz, per query, so that runs can be compared query by query."""
    arrays = {
        f"{protocol}/{name}": np.asarray(getattr(result, name)) for protocol, result in results.items() for name in KEPT
    }
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # the stub takes the arrays for `allow_pickle`


def load_results(path: Path | str) -> dict[str, Result]:
    """What `save_results` wrote, equal to the last digit. ValueError where the file holds something else."""
    results = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for protocol in dict.fromkeys(name.rpartition("/")[0] for name in arrays.files):
                results[protocol] = _rebuild({name: arrays[f"{protocol}/{name}"] for name in KEPT})
    except (AttributeError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} does not hold results: {error}; evaluate the run again to write them") from error
    return results


def _rebuild(kept: dict[str, np.ndarray]) -> Result:
    columns = [kept[name] for name in PER_QUERY]
    return _result(columns, int(kept["gallery_size"]), int(kept["dimension"]), kept["own"], len(kept["cmc"]))


def _own(search: ranking.Search) -> np.ndarray:
    """Result.own, of the queries searched."""
    has_own = search.gallery.own_of >= 0
    return torch.stack([search.query.pids, search.query.camids], dim=1)[has_own].unique(dim=0).cpu().numpy()


def _summarise(ranks: Tensor, count: Tensor) -> tuple[np.ndarray, ...]:
    """valid (B,), and for the V valid queries AP, trapezoid AP, INP and first rank, from ascending ranks (B, P).

    AP = mean over matches i of i / rank_i. The trapezoid takes, instead of that precision, its mean with the precision
    one rank earlier, (i - 1) / (rank_i - 1), or 1 at the first rank, as the Market-1501 authors' script does.
    """
    valid = count.cpu().numpy() > 0
    # The padding behind a query's matches may hold anything; at least 1 keeps the division quiet.
    rank, number = np.maximum(ranks.cpu().numpy()[valid], 1).astype(float), count.cpu().numpy()[valid]
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


def _result(columns: Sequence[np.ndarray], gallery_size: int, dimension: int, own: np.ndarray, max_rank: int) -> Result:
    valid, ap, ap_trapezoid, inp, first_ranks = columns
    first_ranks = first_ranks.astype(np.int64)
    hits = np.bincount(first_ranks[first_ranks <= max_rank], minlength=max_rank + 1)[1:]
    mean_ap, mean_trapezoid, mean_inp = (float(x.mean()) if len(x) else np.nan for x in (ap, ap_trapezoid, inp))
    cmc = hits.cumsum() / len(ap) if len(ap) else np.full(max_rank, np.nan)
    return Result(
        cmc,
        mean_ap,
        mean_trapezoid,
        mean_inp,
        ap,
        ap_trapezoid,
        inp,
        first_ranks,
        valid.astype(bool),
        gallery_size,
        dimension,
        own,
    )


def require_valid(result: Result) -> Result:
    """The result itself. ValueError if no query of it can match."""
    if not result.num_valid_queries:
        raise ValueError(
            f"none of the {len(result.valid)} queries has a possible match among the {result.gallery_size} gallery "
            f"entries; check that both splits number identities alike, and cameras: a match needs another camera than "
            f"the query's, or camid {UNKNOWN} where cameras are unknown"
        )
    return result
