"""An index: features of many images on disk, bound to the model that computed them, and the exact search in them.

A folder of plain files. Columns of N entries are ordinary .npy files, mapped into memory, that only grow:
    features (N, D) float32, as the model returns them; squares (N,) float32, their squared norms; pids, camids (N,)
    int64, places in the lists of names in index.json, -1 = unknown; ends (N,) int64, where lines of entries.jsonl end
entries.jsonl has a line of JSON per entry, with its path and time. index.json is replaced last, in one step, and says
how much of each file counts: what a killed process wrote after that is ignored, and overwritten by the next append.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reid.metrics.features import UNKNOWN
from reid.metrics.scores import (
    SAFE_LENGTH,
    Vectors,
    best_of_scores,
    cosine_vectors,
    cut,
    join_best,
    normalize,
    squared_norms,
)
from reid.precision import exact_products
from reid.search import GALLERIES

FORMAT = 1
META, ENTRIES = "index.json", "entries.jsonl"
COLUMNS: dict[str, type[np.generic]] = {
    "features.npy": np.float32,
    "squares.npy": np.float32,
    "pids.npy": np.int64,
    "camids.npy": np.int64,
    "ends.npy": np.int64,
    ENTRIES: np.uint8,
}
QUERIES = 256  # scored together: a slice has at most 65,536 entries, 64 MiB of scores


@dataclass(frozen=True)
class Source:
    """A folder of images, or a split of a folder (or URL) of shards; `split` is empty for the first."""

    root: str
    split: str = ""


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
class Meta:
    """index.json. fingerprint: of the model (Embedder.fingerprint). checkpoint: its folder, empty if unknown.
    size: (height, width) of its images. count: entries. text_bytes: length of entries.jsonl."""

    fingerprint: str
    dim: int
    size: tuple[int, int]
    checkpoint: str = ""
    count: int = 0
    text_bytes: int = 0
    sources: tuple[Source, ...] = ()
    identities: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()


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
        self.features, self.squares, self.pids, self.camids, self._ends, self._text = map(self._map, COLUMNS)
        self._centroids: dict[str, Gallery] = {}

    def __len__(self) -> int:
        return self.meta.count

    def _map(self, name: str) -> np.ndarray:
        """Map a column, copy-on-write: torch requires writable memory, and the file must not change."""
        path, (header, shape, end) = self.folder / name, lay_out(name, self.meta)
        if not path.is_file() or path.stat().st_size < end:
            raise ValueError(f"{path} is missing or cut short: the index is damaged; make it again")
        if not self.meta.count:
            return np.empty(shape, COLUMNS[name])
        return np.memmap(path, COLUMNS[name], mode="c", offset=len(header), shape=shape)

    def entry(self, row: int) -> Entry:
        begin, end = int(self._ends[row - 1]) if row else 0, int(self._ends[row])
        pid, camid = int(self.pids[row]), int(self.camids[row])
        try:
            read = json.loads(self._text[begin:end].tobytes())
            identity = "" if pid == UNKNOWN else self.meta.identities[pid]
            camera = "" if camid == UNKNOWN else self.meta.cameras[camid]
            source = self.meta.sources[read["source"]]
            return Entry(read["path"], identity, camera, read["time"], read["place"], source)
        except (ValueError, KeyError, IndexError, TypeError) as error:
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
        unit = normalize(torch.from_numpy(np.asarray(queries, np.float32))) * SAFE_LENGTH
        vectors = cosine_vectors(torch.from_numpy(self.features), torch.from_numpy(self.squares))
        images = Gallery(np.arange(len(self)), np.ones(len(self), np.int64), vectors)
        kept = self._kept(without)
        if gallery == "images":
            return _nearest(images, unit, k, kept)
        unknown = _nearest(images, unit, k, kept & (self.pids == UNKNOWN))
        centroids = self.centroids(without)
        means = _nearest(centroids, unit, k, centroids.images > 0)
        return [sorted(a + b, key=lambda hit: (-hit.score, hit.row))[:k] for a, b in zip(unknown, means, strict=True)]

    def centroids(self, without: str = "") -> Gallery:
        """Average the features of each identity; the centroids of the last `without` stay in memory."""
        if without not in self._centroids:
            entries = np.flatnonzero(self._kept(without) & (self.pids != UNKNOWN))
            entries = entries[np.argsort(self.pids[entries], kind="stable")]
            _, first, images = np.unique(self.pids[entries], return_index=True, return_counts=True)
            features, means = np.asarray(self.features), np.empty((len(first), self.meta.dim), np.float32)
            # Not strict: without any identity, split returns one empty part.
            for mean, rows in zip(means, np.split(entries, first[1:]), strict=False):
                mean[:] = features[rows].sum(0, dtype=np.float64) / len(rows)
            vectors = cosine_vectors(torch.from_numpy(means), squared_norms(torch.from_numpy(means)))
            self._centroids = {without: Gallery(entries[first], images, vectors)}
        return self._centroids[without]

    def _kept(self, without: str) -> np.ndarray:
        """(N,) bool: which entries another camera took. Raises ValueError if the camera is unknown."""
        if not without:
            return np.ones(len(self), dtype=bool)
        if without not in self.meta.cameras:
            known = ", ".join(self.meta.cameras[:20]) or "none"
            raise ValueError(f"{self.folder} has no camera {without!r}; it has: {known}")
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


def lay_out(name: str, meta: Meta) -> tuple[bytes, tuple[int, ...], int]:
    """Return the .npy header of a column, the shape of its array, and the byte of the file where the array ends."""
    if name == ENTRIES:
        return b"", (meta.text_bytes,), meta.text_bytes
    dtype, shape = np.dtype(COLUMNS[name]), (meta.count, meta.dim) if name == "features.npy" else (meta.count,)
    header = io.BytesIO()  # NumPy leaves room for the first axis to grow: as long for any number of entries
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue(), shape, header.tell() + dtype.itemsize * math.prod(shape)


def read_meta(folder: Path) -> Meta:
    path = folder / META
    if not path.is_file():
        raise ValueError(f"{folder} is not an index: it has no {META}; make one with `python -m reid.search index`")
    try:
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (version := read.pop("format")) == FORMAT:
            read.pop("generation", None)  # older programs numbered the files of centroid sums
            read["sources"] = tuple(Source(**source) for source in read["sources"])
            for name in ("size", "identities", "cameras"):
                read[name] = tuple(read[name])
            return Meta(**read)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); make the index again") from error
    raise ValueError(f"{path}: index version {version!r}, this program reads version {FORMAT}; index again")
