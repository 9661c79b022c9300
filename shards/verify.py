"""Whether shards still are what their manifest says: every byte read once, damage named by shard and member."""

import hashlib
import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from reid.data.manifest import MANIFEST_NAME, Manifest, Split, load_manifest
from shards.images import BrokenImage, check_image
from shards.records import Sighting, digest_image

# What may follow the last member of a whole tar: two empty blocks, then padding to a full record.
_TAR_END = 2 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE


@dataclass(frozen=True)
class Damage:
    """One finding. member is empty where it concerns the whole shard."""

    shard: str
    member: str
    what: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.shard, self.member, self.what) if part)


@dataclass
class Verification:
    """The folder, its manifest, the damage in storage order, and per split the images of the identities found whole."""

    folder: Path
    manifest: Manifest
    decoded: bool
    damage: list[Damage] = field(default_factory=list)
    sightings: dict[str, list[Sighting]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Image:
    file: str
    camid: int
    source: str
    crc32: int | None
    bytes: int | None


@dataclass(frozen=True)
class _Sample:
    """An identity's JSON, and the digests of its images as they are read."""

    key: str
    pid: int
    name: str
    split: str
    images: tuple[_Image, ...]
    digests: list[bytes] = field(default_factory=list)

    def sightings(self) -> list[Sighting]:
        pairs = zip(self.images, self.digests, strict=True)
        return [Sighting(self.pid, image.camid, image.source, digest) for image, digest in pairs]


class _HashingSource:
    """A file that knows the sha256 and the length of what was read."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.length = 0

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.sha256.update(data)
        self.length += len(data)
        return data

    def drain(self) -> None:
        while self.read(1 << 20):
            pass


def verify(root: str | Path, *, decode: bool = False, progress: bool = False) -> Verification:
    """Compare every shard of `root` with the manifest: size, sha256, members, counts, keys; with `decode` every image.

    Damage is listed, not raised. ValueError only for a manifest that cannot be read.
    """
    folder = Path(root)
    manifest = load_manifest(folder)
    result = Verification(folder, manifest, decode)
    owners: dict[str, str] = {}  # key -> shard: keys must be unique over all shards
    total = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    with tqdm(total=total, desc="verifying", unit="B", unit_scale=True, disable=None if progress else True) as bar:
        for name, split in manifest.splits.items():
            seen = result.sightings.setdefault(name, [])
            for index, shard in enumerate(split.shards):
                check = _ShardCheck(shard.name, decode)
                for sample in check.run(folder, name, split, index):
                    if owners.setdefault(sample.key, shard.name) != shard.name:
                        check.report(sample.key, f"the same key is in {owners[sample.key]}")
                    seen += sample.sightings()
                result.damage += check.damage
                bar.update(shard.bytes)
    listed = {shard.name for split in manifest.splits.values() for shard in split.shards}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in listed:
            result.damage.append(Damage(path.name, "", f"is not in {MANIFEST_NAME}; remove it, or build again"))
    return result


class _ShardCheck:
    """One pass over one tar; `damage` collects what is wrong with it."""

    def __init__(self, name: str, decode: bool) -> None:
        self.name = name
        self.decode = decode
        self.damage: list[Damage] = []

    def report(self, member: str, what: str) -> None:
        self.damage.append(Damage(self.name, member, what))

    def run(self, folder: Path, split_name: str, split: Split, index: int) -> list[_Sample]:
        """Check everything and return the samples that are whole."""
        shard = split.shards[index]
        try:
            with open(folder / shard.name, "rb") as file:
                source = _HashingSource(file)
                samples = list(self._read_samples(source, shard.bytes))
                source.drain()
        except FileNotFoundError:
            self.report("", "is missing; copy it again, or build again")
            return []
        except OSError as error:
            self.report("", f"cannot be read: {error.strerror or error}")
            return []
        self._compare(samples, split_name, split, index)
        if source.length != shard.bytes:
            self.report("", f"{source.length} bytes, the manifest says {shard.bytes}")
        elif source.sha256.hexdigest() != shard.sha256:
            self.report("", "sha256 differs from the manifest's")
        return samples

    def _read_samples(self, source: _HashingSource, size: int) -> Iterator[_Sample]:
        """The samples that are whole, in tar order; what is missing, surplus or damaged is reported."""
        sample: _Sample | None = None
        waiting: list[_Image] = []
        previous = "the beginning"
        try:
            with tarfile.open(fileobj=source, mode="r|", bufsize=1 << 20) as tar:  # type: ignore[call-overload]
                for member in tar:
                    data = _read_member(tar, member)
                    if member.name.endswith(".json"):
                        yield from self._finish(sample, waiting)
                        sample = self._read_json(member.name, data)
                        waiting = list(sample.images) if sample else []
                    elif sample and waiting and member.name == f"{sample.key}.{waiting[0].file}":
                        self._check_image(member.name, data, waiting.pop(0))
                        sample.digests.append(digest_image(data))
                    else:
                        self.report(member.name, "is not what the identity's JSON lists at this place")
                    previous = member.name
                # tarfile takes a header it cannot read for the end; so does WebDataset, which drops the rest unseen.
                if size - tar.offset > _TAR_END:
                    self.report(f"after {previous}", f"no readable tar header at offset {tar.offset}")
        except tarfile.TarError as error:
            self.report(f"after {previous}", f"not a readable tar from here on: {error}")
        yield from self._finish(sample, waiting)

    def _finish(self, sample: _Sample | None, waiting: Sequence[_Image]) -> Iterator[_Sample]:
        if sample and waiting:
            self.report(f"{sample.key}.{waiting[0].file}", "is missing")
        elif sample:
            yield sample

    def _read_json(self, member: str, data: bytes) -> _Sample | None:
        try:
            values = json.loads(data)
            images = tuple(
                _Image(
                    str(image["file"]),
                    _integer(image["camid"]),
                    str(image.get("source", "")),
                    image.get("crc32"),
                    image.get("bytes"),
                )
                for image in values["images"]
            )
            pid = _integer(values["pid"])
            return _Sample(member.removesuffix(".json"), pid, values["name"], values["split"], images)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.report(member, f"is no identity's JSON: {type(error).__name__}: {error}")
            return None

    def _check_image(self, member: str, data: bytes, image: _Image) -> None:
        if image.bytes is not None and len(data) != image.bytes:
            self.report(member, f"has {len(data)} bytes, the identity's JSON says {image.bytes}")
        if image.crc32 is not None and zlib.crc32(data) != image.crc32:
            self.report(member, "its bytes changed (crc32)")
        if self.decode:
            try:
                check_image(data)
            except BrokenImage as error:
                self.report(member, str(error))

    def _compare(self, samples: Sequence[_Sample], split_name: str, split: Split, index: int) -> None:
        rows = (split.shard == index).nonzero()[0]
        if len(samples) != len(rows):
            self.report("", f"{len(samples)} whole identities, the manifest says {len(rows)}")
            return
        for sample, row in zip(samples, rows, strict=True):
            cameras = tuple(sorted({image.camid for image in sample.images}))
            found = (sample.pid, sample.name, sample.split, len(sample.images), cameras)
            listed = (int(split.pids[row]), split.names[row], split_name, int(split.images[row]), split.cameras[row])
            if found != listed:
                self.report(
                    f"{sample.key}.json", f"pid, name, split, images, cameras are {found}, the manifest says {listed}"
                )


def _integer(value: Any) -> int:
    if type(value) is not int or not -1 <= value < 1 << 63:
        raise ValueError(f"{value!r:.40} is no pid or camera")
    return value


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member) if member.isreg() else None
    return file.read() if file else b""
