"""An index: features of many images on disk, mapped into memory, appended to, and bound to the model that made them.

A folder of plain files. Columns of N entries are ordinary .npy files that only ever grow:
    features (N, D) float32 as the model gives them; squares (N,) float32, their squared lengths; pids, camids (N,)
    int64, places in the lists of names in index.json, -1 = unknown; ends (N,) int64, where lines of entries.jsonl end
entries.jsonl: a line of JSON per entry, with its path and time. sums-<g>.npy (I, D) float64 and counts-<g>.npy (I,):
what the centroids of I identities are made of. index.json is replaced last, in one step, and says how much of each file
counts: whatever a killed process wrote behind it is no part of the index, and is overwritten by the next append.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reid.metrics.features import UNKNOWN

FORMAT = 1
META, ENTRIES = "index.json", "entries.jsonl"
ROWS = 8192  # features added up together: 128 MiB at 2,048 dimensions
DTYPES = {"features": np.float32, "squares": np.float32, "pids": np.int64, "camids": np.int64, "ends": np.int64}


@dataclass(frozen=True)
class Source:
    """Where images lie: a folder of them, or a split of a folder (or URL) of shards; `split` is empty for the first."""

    root: str
    split: str = ""


@dataclass(frozen=True)
class Entry:
    """An image of an index. path: inside its source's root; of shards: tar and member. Empty text = unknown.

    place: of shards, the image's place in the split's storage order; else -1.
    """

    path: str
    identity: str = ""
    camera: str = ""
    time: str = ""
    place: int = -1
    source: Source = field(default_factory=lambda: Source(""))

    @property
    def key(self) -> tuple[Source, str]:
        """What makes an image the same image."""
        return self.source, self.path


@dataclass(frozen=True)
class Meta:
    """index.json. fingerprint: of the model (Embedder.fingerprint). checkpoint: where it lay, empty where that is
    unknown. size: (height, width) of its images. text_bytes: length of entries.jsonl. generation: of the centroids."""

    fingerprint: str
    dim: int
    size: tuple[int, int]
    checkpoint: str = ""
    count: int = 0
    text_bytes: int = 0
    generation: int = 0
    sources: tuple[Source, ...] = ()
    identities: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()


class Index:
    """The entries of an index as they are when it is opened; later appends do not show."""

    def __init__(self, folder: str | Path) -> None:
        """ValueError on what is no index, is damaged or has another version."""
        self.folder = Path(folder)
        self.meta = read_meta(self.folder)
        self.features, self.squares, self.pids, self.camids, self._ends = (self._map(name) for name in DTYPES)

    def __len__(self) -> int:
        return self.meta.count

    def _map(self, name: str) -> np.ndarray:
        """The column, copied where it is written to (torch wants writable memory); the file stays as it is."""
        path, header = self.folder / f"{name}.npy", header_of(name, self.meta.dim, self.meta.count)
        shape = shape_of(name, self.meta.dim, self.meta.count)
        if not path.is_file() or path.stat().st_size < len(header) + row_bytes(name, self.meta.dim) * self.meta.count:
            raise ValueError(f"{path} is missing or cut short: the index is damaged; make it again")
        if not self.meta.count:
            return np.empty(shape, DTYPES[name])
        return np.memmap(path, DTYPES[name], mode="c", offset=len(header), shape=shape)

    def entry(self, row: int) -> Entry:
        begin = int(self._ends[row - 1]) if row else 0
        with open(self.folder / ENTRIES, "rb") as file:
            file.seek(begin)
            return self._parse(row, file.read(int(self._ends[row]) - begin))

    def entries(self) -> Iterator[Entry]:
        """All of them, in order."""
        with open(self.folder / ENTRIES, "rb") as file:
            begin = 0
            for row, end in enumerate(self._ends.tolist()):
                yield self._parse(row, file.read(end - begin))
                begin = end

    def _parse(self, row: int, line: bytes) -> Entry:
        try:
            read = json.loads(line)
            source = self.meta.sources[read["source"]]
            identity, camera = self.identity(int(self.pids[row])), self.camera(int(self.camids[row]))
            return Entry(read["path"], identity, camera, read["time"], read["place"], source)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{self.folder / ENTRIES}: entry {row} is damaged ({error!r}); make it again") from error

    def identity(self, pid: int) -> str:
        return "" if pid == UNKNOWN else self.meta.identities[pid]

    def camera(self, camid: int) -> str:
        return "" if camid == UNKNOWN else self.meta.cameras[camid]

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """(I, D) float64 and (I,) int64: a centroid is a sum divided by its count."""
        try:
            return load_centroids(self.folder, self.meta)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.folder}: its centroids cannot be read ({error}); another process may have appended: try again"
            ) from error

    def check_model(self, fingerprint: str, source: object) -> None:
        """ValueError unless the index holds features of this model: those of two models do not compare."""
        if fingerprint != self.meta.fingerprint:
            raise ValueError(
                f"{self.folder} holds features of another model (fingerprint {self.meta.fingerprint[:12]}) than "
                f"{source} (fingerprint {fingerprint[:12]}); give the checkpoint it was made with, or index again"
            )


def add_up(
    sums: np.ndarray, counts: np.ndarray, features: np.ndarray, pids: np.ndarray, rows: np.ndarray, sign: int = 1
) -> None:
    """Add (or with sign -1 take away) the features of `rows` to their identities' sums (I, D) and counts, in place.

    Float64, because taking away in float32 would leave rounding behind. Rows without an identity are passed over.
    """
    rows = rows[np.asarray(pids[rows]) != UNKNOWN]
    for begin in range(0, len(rows), ROWS):
        part = rows[begin : begin + ROWS]
        to = torch.from_numpy(np.asarray(pids[part]))
        values = torch.from_numpy(np.asarray(features[part], np.float64))
        torch.from_numpy(sums).index_add_(0, to, values, alpha=sign)
        torch.from_numpy(counts).index_add_(0, to, torch.ones_like(to), alpha=sign)


def shape_of(name: str, dim: int, count: int) -> tuple[int, ...]:
    return (count, dim) if name == "features" else (count,)


def row_bytes(name: str, dim: int) -> int:
    return np.dtype(DTYPES[name]).itemsize * (dim if name == "features" else 1)


def header_of(name: str, dim: int, count: int) -> bytes:
    """Of an .npy file. NumPy leaves room for the first axis to grow: its length is the same for any count."""
    buffer = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(DTYPES[name]))
    described = {"descr": descr, "fortran_order": False, "shape": shape_of(name, dim, count)}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def load_centroids(folder: Path, meta: Meta) -> tuple[np.ndarray, np.ndarray]:
    sums, counts = (
        np.load(folder / f"{name}-{meta.generation:06d}.npy", allow_pickle=False) for name in ("sums", "counts")
    )
    if sums.shape != (len(meta.identities), meta.dim) or counts.shape != (len(meta.identities),):
        raise ValueError(f"shapes {sums.shape} and {counts.shape} for {len(meta.identities)} identities")
    return sums, counts


def read_meta(folder: Path) -> Meta:
    path = folder / META
    if not path.is_file():
        raise ValueError(f"{folder} is no index: it has no {META}; make one with `python -m reid.search index`")
    try:
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = read.pop("format")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); make the index again") from error
    if version != FORMAT:
        raise ValueError(f"{path}: index version {version!r}, this program reads version {FORMAT}; index again")
    try:
        read["sources"] = tuple(Source(**source) for source in read["sources"])
        for name in ("size", "identities", "cameras"):
            read[name] = tuple(read[name])
        return Meta(**read)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); make the index again") from error
