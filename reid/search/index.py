"""An index: features of many images on disk, bound to the model that computed them, and the exact search in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reid.metrics.features import UNKNOWN
from reid.metrics.norms import normalize, squared_norms
from reid.metrics.scores import SAFE_LENGTH, Vectors, best_of_scores, cosine_vectors, cut, join_best
from reid.precision import exact_products
from reid.search import GALLERIES
from reid.search.index_files import COLUMNS, ENTRIES, FEATURES, Source, checksums, lay_out, read_meta

QUERIES = 256  # scored together: a slice has at most 98,304 entries, 96 MiB of scores


@dataclass(frozen=True)
class Entry:
    """An image of an index; empty text means unknown. path: in the folder `source`; in shards, tar and member.
    place: in shards the image's place in the storage order of the split, else -1."""

    path: str
    identity: str = ""
    camera: str = ""
    time: str = ""
    place: int = -1
    source: Source = field(default_factory=lambda: Source(""))


@dataclass(frozen=True)
class Hit:
    """row: the entry, or the first one of an identity. score: cosine. images: how many the centroid is the mean of."""

    row: int
    score: float
    images: int = 1


class Gallery(NamedTuple):
    """C vectors to rank. rows (C,): the first entry of each. images (C,): how many entries it is the mean of."""

    rows: np.ndarray
    images: np.ndarray
    vectors: Vectors


class Index:
    """The entries of an index as they are when it is opened; later appends do not show."""

    def __init__(self, folder: str | Path) -> None:
        """Raises ValueError if the folder is not an index, is damaged or has another version."""
        self.folder = Path(folder)
        self.meta = read_meta(self.folder)
        self.columns = {name: self._map(name) for name in COLUMNS}
        self.features, self.squares, self.pids, self.camids, self._ends, self._text = self.columns.values()
        self._centroids: dict[str, Gallery] = {}
        self._unchecked = [FEATURES, "squares.npy"]  # until the first search
        for name in COLUMNS:
            if name not in self._unchecked:
                self._check(name)
        self._check_numbers()

    def __len__(self) -> int:
        return self.meta.count

    def _map(self, name: str) -> np.ndarray:
        """Map a column, copy-on-write: torch requires writable memory, and the file must not change."""
        path, (header, shape, end) = self.folder / name, lay_out(name, self.meta)
        if not path.is_file() or path.stat().st_size < end:
            raise ValueError(f"{path} is missing or cut short: the index is damaged; make it again")
        if not self.meta.count:
            return np.empty(shape, self.meta.column_type(name))
        return np.memmap(path, self.meta.column_type(name), mode="c", offset=len(header), shape=shape)

    def _check(self, name: str) -> None:
        if self.meta.sums and checksums(self.columns[name]) != self.meta.sums[name]:
            raise ValueError(f"{self.folder / name}: its checksum is wrong: the index is damaged; make it again")

    def check_features(self) -> None:
        """Raise ValueError if features are damaged. Reads all of them, the first time."""
        while self._unchecked:
            self._check(self._unchecked[-1])
            self._unchecked.pop()

    def _check_numbers(self) -> None:
        """Raise ValueError on numbers that no writer writes: version 1 has no checksums, and a file may be forged."""
        known = {"pids.npy": len(self.meta.identities), "camids.npy": len(self.meta.cameras)}
        for name, number in known.items():
            column = self.columns[name]
            if len(column) and not UNKNOWN <= column.min() <= column.max() < number:
                raise ValueError(f"{self.folder / name} holds numbers outside {UNKNOWN} to {number - 1}; make it again")
        lengths = np.diff(self._ends, prepend=0)
        if (lengths <= 0).any() or lengths.sum() != self.meta.text_bytes:
            raise ValueError(f"{self.folder / 'ends.npy'} does not fit {ENTRIES}: the index is damaged; make it again")

    def entry(self, row: int) -> Entry:
        begin, end = int(self._ends[row - 1]) if row else 0, int(self._ends[row])
        pid, camid = int(self.pids[row]), int(self.camids[row])
        try:
            read = json.loads(self._text[begin:end].tobytes())
            path, time, place, source = (read[name] for name in ("path", "time", "place", "source"))
            if [type(value) for value in (path, time, place, source)] != [str, str, int, int] or source < 0:
                raise TypeError(f"{read}"[:200])
            identity = "" if pid == UNKNOWN else self.meta.identities[pid]
            camera = "" if camid == UNKNOWN else self.meta.cameras[camid]
            return Entry(path, identity, camera, time, place, self.meta.sources[source])
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise ValueError(f"{self.folder / ENTRIES}: entry {row} is damaged ({error!r}); make it again") from error

    def entries(self) -> Iterator[Entry]:
        return map(self.entry, range(len(self)))

    def search(self, queries: np.ndarray, k: int, gallery: str = "images", without: str = "") -> list[list[Hit]]:
        """Find the k entries nearest to each of the features (Q, D), by cosine similarity; every entry is compared.

        gallery: "images"; or "centroids", one mean per identity, and each image without an identity by itself.
        without: a camera whose images are left out, also from centroids; "" leaves out none.
        Returns the hits of each query, best first, equal scores in the order of the index.
        """
        if k < 1:
            raise ValueError(f"k is {k}; give at least 1")
        if gallery not in GALLERIES:
            raise ValueError(f"unknown gallery {gallery!r}; known: {', '.join(GALLERIES)}")
        asked = torch.from_numpy(np.asarray(queries, np.float32))
        if asked.shape[1:] != (self.meta.dim,) or not asked.isfinite().all():
            raise ValueError(f"queries {tuple(asked.shape)}; give finite features (queries, {self.meta.dim})")
        self.check_features()
        unit = normalize(asked) * SAFE_LENGTH
        vectors = cosine_vectors(torch.from_numpy(self.features), torch.from_numpy(self.squares))
        images = Gallery(np.arange(len(self)), np.ones(len(self), np.int64), vectors)
        kept = self.kept(without)
        if gallery == "images":
            return _nearest(images, unit, k, kept)
        unknown = _nearest(images, unit, k, kept & (self.pids == UNKNOWN))
        centroids = self.centroids(without)
        means = _nearest(centroids, unit, k, centroids.images > 0)
        return [sorted(a + b, key=lambda hit: (-hit.score, hit.row))[:k] for a, b in zip(unknown, means, strict=True)]

    def centroids(self, without: str = "") -> Gallery:
        """Average the features of each identity; the centroids of the last `without` stay in memory."""
        if without not in self._centroids:
            entries = np.flatnonzero(self.kept(without) & (self.pids != UNKNOWN))
            entries = entries[np.argsort(self.pids[entries], kind="stable")]
            _, first, images = np.unique(self.pids[entries], return_index=True, return_counts=True)
            features, means = np.asarray(self.features), np.empty((len(first), self.meta.dim), np.float32)
            # Not strict: without any identity, split returns one empty part.
            for mean, rows in zip(means, np.split(entries, first[1:]), strict=False):
                mean[:] = features[rows].sum(0, dtype=np.float64) / len(rows)
            vectors = cosine_vectors(torch.from_numpy(means), squared_norms(torch.from_numpy(means)))
            self._centroids = {without: Gallery(entries[first], images, vectors)}
        return self._centroids[without]

    def kept(self, without: str) -> np.ndarray:
        """Return (N,) bool: which entries another camera took. Raises ValueError if the camera is unknown."""
        if not without:
            return np.ones(len(self), dtype=bool)
        if without not in self.meta.cameras:
            known = (
                f"it has: {', '.join(self.meta.cameras[:20])}" if self.meta.cameras else "no image of it has a camera"
            )
            raise ValueError(f"{self.folder} has no camera {without!r}; {known}")
        return np.asarray(self.camids != self.meta.cameras.index(without))


def _nearest(gallery: Gallery, queries: Tensor, k: int, kept: np.ndarray) -> list[list[Hit]]:
    """Return the k best of the vectors that are `kept` (C,), for each of the queries (Q, D)."""
    if not kept.any():
        return [[] for _ in queries]
    blocks = queries.split(QUERIES)
    best: list[list[tuple[Tensor, Tensor]]] = [[] for _ in blocks]
    with exact_products(queries.device):
        for part in cut(len(kept)):  # the outer loop, so that features are read from disk once
            left_out = torch.from_numpy(~kept[part])
            for block, found in zip(blocks, best, strict=True):
                scores = gallery.vectors.scores(block, part)
                scores[:, left_out] = -torch.inf
                found[:] = [join_best([*found, best_of_scores(scores, k, part.start)], k)]
    places, values = (torch.cat(column).tolist() for column in zip(*(found[0] for found in best), strict=True))
    return [
        [Hit(int(gallery.rows[i]), score, int(gallery.images[i])) for i, score in hits if score > -torch.inf]
        for hits in map(zip, places, values)
    ]
