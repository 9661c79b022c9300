"""One surveillance crop: a place, people, an object in front of them, and the errors of the camera."""

import math
import random
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from shards.pedestrians.figure import SUPERSAMPLE, View
from shards.pedestrians.painter import paint_person
from shards.pedestrians.places import Camera, Sensor, draw_place, make_camera, paint_occluder
from shards.pedestrians.wardrobe import Identity, Pose, keyed, pick


@lru_cache(maxsize=4)
def _grain(height: int, width: int) -> np.ndarray:
    """Return unit noise of four times an image's size. Each image takes a window of it: cheaper than fresh noise."""
    rng = np.random.RandomState(1501)  # the legacy generator: numpy promises that its stream never changes
    grey = rng.standard_normal((2 * height, 2 * width, 1))
    return (0.8 * grey + 0.6 * rng.standard_normal((2 * height, 2 * width, 3))).astype(np.float32)


@dataclass(frozen=True)
class Shot:
    """One file to draw."""

    path: str
    who: str | None  # key of the person; None for a false detection, without a person
    camera: int  # from 1
    key: str  # of pose, crop and occlusion
    crop: str = ""  # "bad" misses the person by half, as a failing detector does


def draw_pedestrian(shot: Shot, height: int = 128, width: int = 64, scene: int = 0) -> Image.Image:
    """Draw a surveillance crop, an RGB image of `height` x `width`; `scene` is the seed of cameras and places."""
    setup = make_camera(scene, shot.camera)
    rng = keyed("image", scene, shot.camera, shot.who, shot.key)
    w, h = width * SUPERSAMPLE, height * SUPERSAMPLE
    scenery = draw_place(scene, pick(rng, setup.places), height, width)
    x, y = int(rng.random() * (scenery.width - w)), int(rng.random() * (scenery.height - h))
    canvas = scenery.crop((x, y, x + w, y + h))
    pen = ImageDraw.Draw(canvas, "RGBA")
    view = _frame(rng, setup, w, h, shot.crop)
    people = [] if shot.who is None else [(view, Identity(shot.who))]
    if rng.random() < 0.1:  # a passer-by, half outside the crop, in front or behind
        aside = view.centre + pick(rng, [-1, 1]) * rng.uniform(0.42, 0.6) * w
        other = replace(view, yaw=rng.uniform(0, 6.28), centre=aside, unit=view.unit * rng.uniform(0.8, 1.05))
        stranger = Identity(("passer-by", rng.random()))
        people.insert(0 if rng.random() < 0.6 else len(people), (other, stranger))
    for where, who in people:
        paint_person(pen, where, who, Pose(rng))
    if rng.random() < 0.14:
        paint_occluder(pen, rng, view, w, h)
    return expose(canvas.reduce(SUPERSAMPLE), setup.sensor, rng)


def _frame(rng: random.Random, camera: Camera, w: int, h: int, crop: str) -> View:
    """Draw where the detector's box puts the person, and how the person is turned."""
    yaw = camera.yaw + rng.gauss(0, 0.4) + (math.pi if rng.random() < 0.3 else 0.0)
    size = rng.uniform(0.84, 0.99)
    centre, ground = (0.5 + rng.gauss(0, 0.05)) * w, (0.965 + rng.gauss(0, 0.026)) * h
    if rng.random() < 0.05:  # the box is too small: it ends at the knees
        size, ground = size * 1.25, ground + 0.22 * h
    if crop == "bad":
        size *= rng.uniform(1.0, 1.6)
        centre += pick(rng, [-1, 1]) * rng.uniform(0.35, 0.6) * w
        ground += rng.uniform(-0.4, 0.6) * h
    return View(yaw, centre, ground, size * h, camera.pitch * rng.uniform(0.7, 1.3), camera.light)


def expose(image: Image.Image, sensor: Sensor, rng: random.Random) -> Image.Image:
    """Apply the errors of lens and sensor: low resolution, blur, cast, exposure, gamma, noise."""
    w, h = image.size
    detail = rng.uniform(0.6, 1.1)
    if detail < 0.85:  # a person far away: fewer pixels than the crop has
        image = image.resize((int(w * detail), int(h * detail)), Image.Resampling.BILINEAR)
        image = image.resize((w, h), Image.Resampling.BILINEAR)
    radius = sensor.blur * rng.uniform(0.5, 1.5) * h / 128
    if radius > 0.2:
        image = image.filter(ImageFilter.BoxBlur(radius))
    gain = sensor.exposure * rng.uniform(0.9, 1.1)
    grey = [0.3, 0.59, 0.11]
    matrix: list[float] = []
    for channel in range(3):
        tint = gain * sensor.cast[channel] * rng.uniform(0.97, 1.03)
        row = [tint * (1 - sensor.saturation) * part for part in grey]
        row[channel] += tint * sensor.saturation
        matrix += [*row, sensor.haze]
    linear = np.asarray(image.convert("RGB", tuple(matrix)))
    grain = _grain(h, w)
    y, x = int(rng.random() * h), int(rng.random() * w)
    noise = np.float32(sensor.noise * rng.uniform(0.6, 1.4))
    pixels = _curve(sensor.gamma)[linear] + noise * grain[y : y + h, x : x + w]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@lru_cache(maxsize=16)
def _curve(gamma: float) -> np.ndarray:
    return np.array([round(255 * (value / 255) ** gamma) for value in range(256)], np.float32)
