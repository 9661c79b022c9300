"""What every reader hands over: one record per image, and what the dataset says about itself."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from reid.data.manifest import JUNK_PID as JUNK_PID

SPLITS = ("train", "query", "gallery")
UNKNOWN_CAMERA = -1
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})


@dataclass(frozen=True)
class Record:
    """One image of a raw dataset. pid -1 = junk; camid -1 = unknown; name = the identity as the dataset writes it."""

    path: Path
    pid: int
    camid: int
    split: str
    name: str


class Sighting(NamedTuple):
    """One stored image: whom it shows, which camera saw it, where it came from, the first 16 bytes of its sha256."""

    pid: int
    camid: int
    source: str
    digest: bytes


@dataclass(frozen=True)
class Counts:
    """Images of a split, with junk and distractors, and its identities without them."""

    images: int
    identities: int


@dataclass(frozen=True)
class RawDataset:
    """What a reader found under `root`. Records are sorted by split, pid and path.

    distractor_pid: the pid of gallery images that belong to nobody, None where the dataset has none.
    notice: the terms of use, shown to the user and stored with the shards. ignored: the files that are no images of the
    dataset (Thumbs.db, .DS_Store, ...). warnings: whatever else the user should hear. published: what its authors count
    in each split; a build that counts otherwise says so.
    """

    name: str
    root: Path
    records: tuple[Record, ...]
    distractor_pid: int | None
    notice: str
    ignored: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()
    published: Mapping[str, Counts] = field(default_factory=dict)


def sort_records(records: Iterable[Record]) -> tuple[Record, ...]:
    """Train, query, gallery; in each by pid, then path: never the order in which a file system lists them."""
    return tuple(sorted(records, key=lambda record: (SPLITS.index(record.split), record.pid, str(record.path))))


def number_from_one(names: Iterable[str]) -> dict[str, int]:
    """Map each distinct name to 1, 2, ... in sorted order; 2 before 10 when every name is a number."""
    distinct = set(names)
    if all(name.isdecimal() for name in distinct):
        ordered = sorted(distinct, key=lambda name: (int(name), name))
    else:
        ordered = sorted(distinct)
    return {name: number for number, name in enumerate(ordered, start=1)}


def is_image(path: Path) -> bool:
    """By its name; hidden files are none (macOS leaves `._0002_c1s1_000451_03.jpg` beside each image)."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_folder(folder: Path) -> list[Path]:
    """The entries of a folder, sorted. ValueError where it cannot be listed."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise ValueError(f"{folder}: cannot be listed ({error.strerror}); check the path given by --root") from error


def describe_folder(folder: Path, limit: int = 8) -> str:
    """A few of a folder's entries, to say in an error what was found there instead."""
    names = [path.name + ("/" if path.is_dir() else "") for path in list_folder(folder)]
    shown = ", ".join(names[:limit]) or "nothing"
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def digest_image(data: bytes) -> bytes:
    """Enough of a sha256 to tell images apart, at half the memory."""
    return hashlib.sha256(data).digest()[:16]
