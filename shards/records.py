"""The result of every reader: one record per image, and the facts about the dataset; helpers for readers."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from reid.data.image_file import SUFFIXES
from reid.data.manifest import JUNK_PID
from shards.boxes import Box

SPLITS = ("train", "query", "gallery")
UNSPLIT = ""  # the split of images that are still to be divided
UNKNOWN_CAMERA = -1
OWN_NOTICE = "Images of yours in the layout of {}: their terms of use hold for these shards, too."


class WrongLayoutError(ValueError):
    """The folder is not laid out as the reader expects; another reader may fit."""


@dataclass(frozen=True)
class Record:
    """One image of a raw dataset: a picture's file, or a person in it."""

    path: Path
    pid: int  # -1: junk
    camid: int  # -1: unknown
    split: str
    name: str  # the identity as the dataset writes it
    box: Box | None = None  # of the person in the picture; None: the entire picture
    frame: int | None = None  # of a video, counted from 1; None: the path is a picture
    time: float | None = None  # in any unit
    extra: tuple[tuple[str, str], ...] = ()  # names and values that are stored with the image
    source: str = ""  # what `describe` returns, if `path` is a file of the build with the bytes to store

    def describe(self, root: Path) -> str:
        """Return the path below `root`, with frame and box as in a URL: `gate.mp4#frame=12&xywh=4,7,20,60`."""
        parts = [] if self.frame is None else [f"frame={self.frame}"]
        parts += [] if self.box is None else [f"xywh={self.box}"]
        return self.source or "#".join([self.path.relative_to(root).as_posix(), *filter(None, ["&".join(parts)])])


class Sighting(NamedTuple):
    """One stored image."""

    pid: int
    camid: int
    source: str  # `Record.describe`
    digest: bytes  # first 16 bytes of the sha256, which are enough to compare images


@dataclass(frozen=True)
class Counts:
    """Number of images of a split, with junk and distractors, and of identities, without them."""

    images: int
    identities: int

    def __str__(self) -> str:
        return f"{self.images} images of {self.identities} identities"


@dataclass(frozen=True)
class RawDataset:
    """The images that a reader found under `root`, and the facts about the dataset."""

    name: str
    root: Path
    records: Sequence[Record]  # given in any order, kept sorted by split, pid, path, frame and box
    distractor_pid: int | None  # of gallery images without an identity; None if the dataset has none
    notice: str  # terms of use, shown to the user; stored in the manifest, so another text is another fingerprint
    ignored: Sequence[Path] = ()  # files that are no images of the dataset: Thumbs.db, .DS_Store, ...
    warnings: Sequence[str] = ()  # for the user
    published: Mapping[str, Counts] = field(default_factory=dict)  # the authors' counts; a build warns of other counts
    cameras: Mapping[int, str] = field(default_factory=dict)  # names, where they are not the camids

    def __post_init__(self) -> None:
        ordered = sorted(self.records, key=_place)
        object.__setattr__(self, "records", ordered)
        for path in (record.path for record in ordered if not str(record.path).isascii()):
            name = str(path.relative_to(self.root))
            if name.encode(errors="replace") != os.fsencode(name):
                raise ValueError(f"{self.root}: the name {name!a} is not UTF-8, as shards store names; rename it")


def _place(record: Record) -> tuple[int, int, str, int, Box | tuple[()]]:
    return (UNSPLIT, *SPLITS).index(record.split), record.pid, str(record.path), record.frame or 0, record.box or ()


def name_dataset(raw: RawDataset, name: str | None) -> RawDataset:
    """Return the dataset under the name that the user gives; None is the reader's.

    Many people lay out their own images like a published dataset. If the counts are far from the published ones and
    `name` is another than the reader's, the images are the user's own: the authors' counts and terms do not apply.
    Without a name there is a warning.
    """
    far = bool(raw.published) and not looks_published(raw)
    if name is None and far:
        counts = count_records(raw)
        known = [split for split in raw.published if split in counts]
        found, published = (", ".join(f"{split}: {each[split]}" for split in known) for each in (counts, raw.published))
        text = f"these are not the images of {raw.name} ({found}; published are {published}), but would be called so: "
        text += "if they are your own, build them with --dataset <name>"
        return replace(raw, warnings=(*raw.warnings, text), published={})
    if name in (None, raw.name):
        return raw
    return replace(raw, name=name, notice=OWN_NOTICE.format(raw.name), published={}) if far else replace(raw, name=name)


def count_records(raw: RawDataset) -> dict[str, Counts]:
    """Count the images and identities of each split that has any."""
    images = Counter(record.split for record in raw.records)
    pairs = {(record.split, record.pid) for record in raw.records if record.pid not in (JUNK_PID, raw.distractor_pid)}
    identities = Counter(split for split, _ in pairs)
    return {split: Counts(images[split], identities[split]) for split in images}


def looks_published(raw: RawDataset) -> bool:
    """Return whether both counts of a split differ by less than a fifth from the published ones.

    Others mean other data, not an incomplete copy or another version.
    """
    return any(
        0.8 < found.images / wanted.images < 1.25 and 0.8 < found.identities / wanted.identities < 1.25
        for split, found in count_records(raw).items()
        if (wanted := raw.published.get(split))
    )


def number_from_one(names: Iterable[str]) -> dict[str, int]:
    """Map each distinct name to 1, 2, ... in sorted order; 2 before 10 if every name is a number."""
    distinct = set(names)
    numeric = all(name.isdecimal() and len(name) < 100 for name in distinct)  # int() refuses thousands of digits
    ordered = sorted(distinct, key=lambda name: (int(name) if numeric else 0, name))
    return {name: number for number, name in enumerate(ordered, start=1)}


def is_hidden(path: Path) -> bool:
    """Return whether a file or folder is no part of a dataset, as macOS writes them: `._1.jpg`, `__MACOSX`."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def is_image(path: Path) -> bool:
    """Return whether a name is an image's."""
    return path.suffix.lower() in SUFFIXES and not is_hidden(path)


def unwrap(folder: Path) -> Path:
    """Return the innermost folder of the same name, as unpacking archives leaves it: MSMT17_V2/MSMT17_V2/MSMT17_V2."""
    name = folder.resolve().name
    while (folder / name).is_dir():
        if [path.name for path in list_folder(folder) if path.is_dir() and not is_hidden(path)] != [name]:
            break
        folder = folder / name
    return folder


def list_folder(folder: Path) -> list[Path]:
    """Return the entries of a folder, sorted. Raise ValueError if it cannot be listed."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise ValueError(f"{folder}: cannot be listed ({error.strerror}); check the path given by --root") from error


def check_folder(folder: Path, fix: str) -> None:
    """Raise WrongLayoutError, with the contents of the parent folder and the fix, if a folder does not exist."""
    if not folder.is_dir():
        there = f"; {folder.parent} holds {describe_folder(folder.parent)}" if folder.parent.is_dir() else ""
        raise WrongLayoutError(f"{folder}: no such folder{there}; {fix}")


def describe_folder(folder: Path) -> str:
    """List a few of a folder's entries, for errors."""
    return list_few([path.name + ("/" if path.is_dir() else "") for path in list_folder(folder)]) or "nothing"


def list_few(names: Sequence[str], limit: int = 8) -> str:
    """Join the first names with commas, and say how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
