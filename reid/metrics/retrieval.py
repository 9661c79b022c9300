"""Metrics of a ranking: CMC, mAP and mINP.

Queries without a possible match are counted and left out. mAP is the mean of the step-wise average precision;
`mAP_trapezoid` is the variant of the Market-1501 authors' script. Under `centroid` and `centroid_all` a query has one
relevant entry, so mAP is the mean reciprocal rank: it does not compare with the image protocol's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reid.metrics import bootstrap, ranking
from reid.metrics.array_files import load_arrays, save_arrays
from reid.metrics.features import JUNK, UNKNOWN, Features
from reid.precision import exact_products

PER_QUERY = ("valid", "ap", "ap_trapezoid", "inp", "first_ranks")
KEPT = (*PER_QUERY, "cmc", "gallery_size", "dimension", "own")  # what a file holds


@dataclass(frozen=True)
class Result:
    """Metrics of one protocol, from values per query, so that results of slices of the queries can be merged.

    Without a valid query every mean is NaN.

    Attributes:
        valid: (Q,) bool, True for a query with a possible match. V of them are valid.
        ap, ap_trapezoid: (V,) step-wise average precision, and its trapezoid variant.
        inp: (V,) number of matches / rank of the last match.
        first_ranks: (V,) int64, 1-based rank of the first match.
        gallery_size: entries, before any is removed for a query.
        dimension: numbers per entry.
        own: (N, 2) identity and camera of each centroid that is searched besides the entries: the identity's mean
            without the camera.
        max_rank: length of `cmc`.
    """

    valid: np.ndarray
    ap: np.ndarray
    ap_trapezoid: np.ndarray
    inp: np.ndarray
    first_ranks: np.ndarray
    gallery_size: int
    dimension: int
    own: np.ndarray
    max_rank: int

    @property
    def mAP(self) -> float:
        return _mean(self.ap)

    @property
    def mAP_trapezoid(self) -> float:
        return _mean(self.ap_trapezoid)

    @property
    def mINP(self) -> float:
        return _mean(self.inp)

    @cached_property
    def cmc(self) -> np.ndarray:
        """(max_rank,) share of valid queries with a match at rank <= i + 1; constant beyond the gallery's size."""
        hits = np.bincount(self.first_ranks[self.first_ranks <= self.max_rank], minlength=self.max_rank + 1)[1:]
        return hits.cumsum() / len(self.ap) if len(self.ap) else np.full(self.max_rank, np.nan)

    @property
    def num_valid_queries(self) -> int:
        return int(self.valid.sum())

    @property
    def gallery_bytes(self) -> int:
        """Bytes in float32 of the entries and the queries' own centroids."""
        return 4 * self.dimension * (self.gallery_size + len(self.own))

    @property
    def comparisons(self) -> int:
        """Number of similarities; a query's own centroid replaces its identity's entry."""
        return len(self.valid) * self.gallery_size

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95% bootstrap intervals of `mAP`, `rank1` and `mINP` over the queries."""
        names = ("mAP", "rank1", "mINP")
        if not len(self.ap):
            return dict.fromkeys(names, (np.nan, np.nan))
        ends = bootstrap.intervals(np.stack([self.ap, self.first_ranks == 1, self.inp], axis=1))
        return {name: (float(low), float(high)) for name, (low, high) in zip(names, ends, strict=True)}

    def to_json(self) -> dict:
        """Return the metrics without the arrays per query."""
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
    """Rank the gallery for every query and summarize where the matches are. Equal scores rank in gallery order.

    Args:
        query: Q queries.
        gallery: N images; junk is dropped, distractors are kept.
        protocol: a key of `reid.metrics.protocols.PROTOCOLS`.
        metric: `cosine` (features are normalized after any averaging) or `euclidean` (raw features).
        max_rank: length of the CMC.
        partial: `query` is one process's slice of the queries, from Features.take, possibly empty. Results of all
            slices are joined by `merge`.

    Raises:
        ValueError: on bad input, or if no query can match and `partial` is False.
    """
    if partial and protocol == "ctl_published" and query.taken_from is None:
        raise ValueError("ctl_published depends on every query; cut the slice with Features.take, which keeps the rest")
    return evaluate_search(ranking.Search(query, gallery, protocol, metric, partial), max_rank)


def evaluate_search(search: ranking.Search, max_rank: int = 50) -> Result:
    """Do `evaluate` for any search."""
    if max_rank < 1:
        raise ValueError(f"max_rank is {max_rank}; give at least 1")
    with torch.no_grad(), exact_products(search.device):
        ranked = [ranking.rank_matches(search, i) for i in range(0, len(search.query), ranking.QUERY_BLOCK)]
    parts = [_summarize(*part) for part in ranked or [(torch.empty(0, 0), torch.empty(0))]]
    has_own = search.gallery.own_of >= 0
    own = torch.stack([search.query.pids, search.query.camids], dim=1)[has_own].unique(dim=0).cpu().numpy()
    columns: dict[str, Any] = dict(zip(PER_QUERY, map(np.concatenate, zip(*parts, strict=True)), strict=True))
    columns |= {"gallery_size": len(search.gallery), "dimension": search.query.embeddings.shape[1], "own": own}
    result = Result(**columns, max_rank=max_rank)
    return result if search.partial else _require_valid(result)


def merge(results: Sequence[Result]) -> Result:
    """Join the results of consecutive slices of the queries.

    The result equals that of all queries at once to the last bit, if every process computes with as many threads.
    """
    sizes = [(result.gallery_size, result.dimension, result.max_rank) for result in results]
    if len(set(sizes)) != 1:
        raise ValueError(
            f"merge needs results of one gallery and one max_rank; got (gallery, dimension, max_rank) {sizes}"
        )
    columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in results]) for name in PER_QUERY}
    # Slices share centroids: queries of one identity and camera may be in several.
    own = np.unique(np.concatenate([result.own for result in results]), axis=0)
    return _require_valid(replace(results[0], **columns, own=own))


def missing_identities(query: Features, gallery: Features) -> int:
    """Count the identities of the queries that have no image in the gallery, by any camera."""
    asked, listed = (split.pids[(split.pids != JUNK) & ~split.is_distractor()] for split in (query, gallery))
    return int((~torch.isin(asked.unique(), listed)).sum())


def save_results(path: Path, results: Mapping[str, Result]) -> None:
    """Write the results by protocol into one .npz, with all values per query."""
    save_arrays(path, {f"{name}/{key}": getattr(result, key) for name, result in results.items() for key in KEPT})


def load_results(path: Path | str) -> dict[str, Result]:
    """Return what `save_results` wrote, equal to the last bit. Raises ValueError, with the path, on any other file."""
    results = {}
    try:
        arrays = load_arrays(Path(path))
        for protocol in dict.fromkeys(name.rpartition("/")[0] for name in arrays):
            kept: dict[str, Any] = {name: arrays[f"{protocol}/{name}"] for name in KEPT}
            _check_kept(kept)
            kept |= {name: int(kept[name]) for name in ("gallery_size", "dimension")}
            results[protocol] = Result(max_rank=len(kept.pop("cmc")), **kept)
    except (KeyError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path} does not hold results: {reason}; evaluate the run again to write them") from error
    return results


def _check_kept(kept: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError, which names the array, unless all have the types and shapes that `Result` describes."""
    valid = int(kept["valid"].sum()) if kept["valid"].dtype == bool else -1
    shapes = {
        "valid": ("b", kept["valid"].shape[:1]),
        **dict.fromkeys(("ap", "ap_trapezoid", "inp"), ("f", (valid,))),
        "first_ranks": ("i", (valid,)),
        "cmc": ("f", (max(1, kept["cmc"].size),)),
        **dict.fromkeys(("gallery_size", "dimension"), ("i", ())),
        "own": ("i", (len(kept["own"]) if kept["own"].ndim else 0, 2)),
    }
    for name, (kind, shape) in shapes.items():
        array = kept[name]
        if array.dtype.kind != kind or array.shape != shape:
            raise ValueError(f"{name} is {array.dtype} {array.shape}")
        if name in ("ap", "ap_trapezoid", "inp") and not ((array >= 0) & (array <= 1)).all():
            raise ValueError(f"{name} holds values outside 0 to 1")
        if name == "first_ranks" and not (array >= 1).all():
            raise ValueError(f"{name} holds ranks below 1")


def _summarize(ranks: Tensor, count: Tensor) -> tuple[np.ndarray, ...]:
    """Return the columns PER_QUERY from the matches' ascending ranks (B, P), of which the first `count` (B,) are real.

    AP is the mean over matches i of i / rank_i. The trapezoid takes, instead of that precision, its mean with the
    precision one rank earlier, (i - 1) / (rank_i - 1), or 1 at the first rank.
    """
    valid = count.cpu().numpy() > 0
    if not valid.any():
        return valid, *(np.empty(0) for _ in range(3)), np.empty(0, dtype=np.int64)
    # The padding after a query's matches may hold anything; at least 1 avoids a division by zero.
    rank, number = np.maximum(ranks.cpu().numpy()[valid], 1).astype(float), count.cpu().numpy()[valid]
    nth = np.arange(1, rank.shape[1] + 1)
    precision = nth / rank
    before = np.where(rank > 1, (nth - 1) / np.maximum(rank - 1, 1), 1.0)

    def mean(values: np.ndarray) -> np.ndarray:
        # Adds from left to right: the padding, which differs from block to block, then never changes the last bit.
        return np.where(nth <= number[:, None], values, 0).cumsum(axis=1)[:, -1] / number

    last = rank[np.arange(len(rank)), number - 1]
    return valid, mean(precision), mean((precision + before) / 2), number / last, rank[:, 0].astype(np.int64)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan


def _require_valid(result: Result) -> Result:
    """Return the result. Raises ValueError if no query of it can match."""
    if not result.num_valid_queries:
        raise ValueError(
            f"none of the {len(result.valid)} queries has a possible match among the {result.gallery_size} gallery "
            f"entries; check that both splits number identities alike, and cameras: a match needs another camera than "
            f"the query's. Where one camera took all images or cameras are unknown, leave the camera column empty "
            f"(camid {UNKNOWN})"
        )
    return result
