"""COCO's JSON: boxes of images, each with an attribute that says who it is."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reid.data.table import relative_path
from reid.files import read_text
from shards.boxes import SIZED, check_units, parse_box
from shards.labels import describe_lookalikes
from shards.records import (
    UNKNOWN_CAMERA,
    UNSPLIT,
    RawDataset,
    Record,
    WrongLayoutError,
    check_folder,
    list_few,
    number_from_one,
)

NAME = "coco"
NOTICE = "Images listed by a COCO file of yours: their terms of use hold for these shards, too."
IDENTITIES = ("identity", "person_id", "pid", "track_id", "instance_id")  # of an annotation
CAMERAS = ("camera", "camera_id", "camid")  # of an image


def read(
    root: Path, annotations: Path | None = None, identity: str | None = None, camera: str | None = None
) -> RawDataset:
    """Read the boxes of a COCO file that have an identity, without splits.

    Args:
        root: the folder that `file_name` starts from.
        annotations: the file; default: the only .json in `root`.
        identity: the attribute of an annotation, or of its `attributes`, that says who it is; default: the one of
            IDENTITIES that is there. Annotations without it, and crowds, are counted and left out.
        camera: the attribute of an image that says which camera took it; default: the one of CAMERAS that is there, or
            unknown cameras.

    Raises:
        ValueError: with the file, the annotation and the fix.
    """
    table = _locate(root, annotations)
    images, boxes = _load(table)
    if not boxes:
        raise ValueError(f"{table}: has no annotations, so no boxes of people; export it again with them")
    identity = _choose(table, "--identity", identity, IDENTITIES, boxes)
    camera = _choose(table, "--camera", camera, CAMERAS, list(images.values()), required=camera is not None)
    found: list[tuple[str, str, Record]] = []  # identity, camera, record without both
    seen: dict[tuple[str, str], str] = {}
    for entry in boxes:
        where = f"{table}, annotation {entry.get('id')}"
        person = _attribute(entry, identity)
        if not person or entry.get("iscrowd"):
            continue
        image = images.get(str(entry.get("image_id")))
        if image is None:
            raise ValueError(f"{where}: no image has the id {entry.get('image_id')!r}; add it, or remove this one")
        if (first := seen.setdefault((str(entry.get("image_id")), person), where)) != where:
            raise ValueError(f"{first} and {where}: {person} is in {image['file_name']} twice; keep one")
        values = entry.get("bbox")
        if not isinstance(values, list) or len(values) != 4:
            raise ValueError(f"{where}: bbox is {values!r}; give [x, y, width, height] in pixels")
        box = parse_box([str(value) for value in values], SIZED, where)
        path = root / relative_path(image["file_name"], root, f"{table}, image {image.get('id')}")
        record = Record(path, 0, UNKNOWN_CAMERA, UNSPLIT, person, box)
        found.append((person, _attribute(image, camera), record))
    if not found:
        raise ValueError(f"{table}: no box has an identity ({identity}); give its attribute with --identity")
    check_units([record.box for _, _, record in found if record.box], str(table))
    return _make_dataset(root, found, len(boxes) - len(found), identity)


def _make_dataset(root: Path, found: Sequence[tuple[str, str, Record]], left_out: int, identity: str) -> RawDataset:
    pids = number_from_one(person for person, _, _ in found)
    camids = number_from_one(camera for _, camera, _ in found if camera)
    records = [
        Record(record.path, pids[person], camids.get(camera, UNKNOWN_CAMERA), UNSPLIT, person, record.box)
        for person, camera, record in found
    ]
    notes = [f"{left_out} annotations have no {identity}, or are crowds, and were left out"] if left_out else []
    notes += describe_lookalikes("identities", pids) + describe_lookalikes("cameras", camids)
    cameras = {camid: camera for camera, camid in camids.items()}
    return RawDataset(NAME, root, records, None, NOTICE, warnings=notes, cameras=cameras)


def _locate(root: Path, table: Path | None) -> Path:
    check_folder(root, "give --root the folder that the file names of the images start from")
    if table is not None:
        if not table.exists():
            raise ValueError(f"{table}: no such file; give --json the COCO file")
        return table
    tables = sorted(path for path in root.glob("*.json") if not path.name.startswith("."))
    if len(tables) != 1:
        found = list_few([path.name for path in tables]) or "none"
        raise WrongLayoutError(f"{root}: exactly one .json was expected, found: {found}; name it with --json")
    return tables[0]


def _load(table: Path) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Return the images by their ids, and the annotations. Raises ValueError if the file is no COCO file."""
    try:
        content = json.loads(read_text(table))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{table}: is no JSON ({str(error).removeprefix(f'{table}: ')}); export it again") from error
    lists = [content.get(name) if isinstance(content, dict) else None for name in ("images", "annotations")]
    for name, entries in zip(("images", "annotations"), lists, strict=True):
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise WrongLayoutError(f"{table}: is no COCO file: {name} is no list of objects; export it again")
    images: dict[str, dict[str, Any]] = {}
    files: set[str] = set()
    for image in lists[0] or ():
        if "id" not in image or not isinstance(image.get("file_name"), str):
            raise ValueError(f"{table}: the image {str(image)[:80]} has no id or no file_name; add it")
        if images.setdefault(str(image["id"]), image) is not image:
            raise ValueError(f"{table}: two images have the id {image['id']}; give each its own")
        if image["file_name"] in files:
            raise ValueError(f"{table}: two images are {image['file_name']}; keep one, with all annotations")
        files.add(image["file_name"])
    return images, lists[1] or []


def _attribute(entry: Mapping[str, Any], name: str) -> str:
    """Return an attribute as text, "" if there is none."""
    value = entry.get(name, _inner(entry).get(name))
    return str(value).strip() if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""


def _choose(
    table: Path,
    flag: str,
    name: str | None,
    usual: Sequence[str],
    entries: Sequence[Mapping[str, Any]],
    required: bool = True,
) -> str:
    """Return the attribute that the user names, or the usual one that is there. "" if none is and none is needed."""
    choices = [each for each in ([name] if name else usual) if any(_attribute(entry, each) for entry in entries)]
    if len(choices) == 1 or not (choices or required):
        return choices[0] if choices else ""
    if choices:
        raise ValueError(f"{table}: has {' and '.join(choices)}; say which one it is with {flag}")
    there = list_few(sorted({key for entry in entries[:1000] for key in (*entry, *_inner(entry))}))
    wanted = f"no {name}" if name else f"none of {', '.join(usual)}"
    raise ValueError(f"{table}: {wanted} in any entry; there are {there}; name it with {flag}")


def _inner(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    attributes = entry.get("attributes")
    return attributes if isinstance(attributes, dict) else {}
