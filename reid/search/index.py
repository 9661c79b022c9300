"""An index: features of many images on disk, bound to the model that computed them, and the exact search in them.

A folder of plain files. Columns of N entries are ordinary .npy files, mapped into memory, that only grow:
    features (N, D) float32, as the model returns them; squares (N,) float32, their squared norms; pids, camids (N,)
    int64, places in the lists of names in index.json, -1 = unknown; ends (N,) int64, where lines of entries.jsonl end
entries.jsonl has a line of JSON per entry, with its path and time. index.json is replaced last, in one step, and says
how much of each file counts: what a killed process wrote after that is not part of the index, and the next append
overwrites it. Older programs also kept sums-*.npy and counts-*.npy, which nothing reads any more.
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
from reid.metrics.scores import METRICS, Vectors, best_of_scores, cut, join_best, squared_norms
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
    """An image of an index. Empty text means unknown.

    path: relative to the source's root; in shards the tar and the member. place: in shards the image's place in the
    storage order of the split, else -1.
    """

    path: str
    identity: str = ""
    camera: str = ""
    time: str = ""
    place: int = -1
    source: Source = field(default_factory=lambda: Source(""))

    @property
    def key(self) -> tuple[Source, str]:
        """What two entries of the same image have in common."""
        return self.source, self.path


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


class Centroids(NamedTuple):
    """rows (C,): the first entry of each identity. images (C,): how many it has. vectors: their means (C, D)."""

    rows: np.ndarray
    images: np.ndarray
    vectors: Vectors


class Index:
    """The entries of an index as they are when it is opened; later appends do not show."""

    def __init__(self, folder: str | Path) -> None:
        """Raises ValueError if the folder is not an index, is damaged or has another version."""
        self.folder = Path(folder)
        self.meta = read_meta(self.folder)
        columns = (self._map(name) for name in COLUMNS)
        self.features, self.squares, self.pids, self.camids, self._ends, self._text = columns
        self._centroids: dict[str, Centroids] = {}

    def __len__(self) -> int:
        return self.meta.count

    def _map(self, name: str) -> np.ndarray:
        """Map a column, copy-on-write: torch wants writable memory, and the file must not change."""
        path, layout = self.folder / name, lay_out(name, self.meta)
        if not path.is_file() or path.stat().st_size < layout.end:
            raise ValueError(f"{path} is missing or cut short: the index is damaged; make it again")
        if not self.meta.count:
            return np.empty(layout.shape, COLUMNS[name])
        return np.memmap(path, COLUMNS[name], mode="c", offset=len(layout.header), shape=layout.shape)

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

    def check_model(self, fingerprint: str, source: object) -> None:
        """Raise ValueError unless this model computed the features: those of two models cannot be compared."""
        if fingerprint != self.meta.fingerprint:
            raise ValueError(
                f"{self.folder} holds features of another model (fingerprint {self.meta.fingerprint[:12]}) than "
                f"{source} (fingerprint {fingerprint[:12]}); give the checkpoint it was made with, or index again"
            )

    def search(self, queries: np.ndarray, k: int, gallery: str = "images", without: str = "") -> list[list[Hit]]:
        """Find the k entries nearest to each query, by cosine similarity; every entry is compared.

        Args:
            queries: (Q, D) features.
            k: the number of hits; fewer if there are fewer entries.
            gallery: "images"; or "centroids", one mean per identity, and each image without an identity by itself.
            without: a camera whose images are left out, also from centroids; "" leaves out none.

        Returns:
            The hits of each query, best first, equal scores in the order of the index.
        """
        if k < 1:
            raise ValueError(f"k is {k}; give at least 1")
        if gallery not in GALLERIES:
            raise ValueError(f"unknown gallery {gallery!r}; known: {', '.join(GALLERIES)}")
        unit = torch.nn.functional.normalize(torch.from_numpy(np.asarray(queries, np.float32)))
        images = METRICS["cosine"](torch.from_numpy(self.features), torch.from_numpy(self.squares))
        kept = self._kept(without)
        if gallery == "images":
            return [[Hit(row, score) for row, score in hits] for hits in _nearest(images, unit, k, kept)]
        unknown = _nearest(images, unit, k, kept & (self.pids == UNKNOWN))
        centroids = self.centroids(without)
        means = _nearest(centroids.vectors, unit, k, np.ones(len(centroids.rows), dtype=bool))
        rows, counts = centroids.rows.tolist(), centroids.images.tolist()
        hits = [
            [*(Hit(row, score) for row, score in some), *(Hit(rows[i], score, counts[i]) for i, score in others)]
            for some, others in zip(unknown, means, strict=True)
        ]
        return [sorted(found, key=lambda hit: (-hit.score, hit.row))[:k] for found in hits]

    def centroids(self, without: str = "") -> Centroids:
        """Average the features of each identity; the centroids of the last `without` stay in memory."""
        if without not in self._centroids:
            entries = np.flatnonzero(self._kept(without) & (self.pids != UNKNOWN))
            entries = entries[np.argsort(self.pids[entries], kind="stable")]
            _, first, images = np.unique(self.pids[entries], return_index=True, return_counts=True)
            features, means = np.asarray(self.features), np.empty((len(first), self.meta.dim), np.float32)
            for mean, rows in zip(
                means, np.split(entries, first[1:]), strict=False
            ):  # one empty group if none is known
                mean[:] = features[rows].sum(0, dtype=np.float64) / len(rows)
            averages = torch.from_numpy(means)
            vectors = METRICS["cosine"](averages, squared_norms(averages))
            self._centroids = {without: Centroids(entries[first], images, vectors)}
        return self._centroids[without]

    def _kept(self, without: str) -> np.ndarray:
        """(N,) bool: which entries another camera took. Raises ValueError if the camera is unknown."""
        if not without:
            return np.ones(len(self), dtype=bool)
        if without not in self.meta.cameras:
            known = ", ".join(self.meta.cameras[:20]) or "none"
            raise ValueError(f"{self.folder} has no camera {without!r}; it has: {known}")
        return np.asarray(self.camids != self.meta.cameras.index(without))


def _nearest(vectors: Vectors, queries: Tensor, k: int, kept: np.ndarray) -> list[list[tuple[int, float]]]:
    """Return the k best (row, score) of the vectors (N, D) that are `kept` (N,), for each of the queries (Q, D)."""
    if not kept.any():
        return [[] for _ in queries]
    blocks = queries.split(QUERIES)
    best: list[list[tuple[Tensor, Tensor]]] = [[] for _ in blocks]
    with exact_products(queries.device):
        for part in cut(len(kept)):  # the outer loop, so that features are read from disk once
            left_out = torch.from_numpy(~kept[part])
            for block, found in zip(blocks, best, strict=True):
                scores = vectors.scores(block, part)
                scores[:, left_out] = -torch.inf
                found[:] = [join_best([*found, best_of_scores(scores, k, part.start)], k)]
    answers = [answer for found in best for answer in zip(*(part.tolist() for part in found[0]), strict=True)]
    return [[(row, score) for row, score in zip(*hits, strict=True) if score > -torch.inf] for hits in answers]


class Layout(NamedTuple):
    """Where a column is in its file: after the .npy header, in this shape, up to the byte `end`."""

    header: bytes
    shape: tuple[int, ...]
    end: int


def lay_out(name: str, meta: Meta) -> Layout:
    """NumPy leaves room for the first axis to grow: the header has the same length for any number of entries."""
    if name == ENTRIES:
        return Layout(b"", (meta.text_bytes,), meta.text_bytes)
    dtype, shape = np.dtype(COLUMNS[name]), (meta.count, meta.dim) if name == "features.npy" else (meta.count,)
    buffer = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return Layout(buffer.getvalue(), shape, buffer.tell() + dtype.itemsize * math.prod(shape))


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
