"""People drawn by a program: a small re-ID dataset in Market-1501's layout that needs no download.

An identity is a body, hair and clothes; a camera is a viewpoint, a place and a sensor; an image is a pose, a crop and
an object in front. Outfits come from a few shared colour sets and every camera has its own colour cast, so colours do
not identify people: cut, pattern and placement do.

Every random number comes from a generator with a key (seed, camera, identity, image), never from a shared stream: the
same arguments give the same bytes for each file, for any order and number of files (with the same Pillow).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from reid.files import make_folder, write_atomically
from shards.pedestrians.photo import Shot, draw_pedestrian
from shards.pedestrians.places import make_camera
from shards.pedestrians.wardrobe import keyed
from shards.readers.market1501 import DRAWN_MARKER
from shards.readers.market_layout import FOLDERS

VERSION = 1  # increase it with any change of the pictures: a folder of another version is refused, not mixed
# argument -> default, minimum, description
ARGUMENTS = {
    "identities_train": (100, 1, "identities to train on"),
    "identities_test": (60, 1, "identities in query and gallery"),
    "images_per_identity": (12, 2, "images of each identity, over all cameras"),
    "cameras": (4, 2, "number of cameras"),
    "distractors": (60, 0, "gallery images of people without a query (pid 0)"),
    "junk": (30, 0, "gallery images that evaluation drops (pid -1)"),
    "height": (128, 32, "pixels"),
    "width": (64, 16, "pixels"),
    "seed": (0, None, "the same seed draws the same dataset"),
}


def synthesize(out: Path, *, progress: bool = True, **arguments: int) -> dict[str, int]:
    """Draw a dataset in Market-1501's layout.

    Args:
        out: a folder that is missing, is empty, or holds this function's earlier output for the same arguments: that is
            kept if it is complete, and drawn again if not. No file is ever deleted.
        progress: whether to show a progress bar.
        arguments: see ARGUMENTS.

    Returns:
        The numbers of identities and images.

    Raises:
        ValueError: an argument is out of range, or `out` holds something else.
    """
    arguments = {name: arguments.pop(name, default) for name, (default, _, _) in ARGUMENTS.items()} | arguments
    _check(arguments)
    out, seed = Path(out), arguments["seed"]
    shots = plan_shots(arguments)
    folders = [shot.path.partition("/")[0] for shot in shots]
    counts = {name: arguments[name] for name in ("identities_train", "identities_test")}
    counts |= {split: folders.count(folder) for split, folder in FOLDERS.items()}
    counts |= {name: arguments[name] for name in ("distractors", "junk")}
    marker = {"generator": VERSION, "arguments": arguments}
    if _is_complete(out, marker) and all((out / shot.path).is_file() for shot in shots):
        return counts
    for folder in FOLDERS.values():
        make_folder(out / folder)
    write_atomically(out / DRAWN_MARKER, json.dumps({**marker, "complete": False}, indent=1) + "\n")
    for shot in tqdm(shots, desc="drawing pedestrians", unit="image", disable=not progress, mininterval=0.5):
        image = draw_pedestrian(shot, arguments["height"], arguments["width"], seed)
        image.save(out / shot.path, "JPEG", quality=make_camera(seed, shot.camera).quality)
    marker |= {"complete": True, "counts": counts}
    write_atomically(out / DRAWN_MARKER, json.dumps(marker, indent=1) + "\n")
    return counts


def _check(arguments: dict[str, int]) -> None:
    for name, value in arguments.items():
        if name not in ARGUMENTS:
            raise ValueError(f"{name}={value}: unknown; the arguments are {', '.join(ARGUMENTS)}")
        minimum = ARGUMENTS[name][1]
        if minimum is not None and value < minimum:
            raise ValueError(f"{name}={value}: use {minimum} or more")
    total = arguments["identities_train"] + arguments["identities_test"]
    if total > 9999:
        raise ValueError(f"{total} identities do not fit Market-1501's four digits; use 9999 or fewer in all")


def plan_shots(arguments: Mapping[str, int]) -> list[Shot]:
    """Return every file of the dataset, sorted by path. Train and test pids are mixed, as in Market-1501."""
    seed, cameras, num_train = arguments["seed"], arguments["cameras"], arguments["identities_train"]
    pids = range(1, num_train + arguments["identities_test"] + 1)
    mixed = sorted(pids, key=lambda pid: keyed("split", seed, pid).random())
    train, test = set(mixed[:num_train]), sorted(mixed[num_train:])
    shots: list[Shot] = []
    for pid in pids:
        split = "train" if pid in train else "test"
        shots += plan_identity(seed, pid, split, arguments["images_per_identity"], cameras)
    for index in range(arguments["distractors"]):  # every camera has people without a query and boxes without a person
        who = f"{seed}/stranger/{index}" if index // cameras % 2 else None
        shots.append(_shot("gallery", "0000", who, 1 + index % cameras, f"distractor {index}", index))
    for index in range(arguments["junk"]):  # bad boxes around test identities
        who = f"{seed}/{test[index % len(test)]}"
        shots.append(_shot("gallery", "-1", who, 1 + index % cameras, f"junk {index}", index, crop="bad"))
    return sorted(shots, key=lambda shot: shot.path)


def plan_identity(seed: int, pid: int, split: str, images: int, cameras: int) -> list[Shot]:
    """Deal an identity's images to its cameras. A test identity's first image of a camera becomes a query.

    A camera with a single image gives no query, so that every query has a match from another camera. If no camera has
    two images, only the first image is a query.
    """
    who = f"{seed}/{pid}"
    order = sorted(range(1, cameras + 1), key=lambda camera: keyed("order", who, camera).random())
    if cameras > 2 and keyed("missing", who).random() < 0.25:  # some people miss one camera
        order = order[:-1]
    shots = []
    for index in range(images):
        has_two = images > len(order) + index
        is_query = index < len(order) and (has_two or (index == 0 and images <= len(order)))
        part = "train" if split == "train" else "query" if is_query else "gallery"
        shots.append(_shot(part, f"{pid:04d}", who, order[index % len(order)], str(index), index))
    return shots


def _shot(split: str, label: str, who: str | None, camera: int, key: str, index: int, crop: str = "") -> Shot:
    frame = int(keyed("frame", label, camera, key).random() * 9e4)
    path = f"{FOLDERS[split]}/{label}_c{camera}s{1 + index % 3}_{frame:06d}_{index:02d}.jpg"
    return Shot(path, who, camera, key, crop)


def _is_complete(out: Path, marker: dict[str, Any]) -> bool:
    """Return whether `out` holds exactly this dataset, complete. Raise ValueError if it holds anything else."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder to draw into")
    if not out.exists() or not any(out.iterdir()):
        return False
    path = out / DRAWN_MARKER
    if not path.is_file():
        raise ValueError(f"{out} is not empty and was not drawn by this program; name a new folder")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); name a new folder or delete this one") from error
    for name, wanted in marker.items():
        if not isinstance(found, dict) or found.get(name) != wanted:
            raise ValueError(f"{out} holds pedestrians of other {name} than {wanted}; name a new folder or delete it")
    return bool(found.get("complete"))
