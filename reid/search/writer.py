"""Making and changing an index (reid/search/index.py): entries are appended behind the others, or all is written anew.

An append that is killed leaves the index as it was: index.json, replaced last, says how much of each file counts.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from reid.files import Held, hold
from reid.metrics.features import UNKNOWN
from reid.metrics.scores import squared_norms
from reid.search.index import (
    DTYPES,
    ENTRIES,
    FORMAT,
    META,
    Entry,
    Index,
    Meta,
    add_up,
    header_of,
    load_centroids,
    read_meta,
    row_bytes,
)

ROWS = 8192  # features looked at together: 64 MiB at 2,048 dimensions


class Appender:
    """Entries on their way into an index; `append` makes one and commits it."""

    def __init__(self, index: Index) -> None:
        self.folder, self.meta, self.index = index.folder, index.meta, index
        self._identities = {name: i for i, name in enumerate(self.meta.identities)}
        self._cameras = {name: i for i, name in enumerate(self.meta.cameras)}
        self._sources = {source: i for i, source in enumerate(self.meta.sources)}
        self._count, self._end = self.meta.count, self.meta.text_bytes
        self._files: dict[str, BinaryIO] = {}
        for name in DTYPES:
            end = len(header_of(name, self.meta.dim, 0)) + row_bytes(name, self.meta.dim) * self._count
            self._files[name] = _open_at(self.folder / f"{name}.npy", end)
        self._text = _open_at(self.folder / ENTRIES, self._end)

    def add(self, features: np.ndarray, entries: Sequence[Entry]) -> None:
        """features (B, D) float32 of B entries. ValueError names the first whose feature is not finite."""
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            name = entries[int(finite.argmin())].path
            raise ValueError(f"{name}: its feature is not finite; look at that image, or for a diverged model")
        lines = [self._line(entry) for entry in entries]
        columns = {
            "features": features,
            "squares": squared_norms(torch.from_numpy(features)).numpy(),
            "pids": [_number(entry.identity, self._identities) for entry in entries],
            "camids": [_number(entry.camera, self._cameras) for entry in entries],
            "ends": self._end + np.cumsum([len(line) for line in lines]),
        }
        for name, values in columns.items():
            self._files[name].write(np.ascontiguousarray(values, DTYPES[name]).tobytes())
        self._text.write(b"".join(lines))
        self._count += len(entries)
        self._end += sum(map(len, lines))

    def _line(self, entry: Entry) -> bytes:
        source = self._sources.setdefault(entry.source, len(self._sources))
        line = {"path": entry.path, "time": entry.time, "source": source, "place": entry.place}
        return json.dumps(line).encode() + b"\n"

    def commit(self) -> None:
        """Everything on disk, then index.json in one step."""
        meta = replace(
            self.meta,
            count=self._count,
            text_bytes=self._end,
            generation=self.meta.generation + 1,
            sources=tuple(self._sources),
            identities=tuple(self._identities),
            cameras=tuple(self._cameras),
        )
        for name, file in self._files.items():
            file.seek(0)
            file.write(header_of(name, meta.dim, meta.count))  # for readers of .npy; we go by index.json
        self.close()
        self._add_up(meta)
        _write_meta(self.folder, meta)
        for path in self.folder.glob("*-*.npy"):  # those of the last generation stay, for who is reading them
            if int(path.stem.rpartition("-")[2]) < meta.generation - 1:
                path.unlink()

    def _add_up(self, meta: Meta) -> None:
        """The sums so far, and the new rows: costs what was added, not what is there."""
        sums, counts = np.zeros((len(meta.identities), meta.dim)), np.zeros(len(meta.identities), np.int64)
        before = load_centroids(self.folder, self.meta)
        sums[: len(before[0])], counts[: len(before[1])] = before
        header = len(header_of("features", meta.dim, 0))
        if meta.count > self.meta.count:
            shape = (meta.count, meta.dim)
            features = np.memmap(self.folder / "features.npy", np.float32, mode="c", offset=header, shape=shape)
            pids = np.load(self.folder / "pids.npy", mmap_mode="r", allow_pickle=False)
            add_up(sums, counts, features, pids, np.arange(self.meta.count, meta.count))
        _save_centroids(self.folder, meta, sums, counts)

    def close(self) -> None:
        for file in (*self._files.values(), self._text):
            if not file.closed:
                file.flush()
                os.fsync(file.fileno())
                file.close()


@contextmanager
def append(folder: str | Path) -> Iterator[Appender]:
    """Add entries: all of them count after the block, or none if it ends with an error or a kill.

    ValueError where another process is appending.
    """
    path = Path(folder)
    with _alone(path):
        appender = Appender(Index(path))
        try:
            yield appender
            appender.commit()
        finally:
            appender.close()


@contextmanager
def create(folder: str | Path, meta: Meta) -> Iterator[Appender]:
    """A new index: there, with what is added, after the block; not at all if it ends with an error or a kill.

    ValueError where there is something already.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "is an index; `add` appends to it" if (path / META).is_file() else "is no empty folder; name another"
        raise ValueError(f"{path} {what}")
    building = path.resolve().with_name(f".{path.resolve().name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        for name in DTYPES:
            (building / f"{name}.npy").write_bytes(header_of(name, meta.dim, 0))
        (building / ENTRIES).touch()
        _save_centroids(building, meta, np.zeros((0, meta.dim)), np.zeros(0, np.int64))
        _write_meta(building, meta)
        with append(building) as appender:
            yield appender
        building.rename(path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def remove(folder: str | Path, choose: Callable[[Entry], bool]) -> int:
    """Leave out the entries that are chosen and return their number. Nothing of them stays: all is written anew.

    A kill leaves the index as it was, or, in the moment between two renames, whole in `.<name>.before` beside it.
    """
    path = Path(folder).resolve()
    rest, before = (path.with_name(f".{path.name}.{state}") for state in ("rest", "before"))
    with _alone(path):
        index = Index(path)
        entries = list(index.entries())
        kept = np.flatnonzero([not choose(entry) for entry in entries])
        if len(kept) == len(entries):
            return 0
        shutil.rmtree(rest, ignore_errors=True)
        meta = index.meta
        with create(rest, Meta(meta.fingerprint, meta.dim, meta.size, meta.checkpoint)) as appender:
            for begin in range(0, len(kept), ROWS):
                rows = kept[begin : begin + ROWS]
                appender.add(np.asarray(index.features[rows]), [entries[row] for row in rows])
        path.rename(before)
        rest.rename(path)
        shutil.rmtree(before)
    return len(entries) - len(kept)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other writers of the index out. ValueError where one is at work, or where there is no index."""
    read_meta(path)
    try:
        with hold(path / ".lock"):
            yield
    except Held as error:
        raise ValueError(f"{path}: {error} is changing this index; wait for it") from error


def _number(name: str, numbers: dict[str, int]) -> int:
    return numbers.setdefault(name, len(numbers)) if name else UNKNOWN


def _open_at(path: Path, end: int) -> BinaryIO:
    """For writing behind byte `end`; what a killed append left there is cut off."""
    file = open(path, "r+b")  # noqa: SIM115 (closed by Appender.close)
    file.truncate(end)
    file.seek(end)
    return file


def _save_centroids(folder: Path, meta: Meta, sums: np.ndarray, counts: np.ndarray) -> None:
    for name, values in (("sums", sums), ("counts", counts)):
        with open(folder / f"{name}-{meta.generation:06d}.npy", "wb") as file:
            np.save(file, values, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())


def _write_meta(folder: Path, meta: Meta) -> None:
    temporary = folder / f".{META}.part"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, **asdict(meta)}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / META)
