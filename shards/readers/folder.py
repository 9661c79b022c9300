"""A folder of folders: `root/<split>/<identity>/*.jpg`, splits train, query and gallery, cameras unknown."""

from pathlib import Path

from shards.records import (
    SPLITS,
    UNKNOWN_CAMERA,
    RawDataset,
    Record,
    describe_folder,
    is_image,
    list_folder,
    number_from_one,
    sort_records,
)

NAME = "folder"
NOTICE = "Images from a folder of yours: their terms of use hold for these shards, too."
LAYOUT = "<split>/<identity>/*.jpg with the splits train, query, gallery"


def read(root: Path) -> RawDataset:
    """Read `root/<split>/<identity>/*.{jpg,jpeg,png}`; splits may be absent, an identity has one number in all splits.

    ValueError when nothing fits the layout.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; give --root a folder laid out as {LAYOUT}")
    files: list[tuple[str, str, Path]] = []
    ignored: list[Path] = []
    for entry in list_folder(root):
        if entry.name in SPLITS and entry.is_dir():
            found, strays = _read_split(entry)
            files += [(entry.name, identity, path) for identity, path in found]
            ignored += strays
        else:
            ignored.append(entry)
    if not files:
        raise ValueError(f"{root}: no image found; expected {LAYOUT}; found {_describe(root)}")
    numbers = number_from_one(identity for _, identity, _ in files)
    records = [Record(path, numbers[identity], UNKNOWN_CAMERA, split, identity) for split, identity, path in files]
    unread = [path.name for path in ignored if path.parent == root and path.is_dir()]
    warnings = [f"folders that are no split were not read: {', '.join(unread)}"] if unread else []
    return RawDataset(NAME, root, sort_records(records), None, NOTICE, tuple(ignored), tuple(warnings))


def _read_split(folder: Path) -> tuple[list[tuple[str, Path]], list[Path]]:
    files: list[tuple[str, Path]] = []
    ignored: list[Path] = []
    for identity in list_folder(folder):
        if not identity.is_dir() or identity.name.startswith("."):
            ignored.append(identity)
            continue
        for path in list_folder(identity):
            if is_image(path) and not path.is_dir():
                files.append((identity.name, path))
            else:
                ignored.append(path)
    return files, ignored


def _describe(root: Path) -> str:
    """The root's entries and those of the first split there is, where a level too many or too few shows."""
    text = describe_folder(root)
    for split in SPLITS:
        if (root / split).is_dir():
            return f"{text}; in {split}/: {describe_folder(root / split)}"
    return text
