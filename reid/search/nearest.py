"""Exact search in an index: the nearest images, or the nearest identities by their centroids, by cosine similarity.

Features are read once, in slices, straight from the file: beside them only scores of one slice are in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reid.metrics.features import UNKNOWN
from reid.metrics.scores import METRICS, best_of_scores, cut, join_best, squared_norms
from reid.precision import exact_products
from reid.search.index import Index, add_up

GALLERIES = ("images", "centroids")
QUERIES = 256  # scored together: a slice has at most 65,536 entries, 64 MiB of scores


@dataclass(frozen=True)
class Hit:
    """row: the entry, or the first of its identity's; score: cosine; images: how many the centroid is the mean of."""

    row: int
    score: float
    images: int = 1


def search(index: Index, queries: np.ndarray, k: int, gallery: str = "images", without: str = "") -> list[list[Hit]]:
    """The k nearest of each query (Q, D), best first, equal scores in the index's order; fewer where there are fewer.

    gallery: images; or centroids, one per identity, where images of nobody known stand alone. without: a camera whose
    images are left out (of centroids, too), as the one that the queries come from. ValueError names what is unknown.
    """
    if k < 1:
        raise ValueError(f"k is {k}; give at least 1")
    if gallery not in GALLERIES:
        raise ValueError(f"unknown gallery {gallery!r}; known: {', '.join(GALLERIES)}")
    if without and without not in index.meta.cameras:
        known = ", ".join(index.meta.cameras[:20]) or "none"
        raise ValueError(f"{index.folder} has no camera {without!r}; it has: {known}")
    seen = np.ones(len(index), dtype=bool)
    if without:
        seen = index.camids != index.meta.cameras.index(without)
    asked = torch.nn.functional.normalize(torch.from_numpy(np.asarray(queries, np.float32)))
    if gallery == "images":
        return _search_images(index, asked, k, seen)
    alone = _search_images(index, asked, k, seen & (index.pids == UNKNOWN))
    together = _search_centroids(index, asked, k, seen)
    return [sorted(a + b, key=lambda hit: (-hit.score, hit.row))[:k] for a, b in zip(alone, together, strict=True)]


def _search_images(index: Index, queries: Tensor, k: int, seen: np.ndarray) -> list[list[Hit]]:
    entries, squares = torch.from_numpy(index.features), torch.from_numpy(index.squares)
    found = _nearest(entries, squares, queries, k, torch.from_numpy(seen))
    return [[Hit(row, score) for row, score in hits] for hits in found]


def _search_centroids(index: Index, queries: Tensor, k: int, seen: np.ndarray) -> list[list[Hit]]:
    sums, counts = index.sums()
    if not seen.all():
        add_up(sums, counts, index.features, index.pids, np.flatnonzero(~seen), sign=-1)
    means = torch.from_numpy((sums / np.maximum(counts, 1)[:, None]).astype(np.float32))
    found = _nearest(means, squared_norms(means), queries, k, torch.from_numpy(counts > 0))
    return [
        [Hit(int(np.argmax(seen & (index.pids == pid))), score, int(counts[pid])) for pid, score in hits]
        for hits in found
    ]


def _nearest(entries: Tensor, squares: Tensor, queries: Tensor, k: int, seen: Tensor) -> list[list[tuple[int, float]]]:
    """The k best (row, score) of the entries (N, D) that are `seen` (N,), for each of the queries (Q, D)."""
    if not seen.any():
        return [[] for _ in queries]
    vectors = METRICS["cosine"](entries, squares)
    blocks = queries.split(QUERIES)
    best: list[list[tuple[Tensor, Tensor]]] = [[] for _ in blocks]
    with exact_products(queries.device):
        for part in cut(len(entries)):
            for block, found in zip(blocks, best, strict=True):
                scores = vectors.scores(block, part)
                scores[:, ~seen[part]] = -torch.inf
                found[:] = [join_best([*found, best_of_scores(scores, k, part.start)], k)]
    rows = torch.cat([found[0][0] for found in best]).tolist()
    values = torch.cat([found[0][1] for found in best]).tolist()
    return [
        [(row, score) for row, score in zip(*hits, strict=True) if score > -torch.inf]
        for hits in zip(rows, values, strict=True)
    ]
