"""The identities of shards, read in order, each checked against the manifest; damage by member and byte."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np

from reid.data.manifest import JUNK_PID, Shard, Split
from reid.data.storage import full_path, is_remote, open_file
from reid.data.tar import BLOCK, END, padded, parse_header

OnDamage = Literal["stop", "skip"]


def mend(root: str | Path) -> str:
    """What to do about damage: `verify` finds all of it at once, in a local folder."""
    if is_remote(root):
        return "copy the shards to a local folder, where `python -m shards verify --decode` lists all damage"
    return f"`python -m shards verify --decode {root}` lists all damage"


class DamagedData(ValueError):
    """What one process found in its part of the data, and the others did not: to be told whatever its rank."""


@dataclass(frozen=True)
class Identity:
    """One WebDataset sample: an identity (or a group of distractors) with its encoded images.

    row: its place in the manifest's split. shard (path or URL), key: where it lies. files, camids, checksums, sizes:
    for each image its name behind the key, its camera, the CRC-32 and the bytes that were stored. body: the tar from
    byte `begin` on, with all images and their headers.
    """

    row: int
    shard: str
    begin: int
    body: bytes
    key: str
    pid: int
    files: tuple[str, ...]
    camids: tuple[int, ...]
    checksums: tuple[int, ...]
    sizes: tuple[int, ...]

    def image(self, i: int) -> memoryview:
        """The encoded image `i`. ValueError, which names it, if its bytes are not those that were stored."""
        begin = self._begins[i]
        data = memoryview(self.body)[begin : begin + self.sizes[i]]
        if zlib.crc32(data) != self.checksums[i]:
            raise ValueError(f"{self.place(i)}: its checksum is wrong: its bytes were changed")
        return data

    def place(self, i: int) -> str:
        return f"{self.shard}: {self.key}.{self.files[i]} (byte {self.begin + self._begins[i]})"

    @cached_property
    def _begins(self) -> list[int]:
        """Where in the body each image begins, behind its header."""
        ends = accumulate(BLOCK + padded(size) for size in self.sizes)
        return [end - padded(size) for end, size in zip(ends, self.sizes, strict=True)]


@dataclass(frozen=True)
class Dropped:
    """Identities (rows of the manifest's split) that cannot be read, perhaps none, and the damage that was seen."""

    rows: tuple[int, ...]
    reason: str


def read_identities(root: str | Path, split: Split, shards: Sequence[int]) -> Iterator[Identity]:
    """The identities of `shards` (indices into split.shards), in order.

    Damage is whatever differs from the manifest: a shard that is absent, cut short or unreadable, identities or images
    that are missing, too many or others. DamagedData with the shard, the byte and the member.
    """
    for found in read_sound_identities(root, split, shards):
        if isinstance(found, Dropped):
            raise DamagedData(f"{found.reason}; {mend(root)}")
        yield found


def read_sound_identities(root: str | Path, split: Split, shards: Sequence[int]) -> Iterator[Identity | Dropped]:
    """As read_identities, but damage comes as Dropped, and what is sound goes on; each row comes exactly once."""
    ends = np.searchsorted(split.shard, np.arange(len(split.shards) + 1))
    for shard in shards:
        path = full_path(root, split.shards[shard].name)
        rows = range(int(ends[shard]), int(ends[shard + 1]))
        for found in _read_shard(root, path, split, split.shards[shard], rows):
            yield Dropped(found.rows, f"{path}: {found.reason}") if isinstance(found, Dropped) else found


def _read_shard(root: str | Path, path: str, split: Split, shard: Shard, rows: range) -> Iterator[Identity | Dropped]:
    """Each of `rows` once, in order."""
    row = rows.start
    try:
        with open_file(root, shard.name) as file:
            tar = _Tar(file)
            if tar.bytes != shard.bytes and not tar.is_cut():
                raise ValueError(f"it has {tar.bytes} bytes, the manifest says {shard.bytes}: it is of another build")
            for found in _read_samples(tar):
                if isinstance(found, Dropped):
                    yield found
                    continue
                at = _find(found.said, split, range(row, rows.stop))
                if isinstance(at, Dropped):
                    yield at
                    continue
                if at > row:
                    yield _missing(split, range(row, at), f"before {found.said.key}")
                yield Identity(at, path, found.begin, found.body, *found.said)
                row = at + 1
        reason = "at its end"
    except (OSError, ValueError) as error:
        reason = f"because {getattr(error, 'strerror', None) or error}"
    if row < rows.stop:
        yield _missing(split, range(row, rows.stop), reason)


class _Description(NamedTuple):
    """What the JSON of a sample says; see Identity."""

    key: str
    pid: int
    files: tuple[str, ...]
    camids: tuple[int, ...]
    checksums: tuple[int, ...]
    sizes: tuple[int, ...]


class _Sample(NamedTuple):
    said: _Description
    begin: int
    body: bytes


class _Tar:
    """A tar that is read from its beginning, up to byte `offset` so far."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.offset = file, 0
        self.bytes = os.fstat(file.fileno()).st_size

    def is_cut(self) -> bool:
        """Whether it lacks its end; then reading on tells where. To be asked before reading."""
        self.file.seek(max(0, self.bytes - BLOCK))
        last = self.file.read(BLOCK)
        self.file.seek(0)
        return last != END

    def read(self, size: int, where: str) -> bytes:
        """ValueError if there are fewer bytes; a size that lies takes no memory."""
        data = self.file.read(min(size, self.bytes - self.offset))
        self.offset += len(data)
        if len(data) < size:
            raise ValueError(f"it ends at byte {self.offset}, {where}")
        return data


def _read_samples(tar: _Tar) -> Iterator[_Sample | Dropped]:
    """A sample is a JSON that describes an identity and behind it the images that it lists; `shards build` writes so.

    Behind damage the next JSON is looked for, block by block. ValueError where the tar ends too early.
    """
    last, lost = "its beginning", False
    while (block := tar.read(BLOCK, f"behind {last}")) != END:
        header = parse_header(block)
        begin = tar.offset
        if header is None or not header.name.endswith(".json"):
            if not lost:
                yield Dropped(
                    (), f"byte {begin - BLOCK}, behind {last}: no description of an identity where one belongs"
                )
            lost = True
            continue
        text = tar.read(padded(header.size), f"inside {header.name}")[: header.size]
        last = header.name
        try:
            said = _parse(header.name.removesuffix(".json"), text)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            yield Dropped((), f"{last} (byte {begin}): its JSON is absent or damaged ({error})")
            lost = True
            continue
        lost = False
        begin = tar.offset
        yield _Sample(said, begin, tar.read(length_of(said.sizes), f"inside the images of {last}"))
        last = f"{said.key}.{said.files[-1]}"


def length_of(sizes: Iterable[int]) -> int:
    """Bytes of images of these sizes with their headers."""
    return sum(BLOCK + padded(size) for size in sizes)


def _parse(key: str, text: bytes) -> _Description:
    description = json.loads(text)
    images = description["images"]
    if not images:
        raise ValueError("no images")
    (pid,) = _integers([description], "pid", least=JUNK_PID)
    return _Description(
        key,
        pid,
        files=tuple([str(image["file"]) for image in images]),
        camids=_integers(images, "camid", least=-1),
        checksums=_integers(images, "crc32", least=0),
        sizes=_integers(images, "bytes", least=0),
    )


def _integers(entries: Sequence[Mapping[str, Any]], name: str, least: int) -> tuple[int, ...]:
    """What each of the entries says under `name`. ValueError unless all are integers of 64 bits, from `least` on."""
    values = tuple([entry[name] for entry in entries])
    if set(map(type, values)) != {int} or min(values) < least or max(values) >= 1 << 63:
        raise ValueError(f"{name} is not an integer from {least} in each entry")
    return values


def _find(said: _Description, split: Split, rows: range) -> int | Dropped:
    """The first of `rows` that the manifest describes so."""
    images, cameras = len(said.files), tuple(sorted(set(said.camids)))
    for row in rows:
        if split.pids[row] == said.pid and split.images[row] == images and split.cameras[row] == cameras:
            return row
    wanted = "the manifest has no more"
    if rows:
        row = rows.start
        wanted = f"the manifest has pid {split.pids[row]} with {split.images[row]} from cameras {split.cameras[row]}"
    return Dropped((), f"sample {said.key} says pid {said.pid} with {images} images from cameras {cameras}; {wanted}")


def _missing(split: Split, rows: range, where: str) -> Dropped:
    pids = ", ".join(str(pid) for pid in split.pids[rows.start : rows.stop][:3])
    return Dropped(
        tuple(rows), f"{len(rows)} identities (pid {pids}{', …' if len(rows) > 3 else ''}) are missing {where}"
    )
