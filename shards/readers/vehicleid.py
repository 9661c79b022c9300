"""VehicleID (Liu et al., CVPR 2016): vehicles, not people; lists name images and vehicles, cameras are unknown."""

import random
from collections import defaultdict
from pathlib import Path

from reid.files import read_text
from shards.records import (
    UNKNOWN_CAMERA,
    Counts,
    RawDataset,
    Record,
    WrongLayoutError,
    check_folder,
    describe_folder,
    unwrap,
)

NAME = "vehicleid"
IMAGES, LISTS = "image", "train_test_split"
TESTED = {800: 6_493, 1600: 13_377, 2400: 19_777}  # vehicles of a test list -> its images
LINE = "0000001 4215"
NOTICE = (
    "VehicleID is given by its authors on request, for academic research only, and may not be redistributed; "
    "this holds for shards made from it. "
    "Cite Liu et al., Deep Relative Distance Learning: Tell the Difference Between Similar Vehicles, CVPR 2016."
)


def read(root: Path, vehicles: int = 800, draw: int = 0) -> RawDataset:
    """Read the images `root/image/*.jpg` that `root/train_test_split/{train_list,test_list_<vehicles>}.txt` name.

    One image per test vehicle, drawn at random, is the gallery; its other images are queries. A listed image that does
    not exist counts as broken in the build.

    Args:
        vehicles: of the test list, one of TESTED. Each is a dataset of its own, such as vehicleid-800.
        draw: another number draws another gallery. Publications report the mean of ten draws.
    """
    if vehicles not in TESTED:
        raise ValueError(f"--vehicles {vehicles}: use {', '.join(map(str, TESTED))}")
    root = unwrap(root)
    for folder in (IMAGES, LISTS):
        check_folder(root / folder, f"give --root the folder that holds {IMAGES} and {LISTS}")
    records = [
        Record(path, int(name), UNKNOWN_CAMERA, "train", name)
        for name, paths in _read_list(root, "train_list.txt").items()
        for path in paths
    ]
    for name, paths in _read_list(root, f"test_list_{vehicles}.txt").items():
        drawn = random.Random(f"{draw}/{name}").choice(sorted(paths))
        for path in paths:
            split = "gallery" if path == drawn else "query"
            records.append(Record(path, int(name), UNKNOWN_CAMERA, split, name))
    published = {
        "train": Counts(113_346, 13_164),
        "query": Counts(TESTED[vehicles] - vehicles, vehicles),
        "gallery": Counts(vehicles, vehicles),
    }
    name = f"{NAME}-{vehicles}" + (f"-draw{draw}" if draw else "")
    return RawDataset(name, root, records, None, NOTICE, published=published)


def _read_list(root: Path, name: str) -> dict[str, list[Path]]:
    """Return the images of each vehicle of a list. Raises ValueError, with the line, if one cannot be read."""
    path = root / LISTS / name
    if not path.exists():
        found = describe_folder(path.parent)
        raise WrongLayoutError(f"{path}: no such file; {path.parent} holds {found}; check --root")
    found_at: dict[str, str] = {}
    images: dict[str, list[Path]] = defaultdict(list)
    for number, line in enumerate(read_text(path).splitlines(), 1):
        where, fields = f"{path}, line {number}", line.split()
        if not fields:
            continue
        if len(fields) != 2 or not all(field.isascii() and field.isdecimal() for field in fields):
            raise ValueError(f"{where}: {line!r} does not read like {LINE!r}; copy the list again")
        image, vehicle = fields
        if (first := found_at.setdefault(image, where)) != where:
            raise ValueError(f"{first} and {where}: image {image} is listed twice; copy the list again")
        images[vehicle].append(root / IMAGES / f"{image}.jpg")
    if not images:
        raise ValueError(f"{path}: is empty; copy the list again")
    return images
