"""The comparison of shards with their manifest: every byte is read once, damage is named by shard and member."""

import hashlib
import json
import tarfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from reid.data.manifest import MANIFEST_NAME, Manifest, Shard, Split, load_manifest
from reid.data.shard_reader import PARSE_ERRORS, parse_description
from reid.files import open_regular_file
from shards.images import check_image
from shards.pack import HashingFile
from shards.records import Sighting

# The longest end of a tar: two empty blocks, then padding to a full record.
_TAR_END = 2 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE


@dataclass(frozen=True)
class Damage:
    """One finding. member is empty if it concerns the shard as such."""

    shard: str
    member: str
    what: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.shard, self.member, self.what) if part)


@dataclass
class Verification:
    """The result: damage in storage order, and per split the images of the complete identities."""

    folder: Path
    manifest: Manifest
    decoded: bool
    damage: list[Damage] = field(default_factory=list)
    sightings: dict[str, list[Sighting]] = field(default_factory=dict)


class _Image(NamedTuple):
    """An image as the identity's JSON lists it."""

    file: str
    camid: int
    source: str
    crc32: int
    bytes: int


@dataclass(frozen=True)
class _Sample:
    """An identity's JSON, which lists images that are not read yet, and the images read so far."""

    key: str
    pid: int
    name: str
    split: str
    unread: list[_Image]
    sightings: list[Sighting] = field(default_factory=list)


def verify(root: str | Path, *, decode: bool = False) -> Verification:
    """Compare size, sha256, members, counts and keys of every shard with the manifest; `decode` also decodes images.

    Damage is listed, not raised. Raises ValueError only if the manifest cannot be read.
    """
    folder = Path(root)
    manifest = load_manifest(folder)
    result = Verification(folder, manifest, decode)
    owners: dict[str, str] = {}  # key -> shard: keys must be unique over all shards
    sizes = {shard.name: shard.bytes for shard in manifest.shards}
    with tqdm(total=sum(sizes.values()), desc="verifying", unit="B", unit_scale=True, disable=None) as bar:
        for name, split in manifest.splits.items():
            sightings = result.sightings.setdefault(name, [])
            for index, shard in enumerate(split.shards):
                check = _ShardCheck(shard, result)
                for sample in check.run(name, split, index):
                    if owners.setdefault(sample.key, shard.name) != shard.name:
                        check.report(sample.key, f"the same key is in {owners[sample.key]}")
                    sightings += sample.sightings
                bar.update(shard.bytes)
    for path in sorted(folder.glob("*.tar")):
        if path.name not in sizes:
            result.damage.append(Damage(path.name, "", f"is not in {MANIFEST_NAME}; remove it, or build again"))
    return result


@dataclass(frozen=True)
class _ShardCheck:
    """One pass over one tar, which adds the damage found to `result`."""

    shard: Shard
    result: Verification

    def report(self, member: str, what: str) -> None:
        self.result.damage.append(Damage(self.shard.name, member, what))

    def run(self, split_name: str, split: Split, index: int) -> list[_Sample]:
        """Check everything and return the complete samples."""
        try:
            with open_regular_file(self.result.folder / self.shard.name) as file:
                source = HashingFile(file)
                samples = self._read_samples(source)
                while source.read(1 << 20):
                    pass
        except OSError as error:
            missing = "is missing; copy it again, or build again"
            self.report("", missing if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}")
            return []
        self._compare(samples, split_name, split, index)
        if source.length != self.shard.bytes:
            self.report("", f"{source.length} bytes, the manifest says {self.shard.bytes}")
        elif source.sha256.hexdigest() != self.shard.sha256:
            self.report("", "sha256 differs from the manifest's")
        return samples

    def _read_samples(self, source: HashingFile) -> list[_Sample]:
        """Return the complete samples in tar order; report missing, surplus and damaged members."""
        samples: list[_Sample] = []
        sample: _Sample | None = None
        previous = "the beginning"
        try:
            # a larger buffer is slower: tarfile copies it at each read
            with tarfile.open(fileobj=source, mode="r|", bufsize=1 << 16) as tar:  # type: ignore[call-overload]
                for member in tar:
                    file = tar.extractfile(member) if member.isreg() else None
                    data = file.read() if file else b""
                    if member.name.endswith(".json"):
                        self._check_complete(sample)
                        sample = self._parse_json(member.name, data)
                        samples += [sample] if sample else []
                    elif sample and sample.unread and member.name == f"{sample.key}.{sample.unread[0].file}":
                        image = sample.unread.pop(0)
                        self._check_image(member.name, data, image)
                        digest = hashlib.sha256(data).digest()[:16]
                        sample.sightings.append(Sighting(sample.pid, image.camid, image.source, digest))
                    else:
                        self.report(member.name, "is not the member that the identity's JSON lists here")
                    previous = member.name
                # tarfile takes an unreadable header for the end, and WebDataset drops the rest without an error.
                if self.shard.bytes - tar.offset > _TAR_END:
                    self.report(f"after {previous}", f"no readable tar header at offset {tar.offset}")
        except tarfile.TarError as error:
            self.report(f"after {previous}", f"not a readable tar from here: {error}")
        self._check_complete(sample)
        return [sample for sample in samples if not sample.unread]

    def _check_complete(self, sample: _Sample | None) -> None:
        if sample and sample.unread:
            self.report(f"{sample.key}.{sample.unread[0].file}", "is missing")

    def _parse_json(self, member: str, data: bytes) -> _Sample | None:
        try:
            fields, values = parse_description(data), json.loads(data)
            sources = [str(image.get("source", "")) for image in values["images"]]
            columns = fields["files"], fields["camids"], sources, fields["checksums"], fields["sizes"]
            images = [_Image(*image) for image in zip(*columns, strict=True)]
            sample = _Sample(member.removesuffix(".json"), fields["pid"], values["name"], values["split"], images)
        except PARSE_ERRORS as error:
            self.report(member, f"is no identity's JSON: {type(error).__name__}: {error}")
            return None
        if not fields["intact"]:
            self.report(member, "its bytes changed (checksum)")
        return sample

    def _check_image(self, member: str, data: bytes, image: _Image) -> None:
        if len(data) != image.bytes:
            self.report(member, f"has {len(data)} bytes, the identity's JSON says {image.bytes}")
        if zlib.crc32(data) != image.crc32:
            self.report(member, "its bytes changed (crc32)")
        if self.result.decoded:
            try:
                check_image(data)
            except ValueError as error:
                self.report(member, str(error))

    def _compare(self, samples: list[_Sample], split_name: str, split: Split, index: int) -> None:
        rows = (split.shard == index).nonzero()[0]
        if len(samples) != len(rows):
            self.report("", f"{len(samples)} complete identities, the manifest says {len(rows)}")
            return
        for sample, row in zip(samples, rows, strict=True):
            cameras = tuple(sorted({image.camid for image in sample.sightings}))
            found = (sample.pid, sample.name, sample.split, len(sample.sightings), cameras)
            listed = (int(split.pids[row]), split.names[row], split_name, int(split.images[row]), split.cameras[row])
            if found != listed:
                what = f"pid, name, split, images, cameras are {found}, the manifest says {listed}"
                self.report(f"{sample.key}.json", what)
