"""A folder of folders: `root/<split>/<identity>/*.jpg`, or `root/<identity>/*.jpg` without splits; cameras unknown."""

from pathlib import Path

from shards.labels import check_sides, describe_lookalikes
from shards.records import (
    SPLITS,
    UNKNOWN_CAMERA,
    UNSPLIT,
    RawDataset,
    Record,
    WrongLayoutError,
    check_folder,
    describe_folder,
    is_hidden,
    is_image,
    list_few,
    list_folder,
    number_from_one,
)

NAME = "folder"
NOTICE = "Images from a folder of yours: their terms of use hold for these shards, too."
LAYOUT = "<split>/<identity>/*.jpg with the splits train, query, gallery, or <identity>/*.jpg"


def read(root: Path) -> RawDataset:
    """Read `root/<split>/<identity>/*.jpg`, or another suffix of images.

    Some splits may be absent; an identity has one pid in all splits. If all are absent, the folders are identities.
    Raises ValueError if no image fits the layout, or if an identity is in train and in another split.
    """
    check_folder(root, f"give --root a folder laid out as {LAYOUT}")
    files: list[tuple[str, str, Path]] = []  # split, identity, image
    ignored: list[Path] = []
    entries = list_folder(root)
    splits = [path for path in entries if path.is_dir() and path.name in SPLITS]
    if splits:
        ignored += [path for path in entries if path not in splits]
    for split in splits or [root]:
        for identity in list_folder(split):
            if not identity.is_dir() or is_hidden(identity):
                ignored.append(identity)
                continue
            for path in list_folder(identity):
                if is_image(path) and not path.is_dir():
                    files.append((split.name if splits else UNSPLIT, identity.name, path))
                else:
                    ignored.append(path)
    if not files:
        found = "; in ".join([describe_folder(root), *(f"{path.name}/: {describe_folder(path)}" for path in splits)])
        raise WrongLayoutError(f"{root}: no image found; expected {LAYOUT}; found {found}")
    check_sides((split, identity, str(path.parent)) for split, identity, path in files)
    pids = number_from_one(identity for _, identity, _ in files)
    records = [Record(path, pids[identity], UNKNOWN_CAMERA, split, identity) for split, identity, path in files]
    others = [path for path in ignored if path.parent == root and path.is_dir() and splits]
    unread = [path.name for path in others if path.name != "__MACOSX"]
    warnings = [f"folders whose names are not splits were not read: {list_few(unread)}"] if unread else []
    warnings += describe_lookalikes("identities", pids)
    return RawDataset(NAME, root, records, None, NOTICE, ignored, warnings)
