"""Drawn footage in the forms in which people have it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (160, 120)  # width, height


def draw_frames(folder: Path, numbers: list[int], pattern: str = "{:06d}.jpg") -> Path:
    """Write frames of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / pattern.format(number))
    return folder


def write_sequence(root: Path, name: str, lines: list[str], numbers: list[int] | None = None) -> Path:
    """A sequence of MOTChallenge."""
    (root / name / "gt").mkdir(parents=True)
    (root / name / "gt" / "gt.txt").write_text("\n".join(lines) + "\n")
    draw_frames(root / name / "img1", [1, 2, 3, 4] if numbers is None else numbers)
    return root


def as_tracks(mot: Path, out: Path) -> Path:
    """Turn drawn sequences into a tracker's output: `<camera>.txt`, with spaces, next to the folder `<camera>/`."""
    for sequence in sorted(mot.iterdir()):
        shutil.copytree(sequence / "img1", out / sequence.name)
        lines = (sequence / "gt" / "gt.txt").read_text().splitlines()
        rows = [" ".join([*line.split(",")[:6], "0.9 -1 -1 -1"]) for line in lines]
        (out / f"{sequence.name}.txt").write_text("\n".join(rows) + "\n")
    return out


def as_coco(mot: Path, path: Path, nested: bool = True) -> Path:
    """Turn drawn sequences into a COCO file whose file names start at `mot`."""
    images, annotations = [], []
    for sequence in sorted(mot.iterdir()):
        for picture in sorted((sequence / "img1").iterdir()):
            name = picture.relative_to(mot).as_posix()
            images.append({"id": len(images), "file_name": name, "camera": sequence.name})
        ids = {image["file_name"]: image["id"] for image in images}
        for line in (sequence / "gt" / "gt.txt").read_text().splitlines():
            frame, track, *box = map(int, line.split(",")[:6])
            person = {"attributes": {"person_id": track}} if nested else {"person_id": str(track)}
            image = ids[f"{sequence.name}/img1/{frame:06d}.jpg"]
            annotations.append({"id": len(annotations), "image_id": image, "bbox": box, "category_id": 1, **person})
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1}]}))
    return path
