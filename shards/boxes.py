"""Boxes around people in pictures: how they are written, and how a person is cut out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from reid.data.image_file import check_size

SIZED = ("x", "y", "width", "height")
CORNERS = ("x1", "y1", "x2", "y2")
UNITS = ("pixels", "normalized")
MAX_SHARE = 2.0  # a normalized edge beyond this is a number of pixels


class Box(NamedTuple):
    """Edges in pixels of the upright picture, from its left upper corner; normalized: in shares of width and height."""

    left: float
    top: float
    right: float
    bottom: float
    normalized: bool = False

    def __str__(self) -> str:
        return f"{self.left:g},{self.top:g},{self.right - self.left:g},{self.bottom - self.top:g}"


@dataclass(frozen=True)
class Cropping:
    """How boxes are cut out.

    pad: share of the box's width and height that is added on each side, up to the picture's edge.
    min_side: boxes with a side of fewer pixels inside the picture are left out like broken images.
    """

    pad: float = 0.0
    min_side: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.pad <= 1:
            raise ValueError(f"--pad-box {self.pad:g}: give a share of the box's size, from 0 to 1")
        if self.min_side < 1:
            raise ValueError(f"--min-box {self.min_side}: give at least 1 pixel")

    def __str__(self) -> str:
        return f"boxes padded by {self.pad:g}" if self.pad else "boxes"


def parse_box(values: Sequence[str], names: Sequence[str], where: str, units: str = "pixels") -> Box:
    """Return the box that four fields of a table describe.

    Args:
        values: four numbers.
        names: what they are: SIZED or CORNERS.
        where: the file and the line, for errors.
        units: one of UNITS.

    Raises:
        ValueError: a field is not a finite number, the box has no area, or a normalized box is in pixels.
    """
    numbers = []
    for name, value in zip(names, values, strict=True):
        try:
            numbers.append(float(value))
        except ValueError:
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            raise ValueError(f"{where}: {name} {value!r} is no number; a box needs {', '.join(names)}")
    x, y, width, height = numbers
    if tuple(names) == CORNERS:
        if width <= x or height <= y:
            swapped = "x2 is not right of x1" if width <= x else "y2 is not below y1"
            raise ValueError(f"{where}: the box {','.join(values)} has no area: {swapped}; give x1,y1,x2,y2")
        box = Box(x, y, width, height, units != "pixels")
    else:
        if width <= 0 or height <= 0:
            side = f"width {width:g}" if width <= 0 else f"height {height:g}"
            raise ValueError(f"{where}: the box {','.join(values)} has no area: its {side} is not above 0")
        box = Box(x, y, x + width, y + height, units != "pixels")
    if box.normalized and max(map(abs, box[:4])) > MAX_SHARE:
        raise ValueError(
            f"{where}: the box {','.join(values)} is not normalized (shares from 0 to 1); leave --boxes out"
        )
    return box


def check_units(boxes: Sequence[Box], where: str, fix: str = "multiply by the picture's width and height") -> None:
    """Raise ValueError, with the fix, if boxes in pixels seem to be shares of the picture's size."""
    if boxes and all(not box.normalized and max(box.right, box.bottom) <= MAX_SHARE for box in boxes):
        reason = f"every box ends within {MAX_SHARE:g} pixels, so the numbers are shares of the picture's size"
        raise ValueError(f"{where}: {reason}; {fix}")


def cut_out(image: Image.Image, box: Box, cropping: Cropping) -> Image.Image:
    """Return the part of an upright picture inside the box, padded and clipped to the picture.

    Raises ValueError if the box is outside or too small, or the part has a shape that no image may have.
    """
    size = image.size
    scale = size if box.normalized else (1, 1)
    spans = []  # of x and y, in pixels
    for axis in range(2):
        low, high = (edge * scale[axis] for edge in (box[axis], box[axis + 2]))
        if high <= 0 or low >= size[axis]:
            raise ValueError(f"the box {box} lies outside the picture of {size[0]} x {size[1]} pixels")
        if min(high, size[axis]) - max(low, 0) < cropping.min_side:
            raise ValueError(f"the box {box} has a side below {cropping.min_side} pixels (--min-box) in the picture")
        pad = cropping.pad * (high - low)
        spans.append((max(0, round(low - pad)), min(size[axis], round(high + pad))))
    (left, right), (top, bottom) = spans
    check_size(right - left, bottom - top)
    return image.crop((left, top, right, bottom))
