"""Write and change an index (reid/search/index.py): append entries, or rewrite all files.

An append that is killed leaves the index unchanged: index.json, replaced last, says how much of each file counts.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from reid.files import Held, hold, write_atomically
from reid.metrics.features import UNKNOWN
from reid.metrics.norms import check_rows, squared_norms
from reid.search.index import Entry, Index
from reid.search.index_files import COLUMNS, ENTRIES, FEATURES, META, Meta, checksums, describe_meta, lay_out, read_meta

HALF_ERROR = 2**-10  # of a feature's length, at most, that float16 may change: scores then change by less than 0.001
ROWS = 8192  # features copied at a time: 64 MiB at 2,048 dimensions


class Appender:
    """Adds entries to an index; `append` and `create` make one and commit what was added."""

    def __init__(self, index: Index) -> None:
        self.index, meta = index, index.meta
        self._identities = {name: i for i, name in enumerate(meta.identities)}
        self._cameras = {name: i for i, name in enumerate(meta.cameras)}
        self._sources = {source: i for i, source in enumerate(meta.sources)}
        self._count, self._text_bytes = meta.count, meta.text_bytes
        self._sums = dict(meta.sums) or {name: checksums(column) for name, column in index.columns.items()}
        self._files: dict[str, BinaryIO] = {}
        for name in COLUMNS:
            self._files[name] = file = open(index.folder / name, "r+b")  # noqa: SIM115 (closed by `close`)
            file.seek(file.truncate(lay_out(name, meta)[2]))  # cut off what a killed append left

    def add(self, features: np.ndarray, entries: Sequence[Entry]) -> None:
        """Add B entries and their features (B, D) float32.

        Raises ValueError, which names the image, for NaN, inf, and what is too large or small for the index.
        """
        rows = torch.from_numpy(np.ascontiguousarray(features, np.float32))
        check_rows(rows, squared_norms(rows), lambda row: f"{entries[row].path}: its feature")
        if self.index.meta.dtype == "float16":
            rows = _round(rows, entries)
        squares = squared_norms(rows)
        sources = [self._sources.setdefault(entry.source, len(self._sources)) for entry in entries]
        lines = [
            json.dumps({"path": entry.path, "time": entry.time, "source": i, "place": entry.place}).encode() + b"\n"
            for i, entry in zip(sources, entries, strict=True)
        ]
        text = b"".join(lines)
        columns = {
            FEATURES: rows.numpy(),
            "squares.npy": squares.numpy(),
            "pids.npy": [_number(entry.identity, self._identities) for entry in entries],
            "camids.npy": [_number(entry.camera, self._cameras) for entry in entries],
            "ends.npy": self._text_bytes + np.cumsum([len(line) for line in lines]),
            ENTRIES: np.frombuffer(text, np.uint8),
        }
        for name, values in columns.items():
            written = np.ascontiguousarray(values, self.index.meta.column_type(name))
            file, header = self._files[name], lay_out(name, self.index.meta)[0]
            self._sums[name] = checksums(written, self._sums[name], file.tell() - len(header))
            file.write(written.tobytes())
        self._count += len(entries)
        self._text_bytes += len(text)

    def commit(self) -> None:
        """Write everything to disk, then replace index.json in one step."""
        meta = replace(self.index.meta, count=self._count, text_bytes=self._text_bytes)
        identities, cameras = tuple(self._identities), tuple(self._cameras)
        meta = replace(meta, sources=tuple(self._sources), identities=identities, cameras=cameras, sums=self._sums)
        for name, file in self._files.items():
            file.seek(0)
            file.write(lay_out(name, meta)[0])  # for other readers of .npy files; an index goes by index.json
            file.flush()
            os.fsync(file.fileno())
        _write_meta(self.index.folder, meta)
        for path in self.index.folder.glob("*-*.npy"):  # centroid sums of older programs
            path.unlink()

    def close(self) -> None:
        for file in self._files.values():
            file.close()


@contextmanager
def append(folder: str | Path) -> Iterator[Appender]:
    """Add entries to an index: all of them after the block, or none if it ends with an error or is killed.

    Raises ValueError if another process is changing the index.
    """
    path = Path(folder)
    with _lock(path):
        appender = Appender(Index(path))
        try:
            yield appender
            appender.commit()
        finally:
            appender.close()


@contextmanager
def create(folder: str | Path, meta: Meta) -> Iterator[Appender]:
    """Make an index with what is added in the block; nothing is left if it ends with an error or is killed.

    Raises ValueError if the folder exists and is not empty.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "an index; `add` appends to it" if (path / META).is_file() else "not empty; name another folder"
        raise ValueError(f"{path} is {what}")
    building = path.resolve().with_name(f".{path.resolve().name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        for name in COLUMNS:
            (building / name).write_bytes(lay_out(name, meta)[0])
        _write_meta(building, meta)
        with append(building) as appender:
            yield appender
        building.rename(path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def remove(folder: str | Path, choose: Callable[[Entry], bool]) -> int:
    """Remove the chosen entries and return their number. All files are rewritten, so that nothing of them is left.

    If this is killed the index is unchanged or, between two renames, complete in `.<name>.before` next to it.
    """
    path = Path(folder).resolve()
    rest, before = (path.with_name(f".{path.name}.{state}") for state in ("rest", "before"))
    with _lock(path):
        index = Index(path)
        entries = list(index.entries())
        kept = np.flatnonzero([not choose(entry) for entry in entries])
        if len(kept) == len(entries):
            return 0
        shutil.rmtree(rest, ignore_errors=True)
        index.check_features()
        empty = replace(index.meta, count=0, text_bytes=0, sources=(), identities=(), cameras=(), sums={})
        with create(rest, empty) as appender:
            for begin in range(0, len(kept), ROWS):
                rows = kept[begin : begin + ROWS]
                appender.add(np.asarray(index.features[rows]), [entries[row] for row in rows])
        path.rename(before)
        rest.rename(path)
        shutil.rmtree(before)
    return len(entries) - len(kept)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Keep other writers out. Raises ValueError if one is at work, or if there is no index."""
    read_meta(path)
    try:
        with hold(path / ".lock"):
            yield
    except Held as error:
        raise ValueError(f"{path}: {error} is changing this index; wait for it") from error


def _round(rows: Tensor, entries: Sequence[Entry]) -> Tensor:
    """Return features (B, D) float32 rounded to float16. Raises ValueError if that changes a direction too much."""
    rounded = rows.half().float()
    error, length = ((part.double()).norm(dim=1) for part in (rounded - rows, rows))
    if not (fits := error <= HALF_ERROR * length).all():
        row = int((~fits).nonzero()[0])
        raise ValueError(
            f"{entries[row].path}: the numbers of its feature, up to {float(rows[row].abs().max()):.1e}, do not fit "
            "float16, which has 0.0001 to 65,504; make the index without --half"
        )
    return rounded


def _number(name: str, numbers: dict[str, int]) -> int:
    return numbers.setdefault(name, len(numbers)) if name else UNKNOWN


def _write_meta(folder: Path, meta: Meta) -> None:
    write_atomically(folder / META, json.dumps(describe_meta(meta)))
