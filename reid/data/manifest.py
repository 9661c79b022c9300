"""`manifest.json`, which describes a folder of shards; checked when it is read.

The manifest holds every number that planning an epoch needs, without opening a tar. It is written last, so a folder
without one is an unfinished build.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from reid.data.storage import full_path, is_remote, read_file
from reid.files import write_atomically

FORMAT = 2  # 2: the JSON of an identity gives the bytes of its images
MANIFEST_NAME = "manifest.json"
JUNK_PID = -1

# Shard names reach WebDataset, which runs `pipe:` in a shell, opens URLs and expands braces: plain file names only.
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SPLIT_ORDER = {"train": 0, "query": 1, "gallery": 2}
_DAMAGED = "the manifest is damaged or was edited: build the shards again"


@dataclass(frozen=True)
class Shard:
    """One tar: file name inside the build's folder, hex sha256, size in bytes, identities (= samples) and images."""

    name: str
    sha256: str
    bytes: int
    identities: int
    images: int


@dataclass(frozen=True, eq=False)
class Split:
    """One split: columns over its N stored identities in storage order (shard 0 in tar order, then shard 1, ...)."""

    shards: tuple[Shard, ...]
    pids: np.ndarray
    """(N,) int64. A pid occurs once, except junk (-1) and distractors, which are stored in groups."""
    images: np.ndarray
    """(N,) int64: number of images."""
    shard: np.ndarray
    """(N,) int64: index into `shards`."""
    cameras: tuple[tuple[int, ...], ...]
    """The distinct camera ids of each identity, sorted; -1 is unknown."""
    names: tuple[str, ...]
    """The identities as the dataset writes them."""

    @property
    def num_images(self) -> int:
        return int(self.images.sum())


@dataclass(frozen=True, eq=False)
class Manifest:
    """A finished build."""

    dataset: str
    splits: dict[str, Split]
    distractor_pid: int | None = None
    notice: str = ""
    skipped: tuple[dict[str, str], ...] = ()
    """{"source", "reason"} of each broken image that was left out."""
    encoding: str = ""
    """How images were re-encoded; empty, and not in the file, if their original bytes are stored."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Of shards that were merged: the fingerprint of each dataset by its label, with which the names of its identities
    begin (`<label>/<name>`). Empty, and not in the file, of others."""

    @property
    def shards(self) -> list[Shard]:
        """The shards of all splits."""
        return [shard for split in self.splits.values() for shard in split.shards]

    @property
    def has_test_set(self) -> bool:
        """Whether there are query and gallery; a folder of training images is enough to train on."""
        return {"query", "gallery"} <= self.splits.keys()

    def split(self, name: str) -> Split:
        if name not in self.splits:
            there = ", ".join(self.splits) or "none"
            raise ValueError(f"{self.dataset}: no split {name!r} in these shards; there are: {there}")
        return self.splits[name]

    @property
    def contents(self) -> set[str]:
        """The fingerprints of what it holds: its own, and those of merged datasets."""
        return {self.fingerprint, *self.origins.values()}

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of the file as `save_manifest` writes it, without the fingerprint in it."""
        return hashlib.sha256(_to_text(_to_document(self))).hexdigest()


def load_manifest(root: str | Path) -> Manifest:
    """Read and check the manifest of a folder or URL. Raises ValueError, which names the file and the fix."""
    if not is_remote(root):
        if not Path(root).is_dir():
            raise ValueError(f"{root}: no such folder; build the shards first: reid shards build --help")
        if not Path(root, MANIFEST_NAME).is_file():
            raise ValueError(
                f"{root}: no {MANIFEST_NAME}: pictures, or an unfinished build; build it again, pictures with "
                "`reid shards build`"
            )
    path = full_path(root, MANIFEST_NAME) if is_remote(root) else str(Path(root, MANIFEST_NAME))
    try:
        text = read_file(root, MANIFEST_NAME)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: not JSON ({error}); the file is damaged: copy it or build the shards again"
        ) from error
    return _parse(document, path)


def save_manifest(manifest: Manifest, folder: Path) -> Path:
    """Write `folder/manifest.json` atomically and return its path."""
    path = folder / MANIFEST_NAME
    document = _to_document(manifest) | {"fingerprint": manifest.fingerprint}
    _parse(document, str(path))  # a manifest that cannot be read must not be written
    write_atomically(path, _to_text(document))
    return path


def _to_document(manifest: Manifest) -> dict[str, Any]:
    document: dict[str, Any] = {
        "format": FORMAT,
        "dataset": manifest.dataset,
        "distractor_pid": manifest.distractor_pid,
        "notice": manifest.notice,
        "skipped": list(manifest.skipped),
        "splits": {
            name: {
                "shards": [asdict(shard) for shard in split.shards],
                "identities": {
                    "pid": split.pids.tolist(),
                    "images": split.images.tolist(),
                    "shard": split.shard.tolist(),
                    "cameras": split.cameras,
                    "name": split.names,
                },
            }
            for name, split in manifest.splits.items()
        },
    }
    if manifest.encoding:
        document["encoding"] = manifest.encoding
    if manifest.origins:
        document["origins"] = dict(manifest.origins)
    return document


def _to_text(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _parse(document: Any, path: str) -> Manifest:
    if not isinstance(document, dict) or "format" not in document:
        raise ValueError(f"{path}: not a manifest of shards (no 'format'); point at a folder that `shards build` wrote")
    if document["format"] != FORMAT or isinstance(document["format"], bool):
        raise ValueError(
            f"{path}: format {document['format']!r}, this version reads format {FORMAT}; "
            "build the shards again, or use the version that wrote them"
        )
    try:
        distractor_pid = document["distractor_pid"]
        if distractor_pid is not None:
            distractor_pid = _integer(distractor_pid, "distractor_pid", least=0)
        splits = sorted(document["splits"].items(), key=lambda item: (_SPLIT_ORDER.get(item[0], 3), item[0]))
        manifest = Manifest(
            dataset=_string(document["dataset"], "dataset"),
            splits={name: _parse_split(value, distractor_pid) for name, value in splits},
            distractor_pid=distractor_pid,
            notice=_string(document["notice"], "notice"),
            skipped=tuple(dict(entry) for entry in document["skipped"]),
            encoding=_string(document.get("encoding", ""), "encoding"),
            origins={label: _string(text, f"origin {label}") for label, text in document.get("origins", {}).items()},
        )
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]!r} is missing; {_DAMAGED}") from error
    except (TypeError, AttributeError, OverflowError, ValueError) as error:
        raise ValueError(f"{path}: {error}; {_DAMAGED}") from error
    names = [shard.name for shard in manifest.shards]
    if len(names) != len(set(names)):
        raise ValueError(f"{path}: a shard is listed twice; {_DAMAGED}")
    if document.get("fingerprint", manifest.fingerprint) != manifest.fingerprint:  # absent in earlier versions
        raise ValueError(f"{path}: its content does not match its fingerprint; {_DAMAGED}")
    return manifest


def _parse_split(value: dict[str, Any], distractor_pid: int | None) -> Split:
    columns = value["identities"]
    split = Split(
        shards=tuple(_parse_shard(shard) for shard in value["shards"]),
        pids=_column(columns["pid"], "pid", least=JUNK_PID),
        images=_column(columns["images"], "images", least=1),
        shard=_column(columns["shard"], "shard", least=0),
        cameras=tuple(tuple(cameras) for cameras in columns["cameras"]),
        names=tuple(columns["name"]),
    )
    _check_split(split, distractor_pid)
    return split


def _parse_shard(value: dict[str, Any]) -> Shard:
    name = _string(value["name"], "shard name")
    if not _SHARD_NAME.fullmatch(name):
        raise ValueError(f"shard name {name!r} is unsafe: only plain file names like train-0000.tar are read")
    if not _SHA256.fullmatch(_string(value["sha256"], "sha256")):
        raise ValueError(f"{name}: sha256 {value['sha256']!r} is not 64 hex digits")
    sizes = [_integer(value[key], f"{name}: {key}", least=1) for key in ("bytes", "identities", "images")]
    return Shard(name, value["sha256"], *sizes)


def _check_split(split: Split, distractor_pid: int | None) -> None:
    lengths = {len(split.pids), len(split.images), len(split.shard), len(split.cameras), len(split.names)}
    if len(lengths) != 1:
        raise ValueError(f"identity columns of different lengths {sorted(lengths)}")
    if not all(isinstance(name, str) for name in split.names):
        raise ValueError("an identity name is not a string")
    if not all(type(camera) is int and camera >= -1 for cameras in split.cameras for camera in cameras):
        raise ValueError("a camera is not an integer from -1")
    if (np.diff(split.shard) < 0).any() or (split.shard >= len(split.shards)).any():
        raise ValueError("identities are not in storage order")
    identities = np.bincount(split.shard, minlength=len(split.shards))
    images = np.bincount(split.shard, weights=split.images, minlength=len(split.shards))
    for index, shard in enumerate(split.shards):
        if (shard.identities, shard.images) != (identities[index], images[index]):
            raise ValueError(
                f"{shard.name}: {shard.identities} identities with {shard.images} images, "
                f"but the columns list {identities[index]} with {int(images[index])}"
            )
    pids, counts = np.unique(split.pids, return_counts=True)
    grouped = [JUNK_PID] if distractor_pid is None else [JUNK_PID, distractor_pid]
    repeated = pids[(counts > 1) & ~np.isin(pids, grouped)]
    if len(repeated):
        raise ValueError(f"pid {repeated[0]} is stored twice in one split")


def _column(values: Any, name: str, least: int) -> np.ndarray:
    raw = np.asarray(values)
    if raw.ndim != 1 or (raw.size and raw.dtype.kind != "i"):
        raise ValueError(f"column {name!r} is not a list of integers")
    column = raw.astype(np.int64)
    if column.size and column.min() < least:
        raise ValueError(f"column {name!r} holds {column.min()}, at least {least} is possible")
    column.setflags(write=False)
    return column


def _integer(value: Any, name: str, least: int) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} is {value!r}, not an integer from {least}")
    return value


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}, not text")
    return value
