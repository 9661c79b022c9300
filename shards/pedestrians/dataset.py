"""People drawn procedurally: a small re-ID dataset in Market-1501's layout that needs no download.

An identity is a body, hair and clothes; a camera is a viewpoint, a place and a sensor; an image is a pose, a crop and
whatever stands in the way. Outfits come from a few shared colour sets and every camera has its own colour cast, so
colours alone do not tell people apart: cut, pattern and placement do.

Every random number comes from a generator keyed by names (seed, camera, identity, image), never from a shared stream:
the same arguments give the same bytes for each file, whatever the order or the number of files (with the same Pillow).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from shards.pedestrians.photo import draw_pedestrian
from shards.pedestrians.places import make_camera
from shards.pedestrians.wardrobe import keyed

VERSION = 1  # raise it with any change of the pictures: an older folder is then refused instead of silently mixed
MARKER = "pedestrians.json"


@dataclass(frozen=True)
class Shot:
    """One file to draw. `who` is an identity's key, None for an empty scene; `crop` as in `draw_pedestrian`."""

    path: str
    who: str | None
    camera: int
    key: str
    crop: str = ""


def _shot(folder: str, label: str, who: str | None, camera: int, key: str, index: int, crop: str = "") -> Shot:
    frame = int(keyed("frame", label, camera, key).random() * 9e4)
    return Shot(f"{folder}/{label}_c{camera}s{1 + index % 3}_{frame:06d}_{index:02d}.jpg", who, camera, key, crop)


def _identity_shots(seed: int, pid: int, split: str, images: int, cameras: int) -> list[Shot]:
    """An identity's images, dealt to its cameras; a test identity's first image of a camera becomes a query there.

    A camera with a single image gives no query, so that every query keeps a match on another camera; when no camera
    has two images, the first image alone is the query.
    """
    who = f"{seed}/{pid}"
    order = sorted(range(1, cameras + 1), key=lambda camera: keyed("order", who, camera).random())
    if cameras > 2 and keyed("missing", who).random() < 0.25:  # not everyone passes every camera
        order = order[:-1]
    shots = []
    for index in range(images):
        camera = order[index % len(order)]
        several = images >= len(order) + 1 + index
        first = index < len(order) and (several or (index == 0 and images <= len(order)))
        folder = "bounding_box_train" if split == "train" else "query" if first else "bounding_box_test"
        shots.append(_shot(folder, f"{pid:04d}", who, camera, str(index), index))
    return shots


def _plan(
    seed: int, identities_train: int, identities_test: int, images: int, cameras: int, distractors: int, junk: int
) -> list[Shot]:
    """Every file of the dataset, sorted by path. Train and test identities are mixed in number, as in Market."""
    total = identities_train + identities_test
    mixed = sorted(range(1, total + 1), key=lambda pid: keyed("split", seed, pid).random())
    train = set(mixed[:identities_train])
    shots: list[Shot] = []
    for pid in range(1, total + 1):
        shots += _identity_shots(seed, pid, "train" if pid in train else "test", images, cameras)
    test = sorted(set(mixed) - train)
    for index in range(distractors):  # half strangers whom nobody looks for, half boxes around nobody
        who = f"{seed}/stranger/{index}" if index // cameras % 2 else None  # both on every camera
        shots.append(_shot("bounding_box_test", "0000", who, 1 + index % cameras, f"distractor {index}", index))
    for index in range(junk):  # bad boxes around people who are looked for
        who = f"{seed}/{test[index % len(test)]}"
        shots.append(_shot("bounding_box_test", "-1", who, 1 + index % cameras, f"junk {index}", index, crop="bad"))
    return sorted(shots, key=lambda shot: shot.path)


def synthesize(
    out: Path,
    *,
    identities_train: int = 100,
    identities_test: int = 60,
    images_per_identity: int = 12,
    cameras: int = 4,
    distractors: int = 60,
    junk: int = 30,
    height: int = 128,
    width: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, int]:
    """Draw a dataset into `out` in Market-1501's layout; returns the counts of identities and images.

    `out` must be missing, empty, or hold this function's earlier output for the same arguments: that is left as it is
    when complete, and drawn again when not. Any other folder is refused with a ValueError; no file is ever deleted.
    """
    arguments = {
        "identities_train": identities_train,
        "identities_test": identities_test,
        "images_per_identity": images_per_identity,
        "cameras": cameras,
        "distractors": distractors,
        "junk": junk,
        "height": height,
        "width": width,
        "seed": seed,
    }
    _check(arguments)
    out = Path(out)
    shots = _plan(seed, identities_train, identities_test, images_per_identity, cameras, distractors, junk)
    counts = _count(shots, identities_train, identities_test)
    marker = {"generator": VERSION, "arguments": arguments}
    complete = _claim(out, marker)
    if complete and all((out / shot.path).is_file() for shot in shots):
        return counts
    for folder in ("bounding_box_train", "bounding_box_test", "query"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    _write_marker(out, {**marker, "complete": False})
    for shot in tqdm(shots, desc="drawing pedestrians", unit="image", disable=not progress, mininterval=0.5):
        image = draw_pedestrian(shot.who, shot.camera, shot.key, height, width, scene=seed, crop=shot.crop)
        image.save(out / shot.path, "JPEG", quality=make_camera(seed, shot.camera).quality)
    _write_marker(out, {**marker, "complete": True, "counts": counts})
    return counts


def _check(arguments: dict[str, int]) -> None:
    least = dict(identities_train=1, identities_test=1, images_per_identity=2, cameras=2, height=32, width=16)
    for name, value in arguments.items():
        if name != "seed" and value < least.get(name, 0):
            raise ValueError(f"{name}={value}: use {least.get(name, 0)} or more")
    total = arguments["identities_train"] + arguments["identities_test"]
    if total > 9999:
        raise ValueError(f"{total} identities do not fit Market-1501's four digits; use 9999 or fewer in all")


def _count(shots: Sequence[Shot], identities_train: int, identities_test: int) -> dict[str, int]:
    folders = [shot.path.partition("/")[0] for shot in shots]
    return {
        "identities_train": identities_train,
        "identities_test": identities_test,
        "train": folders.count("bounding_box_train"),
        "query": folders.count("query"),
        "gallery": folders.count("bounding_box_test"),
        "distractors": sum("/0000_" in shot.path for shot in shots),
        "junk": sum("/-1_" in shot.path for shot in shots),
    }


def _claim(out: Path, marker: dict[str, Any]) -> bool:
    """Whether `out` already holds this very dataset, complete. ValueError when it holds anything else."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder to draw into")
    if not out.exists() or not any(out.iterdir()):
        return False
    path = out / MARKER
    if not path.is_file():
        raise ValueError(f"{out} is not empty and was not drawn by this program; name a new folder")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); name a new folder or delete this one") from error
    for name in marker:
        if not isinstance(found, dict) or found.get(name) != marker[name]:
            raise ValueError(
                f"{out} holds pedestrians of other {name} than {marker[name]}; name a new folder or delete this one"
            )
    return bool(found.get("complete"))


def _write_marker(out: Path, content: dict[str, Any]) -> None:
    (out / MARKER).write_text(json.dumps(content, indent=1) + "\n")
