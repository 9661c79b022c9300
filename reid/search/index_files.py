"""The files of an index (reid/search/index.py): their layout, their checksums, and index.json.

A folder of plain files. Columns of N entries are ordinary .npy files, mapped into memory, that only grow:
    features (N, D) float32, as the model returns them, or rounded to float16; squares (N,) float32, the squared norms
    of what is stored; pids, camids (N,) int64, places in the lists of names in index.json, -1 = unknown; ends (N,)
    int64, where lines of entries.jsonl end
entries.jsonl has a line of JSON per entry, with its path and time. index.json is replaced last, in one step, and says
how much of each file counts: what a killed process wrote after that is ignored, and overwritten by the next append.
It holds checksums of itself and of the columns, which are compared when the index is opened; those of the features,
which are larger than all the rest, before the first search. Version 1 had none.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 4
READ = (1, 2, 3, FORMAT)  # 1 had no checksums; 2 had no `flip`; 3 had no `dtype`
DTYPES = ("float32", "float16")  # of stored features
FEATURES = "features.npy"
META, ENTRIES = "index.json", "entries.jsonl"
COLUMNS: dict[str, type[np.generic]] = {
    FEATURES: np.float32,  # or float16: Meta.column_type
    "squares.npy": np.float32,
    "pids.npy": np.int64,
    "camids.npy": np.int64,
    "ends.npy": np.int64,
    ENTRIES: np.uint8,
}
SUM_BYTES = 1 << 26  # bytes of a column that have one checksum, so that threads share the work


@dataclass(frozen=True)
class Source:
    """A folder of images, or a split of a folder (or URL) of shards; `split` is empty for the first."""

    root: str
    split: str = ""


@dataclass(frozen=True)
class Meta:
    """index.json. fingerprint: of the model (Embedder.fingerprint). checkpoint: its folder, empty if unknown.
    size: (height, width) of its images. count: entries. text_bytes: length of entries.jsonl. sums: by column, the
    CRC-32 of each SUM_BYTES of its array; empty in version 1. flip: whether features are those of a flip test.
    dtype: of stored features."""

    fingerprint: str
    dim: int
    size: tuple[int, int]
    checkpoint: str = ""
    count: int = 0
    text_bytes: int = 0
    sources: tuple[Source, ...] = ()
    identities: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    sums: dict[str, list[int]] = field(default_factory=dict)
    flip: bool = False
    dtype: str = DTYPES[0]

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError if a field cannot be what it is named."""
        names = [self.fingerprint, self.checkpoint, *self.identities, *self.cameras]
        names += [text for source in self.sources for text in (source.root, source.split)]
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a name is no text")
        if type(self.flip) is not bool:
            raise TypeError(f"flip is {self.flip!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}")
        numbers = {"dim": (1, self.dim), "count": (0, self.count), "text_bytes": (0, self.text_bytes)}
        numbers |= {"height": (1, self.size[0]), "width": (1, self.size[1])}
        for name, (least, number) in numbers.items():
            if type(number) is not int or not least <= number < 1 << 40:
                raise ValueError(f"{name} is {number!r}")
        if self.sums and self.sums.keys() != COLUMNS.keys():
            raise ValueError("checksums of other columns")

    def column_type(self, name: str) -> np.dtype[Any]:
        """Return the dtype of a column's numbers."""
        return np.dtype(self.dtype if name == FEATURES else COLUMNS[name])


def lay_out(name: str, meta: Meta) -> tuple[bytes, tuple[int, ...], int]:
    """Return the .npy header of a column, the shape of its array, and the byte of the file where the array ends."""
    if name == ENTRIES:
        return b"", (meta.text_bytes,), meta.text_bytes
    dtype, shape = meta.column_type(name), (meta.count, meta.dim) if name == FEATURES else (meta.count,)
    header = io.BytesIO()  # NumPy leaves room for the first axis to grow: as long for any number of entries
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue(), shape, header.tell() + dtype.itemsize * math.prod(shape)


def checksums(data: np.ndarray, before: Sequence[int] = (), done: int = 0) -> list[int]:
    """Return the CRC-32 of each SUM_BYTES of a column, of which the first `done` bytes have the checksums `before`."""
    flat = data.reshape(-1).view(np.uint8)
    edges = [0, *range(-done % SUM_BYTES or SUM_BYTES, len(flat), SUM_BYTES), len(flat)]
    parts = [flat[begin:end] for begin, end in itertools.pairwise(edges) if begin < end]
    sums = list(before)
    if done % SUM_BYTES and parts:
        sums[-1] = zlib.crc32(parts.pop(0).data, sums[-1])
    with ThreadPoolExecutor() as pool:  # zlib works without the interpreter's lock
        return sums + list(pool.map(zlib.crc32, [part.data for part in parts]))


def describe_meta(meta: Meta) -> dict[str, Any]:
    """Return index.json, with its own checksum."""
    document = {"format": FORMAT, **asdict(meta)}
    return document | {"checksum": _sum_document(document)}


def _sum_document(document: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(document, sort_keys=True).encode())


def read_meta(folder: Path) -> Meta:
    path = folder / META
    if not path.is_file():
        raise ValueError(f"{folder} is not an index: it has no {META}; make one with `reid search index`")
    try:
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        checksum = read.pop("checksum", None)
        if (version := read["format"]) in READ:
            if version != 1 and checksum != _sum_document(read):
                raise ValueError("its checksum is wrong")
            read.pop("format")
            read.pop("generation", None)  # older programs numbered the files of centroid sums
            read["sources"] = tuple(Source(**source) for source in read["sources"])
            for name in ("size", "identities", "cameras"):
                read[name] = tuple(read[name])
            return Meta(**read)
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); make the index again") from error
    raise ValueError(f"{path}: index version {version!r}, this program reads version {FORMAT}; index again")
