"""A folder of folders: `root/<split>/<identity>/*.jpg`, splits train, query and gallery, cameras unknown."""

from pathlib import Path

from shards.labels import describe_lookalikes
from shards.records import (
    SPLITS,
    UNKNOWN_CAMERA,
    RawDataset,
    Record,
    WrongLayoutError,
    check_folder,
    describe_folder,
    is_image,
    list_few,
    list_folder,
    number_from_one,
)

NAME = "folder"
NOTICE = "Images from a folder of yours: their terms of use hold for these shards, too."
LAYOUT = "<split>/<identity>/*.jpg with the splits train, query, gallery"


def read(root: Path) -> RawDataset:
    """Read `root/<split>/<identity>/*.jpg`, or another suffix of images.

    Splits may be absent. An identity has one pid in all splits.
    Raises ValueError if no image fits the layout.
    """
    check_folder(root, f"give --root a folder laid out as {LAYOUT}")
    files: list[tuple[str, str, Path]] = []  # split, identity, image
    ignored: list[Path] = []
    for split in list_folder(root):
        if not split.is_dir() or split.name not in SPLITS:
            ignored.append(split)
            continue
        for identity in list_folder(split):
            if not identity.is_dir() or identity.name.startswith("."):
                ignored.append(identity)
                continue
            for path in list_folder(identity):
                if is_image(path) and not path.is_dir():
                    files.append((split.name, identity.name, path))
                else:
                    ignored.append(path)
    if not files:
        splits = [f"{split}/: {describe_folder(root / split)}" for split in SPLITS if (root / split).is_dir()]
        found = "; in ".join([describe_folder(root), *splits])
        raise WrongLayoutError(f"{root}: no image found; expected {LAYOUT}; found {found}")
    pids = number_from_one(identity for _, identity, _ in files)
    records = [Record(path, pids[identity], UNKNOWN_CAMERA, split, identity) for split, identity, path in files]
    unread = [path.name for path in ignored if path.parent == root and path.is_dir()]
    warnings = [f"folders whose names are not splits were not read: {list_few(unread)}"] if unread else []
    warnings += describe_lookalikes("identities", pids)
    return RawDataset(NAME, root, records, None, NOTICE, ignored, warnings)
