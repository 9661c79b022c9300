"""Drawn people who walk past several cameras: frames and their boxes in MOTChallenge's layout.

A person has one number in all cameras. Everything comes from generators with keys, as for single pictures: the same
arguments give the same bytes.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw
from tqdm import tqdm

from reid.files import make_folder
from shards.pedestrians.figure import SUPERSAMPLE, View
from shards.pedestrians.painter import paint_person
from shards.pedestrians.photo import expose
from shards.pedestrians.places import Camera, draw_place, make_camera
from shards.pedestrians.wardrobe import Identity, Pose, keyed, pick

# argument -> default, minimum, description
ARGUMENTS: dict[str, tuple[int, int | None, str]] = {
    "people": (20, 1, "people, each seen by every camera"),
    "cameras": (2, 1, "number of cameras, a sequence each"),
    "frames": (60, 4, "frames of each camera"),
    "height": (240, 64, "pixels of a frame"),
    "width": (320, 64, "pixels of a frame"),
    "seed": (0, None, "the same seed draws the same footage"),
}
CROSSING = 0.35  # share of the footage in which a person crosses the picture
PERIOD = 8  # frames of two steps

Edges = tuple[int, int, int, int]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Walk:
    """A person's way past a camera: the first frame, the direction (-1 to the left), the depth (0 far, 1 near)."""

    pid: int
    start: float
    direction: int
    depth: float


def synthesize(out: Path, *, progress: bool = True, **arguments: int) -> int:
    """Draw `out/c<camera>/img1/<frame>.jpg` and `out/c<camera>/gt/gt.txt`, and return the number of boxes.

    Raises ValueError if an argument is out of range, or if `out` is not empty or cannot be written.
    """
    sizes = {name: arguments.pop(name, default) for name, (default, _, _) in ARGUMENTS.items()}
    if arguments:
        raise ValueError(f"{next(iter(arguments))}: unknown; the arguments are {', '.join(ARGUMENTS)}")
    for name, value in sizes.items():
        minimum = ARGUMENTS[name][1]
        if minimum is not None and value < minimum:
            raise ValueError(f"{name}={value}: use {minimum} or more")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: is no empty folder; name a new one")
    count = 0
    for camera in range(1, sizes["cameras"] + 1):
        folder, lines = out / f"c{camera}", []
        for name in ("img1", "gt"):
            make_folder(folder / name)
        walks = plan_walks(sizes, camera)
        for frame in tqdm(range(1, sizes["frames"] + 1), desc=f"filming, camera {camera}", disable=not progress):
            image, boxes = draw_frame(sizes, camera, frame, walks)
            quality = make_camera(sizes["seed"], camera).quality
            image.save(folder / "img1" / f"{frame:06d}.jpg", "JPEG", quality=quality)
            lines += [_line(frame, pid, edges, visibility) for pid, edges, visibility in boxes]
        (folder / "gt" / "gt.txt").write_text("".join(lines))
        count += len(lines)
    return count


def plan_walks(sizes: dict[str, int], camera: int) -> list[Walk]:
    """Return everybody's way, in a random order, spread over the footage so that some walk alone."""
    seed, people = sizes["seed"], range(1, sizes["people"] + 1)
    walks = []
    for place, pid in enumerate(sorted(people, key=lambda pid: keyed("order", seed, camera, pid).random())):
        rng = keyed("walk", seed, camera, pid)
        start = (place + rng.random()) / len(people) * (1 - CROSSING) * sizes["frames"]
        walks.append(Walk(pid, start, pick(rng, [-1, 1]), rng.random()))
    return walks


def draw_frame(
    sizes: dict[str, int], camera: int, frame: int, walks: list[Walk]
) -> tuple[Image.Image, list[tuple[int, Edges, float]]]:
    """Draw one frame; also return pid, box and visible share of each person in it, sorted by pid."""
    seed, setup = sizes["seed"], make_camera(sizes["seed"], camera)
    w, h = sizes["width"] * SUPERSAMPLE, sizes["height"] * SUPERSAMPLE
    canvas = draw_place(seed, setup.places[0], sizes["height"], sizes["width"]).crop((0, 0, w, h))
    pen = ImageDraw.Draw(canvas, "RGBA")
    boxes: list[tuple[int, Edges]] = []
    for walk in sorted(walks, key=lambda walk: (walk.depth, walk.pid)):  # the nearest last
        way = (frame - walk.start) / (CROSSING * sizes["frames"])
        if 0 <= way <= 1:
            view = _view(walk, way, setup, w, h)
            edges = _paint(canvas, pen, view, _who(seed, walk), _pose(seed, walk, frame))
            boxes += [(walk.pid, edges)] if edges else []
    seen = [(pid, edges, _visible(edges, [e for _, e in boxes[i + 1 :]])) for i, (pid, edges) in enumerate(boxes)]
    return expose(canvas.reduce(SUPERSAMPLE), setup.sensor, keyed("frame", seed, camera, frame)), sorted(seen)


def _who(seed: int, walk: Walk) -> Identity:
    return Identity(f"{seed}/{walk.pid}")


def _pose(seed: int, walk: Walk, frame: int) -> Pose:
    pose = Pose(keyed("gait", seed, walk.pid, walk.start))
    phase = math.sin(2 * math.pi * (frame - walk.start) / PERIOD)
    pose.stride, pose.swing = 0.46 * phase, -0.4 * phase
    return pose


def _view(walk: Walk, way: float, setup: Camera, w: int, h: int) -> View:
    """Return where the person is: from outside one edge of the picture to outside the other."""
    across = way if walk.direction > 0 else 1 - way
    towards = 0.5 * math.sin(setup.yaw)  # of this camera's people: towards it or away
    yaw = walk.direction * (0.5 * math.pi - towards)
    ground = (0.72 + 0.24 * walk.depth) * h
    return View(yaw, (1.1 * across - 0.05) * w, ground, (0.42 + 0.22 * walk.depth) * h, setup.pitch, setup.light)


def _paint(canvas: Image.Image, pen: ImageDraw.ImageDraw, view: View, who: Identity, pose: Pose) -> Edges | None:
    """Paint a person, and return the box of the pixels that changed; None at the edge of the frame."""
    x, y, unit = view.centre, view.ground, view.unit
    around = max(0, int(x - 0.8 * unit)), max(0, int(y - 1.4 * unit))
    region = (*around, min(canvas.width, int(x + 0.8 * unit)), min(canvas.height, int(y + 0.2 * unit)))
    before = canvas.crop(region)
    paint_person(pen, view, who, pose)
    changed = ImageChops.difference(before, canvas.crop(region)).getbbox()
    if changed is None:
        return None
    edges = (edge + offset for edge, offset in zip(changed, around * 2, strict=True))
    left, top, right, bottom = (round(edge / SUPERSAMPLE) for edge in edges)
    return (left, top, right, bottom) if min(right - left, bottom - top) >= max(8, 0.15 * unit / SUPERSAMPLE) else None


def _visible(edges: Edges, nearer: list[Edges]) -> float:
    """Return the share of a box that no nearer box covers, at least."""
    left, top, right, bottom = edges
    covered = sum(max(0, min(right, r) - max(left, x)) * max(0, min(bottom, b) - max(top, y)) for x, y, r, b in nearer)
    return max(0.0, 1 - covered / ((right - left) * (bottom - top)))


def _line(frame: int, pid: int, edges: Edges, visibility: float) -> str:
    left, top, right, bottom = edges
    return f"{frame},{pid},{left},{top},{right - left},{bottom - top},1,1,{visibility:.3f}\n"
