"""Read the identities of shards in order and check each against the manifest; damage is named by member and byte.

Shards are plain ustar tars, which WebDataset and tar read, too. They are read here without Python's tarfile, on which
WebDataset relies: it takes 26 us a member, where decoding a JPEG of 64 x 128 pixels takes 62, does not say at which
byte a tar is damaged, and silently drops everything after an overwritten header.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from reid.data.manifest import JUNK_PID, Shard, Split
from reid.data.storage import full_path, is_remote, open_file
from reid.files import open_regular_file

BLOCK = 512
PARSE_ERRORS = (ValueError, KeyError, TypeError, RecursionError)  # of `parse_description`
END = bytes(BLOCK)  # a block of zeros follows the last member of a tar
_HEADER = struct.Struct("100s 24x 12s 12x 8s c 188x 155s")  # name, size, checksum, type, prefix of the name


class DamagedData(ValueError):
    """Damage that one process found in its part of the data; it is reported from every rank, not only rank 0."""


def damage_advice(root: str | Path) -> str:
    """Return how to list all damage: `verify` reads local folders."""
    if is_remote(root):
        return "copy the shards to a local folder, where `reid shards verify --decode` lists all damage"
    return f"`reid shards verify --decode {root}` lists all damage"


@dataclass
class Identity:
    """One WebDataset sample: an identity (or a group of distractors) with its encoded images."""

    row: int
    """Its index in the manifest's split."""
    shard: str
    """Path or URL of the shard."""
    begin: int
    """Byte of the shard at which `body` begins."""
    body: bytes | None
    """The part of the tar with all images and their headers; None if it is read when it is first used."""
    key: str
    pid: int
    files: tuple[str, ...]
    """For each image its name after the key."""
    sources: tuple[str, ...]
    """For each image the file of the dataset that it was made from; "" if its shard does not say it."""
    camids: tuple[int, ...]
    checksums: tuple[int, ...]
    """For each image the CRC-32 of the stored bytes."""
    sizes: tuple[int, ...]
    """For each image the number of stored bytes."""
    intact: bool
    """Whether its description has the right checksum, or none."""

    def image(self, i: int) -> memoryview:
        """Return the encoded image `i`. Raises ValueError, which names it, if its bytes are gone or were changed."""
        if self.body is None:
            self.body = self._read_body()
        begin = self._begins[i]
        data = memoryview(self.body)[begin : begin + self.sizes[i]]
        if zlib.crc32(data) != self.checksums[i]:
            raise ValueError(f"{self.place(i)}: its checksum is wrong: its bytes were changed")
        return data

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return self._begins[-1] + padded(self.sizes[-1])

    def _read_body(self) -> bytes:
        try:
            with open_regular_file(self.shard) as file:
                file.seek(self.begin)
                return _Tar(file, self.begin).read(self.length, f"inside the images of {self.key}.json")
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.shard}: {getattr(error, 'strerror', None) or error}") from error

    def place(self, i: int) -> str:
        return f"{self.shard}: {self.key}.{self.files[i]} (byte {self.begin + self._begins[i]})"

    @cached_property
    def _begins(self) -> list[int]:
        """Offset of each image in the body, after its header."""
        begins, at = [], BLOCK
        for size in self.sizes:
            begins.append(at)
            at += size + -size % BLOCK + BLOCK
        return begins


@dataclass(frozen=True)
class Dropped:
    """Identities (rows of the manifest's split, perhaps none) that cannot be read, and the damage that was found."""

    rows: tuple[int, ...]
    reason: str


def read_identities(root: str | Path, split: Split, shards: Sequence[int]) -> Iterator[Identity]:
    """Yield the identities of `shards` (indices into split.shards), in order.

    Raises DamagedData, with the shard, the byte and the member, for any difference from the manifest: a shard that is
    missing, truncated or unreadable; identities or images that are missing, too many or different.
    """
    for found in read_sound_identities(root, split, shards):
        if isinstance(found, Dropped):
            raise DamagedData(f"{found.reason}; {damage_advice(root)}")
        yield found


def read_sound_identities(
    root: str | Path, split: Split, shards: Sequence[int], wanted: Container[int] | None = None, lazily: bool = False
) -> Iterator[Identity | Dropped]:
    """Yield as read_identities, but damage as Dropped, and continue with what is undamaged. Each row comes once.

    Args:
        root: folder or URL of the shards.
        split: the split that they belong to.
        shards: indices into split.shards.
        wanted: rows; the images of others are skipped, and the identities left out. Default: all.
        lazily: read the images of an identity when they are first used, if the shard is a local file.
    """
    lazily = lazily and not is_remote(root)
    ends = np.searchsorted(split.shard, np.arange(len(split.shards) + 1))
    for shard in shards:
        path = full_path(root, split.shards[shard].name)
        rows = range(int(ends[shard]), int(ends[shard + 1]))
        chosen = rows if wanted is None else wanted
        for found in _read_shard(root, path, split, split.shards[shard], rows, chosen, lazily):
            yield Dropped(found.rows, f"{path}: {found.reason}") if isinstance(found, Dropped) else found


def _read_shard(
    root: str | Path, path: str, split: Split, shard: Shard, rows: range, wanted: Container[int], lazily: bool
) -> Iterator[Identity | Dropped]:
    """Yield each of `rows` that is wanted or damaged once, in order."""
    row = rows.start
    try:
        with open_file(root, shard.name) as file:
            tar = _Tar(file)
            if tar.bytes != shard.bytes and not tar.is_truncated():
                raise ValueError(f"it has {tar.bytes} bytes, the manifest says {shard.bytes}: it is of another build")
            for found in _read_samples(tar, path):
                if isinstance(found, Dropped):
                    yield found
                    continue
                at = _find(found, split, range(row, rows.stop))
                take = tar.read if at in wanted and not lazily else tar.skip
                body = take(found.length, f"inside the images of {found.key}.json")
                if isinstance(at, Dropped):
                    yield at
                    continue
                if at > row:
                    yield _missing(split, range(row, at), f"before {found.key}")
                if at in wanted:
                    found.row, found.body = at, body
                    yield found
                row = at + 1
        reason = "at its end"
    except (OSError, ValueError) as error:
        reason = f"because {getattr(error, 'strerror', None) or error}"
    if row < rows.stop:
        yield _missing(split, range(row, rows.stop), reason)


class _Tar:
    """A tar that is read in order; `offset` is the byte at which the next read begins."""

    def __init__(self, file: IO[bytes], offset: int = 0) -> None:
        self.file, self.offset = file, offset
        self.bytes = os.fstat(file.fileno()).st_size

    def is_truncated(self) -> bool:
        """Return whether the end is missing; reading then tells where. Call it before the first read."""
        self.file.seek(max(0, self.bytes - BLOCK))
        last = self.file.read(BLOCK)
        self.file.seek(0)
        return last != END

    def read(self, size: int, where: str) -> bytes:
        """Read `size` bytes. Raises ValueError if there are fewer; a wrong size never allocates more than the file."""
        data = self.file.read(min(size, self.bytes - self.offset))
        self.offset += len(data)
        if len(data) < size:
            raise ValueError(f"it ends at byte {self.offset}, {where}")
        return data

    def skip(self, size: int, where: str) -> None:
        """Skip `size` bytes. Raises ValueError if there are fewer."""
        self.offset += size
        if self.offset > self.bytes:
            raise ValueError(f"it ends at byte {self.bytes}, {where}")
        self.file.seek(self.offset)


def _read_samples(tar: _Tar, path: str) -> Iterator[Identity | Dropped]:
    """Yield the samples of a tar as `shards build` writes them, without their rows (-1) and bodies.

    A sample is a JSON that describes an identity, followed by the images that it lists, which the caller reads or
    skips before the next sample. After damage, look for the next JSON block by block. Raises ValueError if the tar ends
    too early.
    """
    last, lost = "its beginning", False
    while (block := tar.read(BLOCK, f"after {last}")) != END:
        name, size = parse_header(block) or ("", 0)
        begin = tar.offset
        if not name.endswith(".json"):
            if not lost:
                yield Dropped((), f"byte {begin - BLOCK}, after {last}: expected the description of an identity")
            lost = True
            continue
        text = tar.read(padded(size), f"inside {name}")[:size]
        last = name
        try:
            fields = parse_description(text)
        except PARSE_ERRORS as error:
            yield Dropped((), f"{last} (byte {begin}): its JSON is missing or damaged ({error})")
            lost = True
            continue
        lost = False
        yield Identity(-1, path, tar.offset, None, last.removesuffix(".json"), **fields)
        last = f"{last.removesuffix('.json')}.{fields['files'][-1]}"


def seal(description: bytes) -> bytes:
    """Return the JSON object of an identity with one more field, the CRC-32 of its bytes without that field."""
    return b'%s,"checksum":%d}' % (description[:-1], zlib.crc32(description))


def _is_intact(text: bytes) -> bool:
    """Return whether the JSON is as `seal` returned it. Shards of earlier versions have no checksum: True for them."""
    description, found, checksum = text.rpartition(b',"checksum":')
    return not found or checksum == b"%d}" % zlib.crc32(description + b"}")


def parse_description(text: bytes) -> dict[str, Any]:
    """Return the fields of Identity that a sample's JSON gives. Raises one of PARSE_ERRORS if it is none."""
    description = json.loads(text)
    images = description["images"]
    if not images:
        raise ValueError("no images")
    return {
        "pid": _integers([description], "pid", least=JUNK_PID)[0],
        "files": tuple([str(image["file"]) for image in images]),
        "sources": tuple([str(image.get("source", "")) for image in images]),
        "camids": _integers(images, "camid", least=-1),
        "checksums": _integers(images, "crc32", least=0),
        "sizes": _integers(images, "bytes", least=0),
        "intact": _is_intact(text),
    }


def _integers(entries: Sequence[Mapping[str, Any]], name: str, least: int) -> tuple[int, ...]:
    """Return the value of `name` in each entry. Raises ValueError unless all are int64 and at least `least`."""
    values = tuple([entry[name] for entry in entries])
    if set(map(type, values)) != {int} or min(values) < least or max(values) >= 1 << 63:
        raise ValueError(f"{name} is not an integer of at least {least} in each entry")
    return values


def _find(found: Identity, split: Split, rows: range) -> int | Dropped:
    """Return the first of `rows` that the manifest describes like `found`, if its description was not changed."""
    images, cameras = len(found.files), tuple(sorted(set(found.camids)))
    for row in rows:
        if split.pids[row] == found.pid and split.images[row] == images and split.cameras[row] == cameras:
            return (
                row if found.intact else Dropped((), f"{found.key}.json: its checksum is wrong: its bytes were changed")
            )
    wanted = "the manifest has no more"
    if rows:
        row = rows.start
        wanted = f"the manifest has pid {split.pids[row]} with {split.images[row]} from cameras {split.cameras[row]}"
    return Dropped((), f"sample {found.key} has pid {found.pid} with {images} images from cameras {cameras}; {wanted}")


def _missing(split: Split, rows: range, where: str) -> Dropped:
    pids = ", ".join(str(pid) for pid in split.pids[rows.start : rows.stop][:3])
    more = ", …" if len(rows) > 3 else ""
    return Dropped(tuple(rows), f"{len(rows)} identities (pid {pids}{more}) are missing {where}")


def parse_header(block: bytes) -> tuple[str, int] | None:
    """Return the name and the size in bytes of a tar's member from its header, a block of 512 bytes.

    Returns None if the block is damaged, no header, or the header of anything but a plain file.
    """
    name, size, checksum, kind, prefix = _HEADER.unpack_from(block)
    # The sum of all bytes, with the eight of the checksum counted as spaces. Most bytes are zero and skipped.
    total = sum(block.translate(None, b"\0")) - sum(checksum) + 8 * ord(" ")
    try:
        if int(checksum.rstrip(b" \0"), 8) != total or kind not in (b"0", b"\0"):
            return None
        length = int(size.rstrip(b" \0"), 8)
    except ValueError:
        return None
    last, folder = (field.partition(b"\0")[0].decode(errors="replace") for field in (name, prefix))
    return f"{folder}/{last}" if folder else last, length


def padded(size: int) -> int:
    """Return the number of bytes that a content of `size` bytes occupies: a multiple of BLOCK."""
    return size + -size % BLOCK
