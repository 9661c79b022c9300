"""The identities of shards, read in order, each checked against the manifest; damage by member and byte."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from reid.manifest import Split
from reid.storage import open_file, place_of
from reid.tar import BLOCK, END, padded, parse_header

OnDamage = Literal["stop", "skip"]
MEND = "`python -m shards verify` lists all damage"


class DamagedData(ValueError):
    """What one process found in its part of the data, and the others did not: to be told whatever its rank."""


@dataclass(frozen=True)
class Identity:
    """One WebDataset sample: an identity (or a group of distractors) with its encoded images.

    row: its place in the manifest's split, -1 before it is looked up. shard, key: where it lies. files, camids,
    checksums, sizes: for each image its name behind the key, its camera, the CRC-32 and the bytes that were stored.
    body: the tar from byte `begin` on, with all images and their headers.
    """

    row: int
    pid: int
    shard: str
    key: str
    files: tuple[str, ...]
    camids: tuple[int, ...]
    checksums: tuple[int, ...]
    sizes: tuple[int, ...]
    begin: int
    body: bytes

    def image(self, i: int) -> memoryview:
        """The encoded image `i`. ValueError, which names it, if its bytes are not those that were stored."""
        begin = self._begin_of(i)
        data = memoryview(self.body)[begin : begin + self.sizes[i]]
        if zlib.crc32(data) != self.checksums[i]:
            raise ValueError(f"{self.place(i)}: its checksum is wrong: its bytes were changed")
        return data

    def place(self, i: int) -> str:
        return f"{self.shard}: {self.key}.{self.files[i]} (byte {self.begin + self._begin_of(i)})"

    def _begin_of(self, i: int) -> int:
        return length_of(self.sizes[:i]) + BLOCK


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
            raise DamagedData(f"{found.reason}; {MEND}")
        yield found


def read_sound_identities(root: str | Path, split: Split, shards: Sequence[int]) -> Iterator[Identity | Dropped]:
    """As read_identities, but damage comes as Dropped, and what is sound goes on; each row comes exactly once."""
    ends = np.searchsorted(split.shard, np.arange(len(split.shards) + 1))
    for shard in shards:
        path = place_of(root, split.shards[shard].name)
        rows = range(int(ends[shard]), int(ends[shard + 1]))
        for found in _read_shard(root, split, shard, rows):
            yield Dropped(found.rows, f"{path}: {found.reason}") if isinstance(found, Dropped) else found


def _read_shard(root: str | Path, split: Split, shard: int, rows: range) -> Iterator[Identity | Dropped]:
    """Each of `rows` once, in order."""
    row = rows.start
    try:
        with open_file(root, split.shards[shard].name) as stream:
            for found in _read_samples(stream, split.shards[shard].name):
                if isinstance(found, Dropped):
                    yield found
                    continue
                at = _find(found, split, range(row, rows.stop))
                if isinstance(at, Dropped):
                    yield at
                    continue
                if at > row:
                    yield _missing(split, range(row, at), f"before {found.key}")
                yield replace(found, row=at)
                row = at + 1
        reason = "at its end"
    except (OSError, ValueError) as error:
        reason = f"because {getattr(error, 'strerror', None) or error}"
    if row < rows.stop:
        yield _missing(split, range(row, rows.stop), reason)


def _read_samples(stream: BinaryIO, shard: str) -> Iterator[Identity | Dropped]:
    """A sample is a JSON that describes an identity and behind it the images that it lists; `shards build` writes so.

    Behind damage the next JSON is looked for, block by block. ValueError where the tar ends too early.
    """
    offset, last, lost = 0, "its beginning", False
    while (block := _read(stream, BLOCK, offset, f"behind {last}")) != END:
        header = parse_header(block)
        offset += BLOCK
        if header is None or not header.name.endswith(".json"):
            if not lost:
                yield Dropped(
                    (), f"byte {offset - BLOCK}, behind {last}: no description of an identity where one belongs"
                )
            lost = True
            continue
        text = _read(stream, padded(header.size), offset, f"inside {header.name}")[: header.size]
        offset += padded(header.size)
        last = header.name
        try:
            described = _parse(header.name.removesuffix(".json"), text, shard)
        except (ValueError, KeyError, TypeError) as error:
            yield Dropped((), f"{last} (byte {offset - padded(header.size)}): its JSON is absent or damaged ({error})")
            lost = True
            continue
        lost = False
        length = length_of(described.sizes)
        yield replace(described, begin=offset, body=_read(stream, length, offset, f"inside the images of {last}"))
        offset += length
        last = f"{described.key}.{described.files[-1]}"


def length_of(sizes: Iterable[int]) -> int:
    """Bytes of images of these sizes with their headers."""
    return sum(BLOCK + padded(size) for size in sizes)


def _read(stream: BinaryIO, size: int, offset: int, where: str) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise ValueError(f"it ends at byte {offset + len(data)}, {where}")
    return data


def _parse(key: str, text: bytes, shard: str) -> Identity:
    """What the JSON of a sample says."""
    description = json.loads(text)
    images = description["images"]
    files = tuple(str(image["file"]) for image in images)
    camids, checksums, sizes = (tuple(int(image[name]) for image in images) for name in ("camid", "crc32", "bytes"))
    if not images or min(sizes) < 0:
        raise ValueError("no images, or one of a negative size")
    return Identity(-1, int(description["pid"]), shard, key, files, camids, checksums, sizes, begin=-1, body=b"")


def _find(identity: Identity, split: Split, rows: range) -> int | Dropped:
    """The first of `rows` that the manifest describes so."""
    images = len(identity.files)
    for row in rows:
        if split.pids[row] == identity.pid and split.images[row] == images:
            return row
    wanted = "the manifest has no more"
    if rows:
        wanted = f"the manifest has pid {split.pids[rows.start]} with {split.images[rows.start]}"
    return Dropped((), f"sample {identity.key} says pid {identity.pid} with {images} images; {wanted}")


def _missing(split: Split, rows: range, where: str) -> Dropped:
    pids = ", ".join(str(pid) for pid in split.pids[rows.start : rows.stop][:3])
    return Dropped(
        tuple(rows), f"{len(rows)} identities (pid {pids}{', …' if len(rows) > 3 else ''}) are missing {where}"
    )
