"""One shard: groups of images in a WebDataset tar whose bytes depend on the input only.

A sample is one identity: `<key>.json`, then `<key>.000.jpg`, `<key>.001.jpg`, ... with each image's original bytes.
webdataset.TarWriter is not used: it sorts the JSON after the images and 1000.jpg before 101.jpg, and imports torch.
"""

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from reid.data.image_file import read_image_file
from reid.data.manifest import Shard
from reid.data.shard_reader import seal
from shards.boxes import Cropping
from shards.images import Encoding, check_image, reencode
from shards.records import Record, Sighting


class Group(NamedTuple):
    """The images of one sample: an identity, or at most 16 images of junk or of distractors."""

    key: str
    records: tuple[Record, ...]


@dataclass
class Packed:
    """The content of one tar, in tar order. shard is None, and the file removed, if no image was readable."""

    shard: Shard | None = None
    samples: list[tuple[str, list[Sighting]]] = field(default_factory=list)  # name of the identity, its images
    skipped: list[dict[str, str]] = field(default_factory=list)


class HashingFile:
    """A file that computes the sha256 and the length of the bytes that pass through it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.length = 0

    def read(self, size: int) -> bytes:
        return self._count(self.file.read(size))

    def write(self, data: bytes) -> int:
        return self.file.write(self._count(data))

    def _count(self, data: bytes) -> bytes:
        self.sha256.update(data)
        self.length += len(data)
        return data


@contextmanager
def write_tar(path: Path) -> Iterator[tuple[tarfile.TarFile, HashingFile]]:
    """Yield an empty tar, and the file that counts its bytes, which are on disk after the block."""
    with open(path, "wb") as file:
        sink = HashingFile(file)
        # a larger buffer is slower: tarfile copies it at each write
        with tarfile.open(fileobj=sink, mode="w|", format=tarfile.USTAR_FORMAT, bufsize=1 << 16) as tar:  # type: ignore[call-overload]
            yield tar, sink
        file.flush()
        os.fsync(file.fileno())


def pack_shard(
    path: Path, groups: Sequence[Group], root: Path, encoding: Encoding | None, cropping: Cropping
) -> Packed:
    """Write `groups` to the tar `path`. Each image is read, checked, cut out or re-encoded if asked, and stored.

    Broken images are left out and listed. Sources are relative to `root`.
    """
    packed = Packed()
    with write_tar(path) as (tar, sink):
        for group in groups:
            _pack_group(tar, group, root, packed, partial(_prepare, encoding=encoding, cropping=cropping))
    if packed.samples:
        num_images = sum(len(images) for _, images in packed.samples)
        packed.shard = Shard(path.name, sink.sha256.hexdigest(), sink.length, len(packed.samples), num_images)
    else:
        path.unlink()
    return packed


def _prepare(record: Record, encoding: Encoding | None, cropping: Cropping) -> tuple[str, bytes]:
    """Return the suffix and the bytes to store."""
    data = read_image_file(record.path)
    if record.source or (encoding is None and record.box is None):
        return check_image(data), data
    return "jpg", reencode(data, encoding, record.box, cropping)


def _pack_group(
    tar: tarfile.TarFile,
    group: Group,
    root: Path,
    packed: Packed,
    prepare: Callable[[Record], tuple[str, bytes]],
) -> None:
    first = group.records[0]
    members: list[tuple[dict[str, object], bytes]] = []
    sightings: list[Sighting] = []
    for record in group.records:
        source = record.describe(root)
        try:
            suffix, data = prepare(record)
        except ValueError as error:
            packed.skipped.append({"source": source, "reason": str(error).removeprefix(f"{record.path}: ")})
            continue
        file, crc32 = f"{len(members):03d}.{suffix}", zlib.crc32(data)
        entry: dict[str, object] = {
            "file": file,
            "camid": record.camid,
            "source": source,
            "crc32": crc32,
            "bytes": len(data),
        }
        if record.extra:
            entry["extra"] = dict(record.extra)
        members.append((entry, data))
        sightings.append(Sighting(record.pid, record.camid, source, hashlib.sha256(data).digest()[:16]))
    if not members:
        return
    sample = {"pid": first.pid, "name": first.name, "split": first.split, "images": [entry for entry, _ in members]}
    add_description(tar, group.key, sample)
    for entry, data in members:
        add_member(tar, f"{group.key}.{entry['file']}", data)
    packed.samples.append((first.name, sightings))


def add_description(tar: tarfile.TarFile, key: str, sample: Mapping[str, object]) -> None:
    """Add the JSON of an identity, with its checksum."""
    add_member(tar, f"{key}.json", seal(json.dumps(sample, separators=(",", ":")).encode()))


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # with its defaults: mtime 0, uid and gid 0, no owner names, mode 0644
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    tar.members.clear()  # type: ignore[attr-defined]  # or tarfile keeps every member in memory
