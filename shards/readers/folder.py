"""A folder of folders: `root/<split>/<identity>/*.jpg`, splits train, query and gallery, cameras unknown."""

from pathlib import Path

from shards.records import (
    SPLITS,
    UNKNOWN_CAMERA,
    RawDataset,
    Record,
    check_folder,
    describe_folder,
    is_image,
    list_folder,
    number_from_one,
)

NAME = "folder"
NOTICE = "Images from a folder of yours: their terms of use hold for these shards, too."
LAYOUT = "<split>/<identity>/*.jpg with the splits train, query, gallery"


def read(root: Path) -> RawDataset:
    """Read `root/<split>/<identity>/*.{jpg,jpeg,png}`; splits may be absent, an identity has one pid in all splits.

    Raises ValueError if no image fits the layout.
    """
    check_folder(root, f"give --root a folder laid out as {LAYOUT}")
    files: list[tuple[str, str, Path]] = []  # split, identity, image
    ignored: list[Path] = []
    for split in list_folder(root):
        for identity in _list_or_ignore(split, split.name in SPLITS, ignored):
            for path in _list_or_ignore(identity, not identity.name.startswith("."), ignored):
                if is_image(path) and not path.is_dir():
                    files.append((split.name, identity.name, path))
                else:
                    ignored.append(path)
    if not files:
        splits = [f"{split}/: {describe_folder(root / split)}" for split in SPLITS if (root / split).is_dir()]
        found = "; in ".join([describe_folder(root), *splits])
        raise ValueError(f"{root}: no image found; expected {LAYOUT}; found {found}")
    pids = number_from_one(identity for _, identity, _ in files)
    records = [Record(path, pids[identity], UNKNOWN_CAMERA, split, identity) for split, identity, path in files]
    unread = [path.name for path in ignored if path.parent == root and path.is_dir()]
    warnings = [f"folders whose names are not splits were not read: {', '.join(unread)}"] if unread else []
    return RawDataset(NAME, root, records, None, NOTICE, ignored, warnings)


def _list_or_ignore(path: Path, wanted: bool, ignored: list[Path]) -> list[Path]:
    """List a folder; add `path` to `ignored` instead if it is no folder or is not wanted."""
    if wanted and path.is_dir():
        return list_folder(path)
    ignored.append(path)
    return []
