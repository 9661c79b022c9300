"""Cameras with their sensors, the places in the background and the objects in the foreground."""

import random
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFilter

from shards.pedestrians.figure import SUPERSAMPLE, Colour, Pen, View, shade
from shards.pedestrians.wardrobe import CLOTHES, GEAR, keyed, pick


class Sensor(NamedTuple):
    """The properties of a camera's pictures."""

    cast: tuple[float, float, float]  # gain of red, green and blue
    saturation: float
    exposure: float
    haze: float  # black level, 0-255
    gamma: float
    blur: float  # radius at the final size for a height of 128
    noise: float  # standard deviation, 0-255


SENSORS = [
    Sensor((1.04, 1.00, 0.95), 1.00, 1.00, 0, 1.00, 0.0, 3.0),  # warm
    Sensor((0.94, 0.99, 1.06), 0.92, 0.94, 5, 1.03, 0.4, 4.0),  # cold
    Sensor((0.97, 1.04, 0.96), 0.85, 0.98, 10, 0.97, 0.2, 5.0),  # fluorescent
    Sensor((1.07, 0.98, 0.90), 1.00, 0.89, 2, 1.04, 0.3, 5.0),  # evening
    Sensor((1.00, 1.00, 1.02), 0.75, 0.95, 15, 0.97, 0.4, 3.0),  # faded
    Sensor((1.04, 0.95, 1.05), 0.94, 0.94, 5, 1.02, 0.2, 6.0),  # violet
]
YAWS = [0.35, 2.75, -1.35, 3.6, 1.0, -0.5]


class Camera:
    """Camera `number` (from 1) of a scene: what all of its images share.

    The tables make neighbouring cameras differ strongly; the scene's seed decides the details.
    """

    def __init__(self, scene: int, number: int) -> None:
        rng = keyed("camera", scene, number)
        here = (number - 1) % len(PLACES)
        self.yaw = YAWS[(number - 1) % len(YAWS)] + rng.uniform(-0.2, 0.2)  # of most people here
        self.pitch = rng.uniform(0.05, 0.4)
        self.light = pick(rng, [-1, 1])
        self.places = (here, here, here, number % len(PLACES))  # every fourth image shows the next camera's place
        sensor = SENSORS[(number - 1) % len(SENSORS)]
        red, green, blue = sensor.cast
        self.sensor = sensor._replace(cast=(red * rng.uniform(0.97, 1.03), green, blue * rng.uniform(0.97, 1.03)))
        self.quality = int(rng.uniform(80, 93))  # of the JPEG


make_camera = lru_cache(maxsize=64)(Camera)


def _box(pen: Pen, x: float, y: float, w: float, h: float, colour: Colour) -> None:
    pen.rectangle((x, y, x + w, y + h), fill=colour)


def _street(pen: Pen, rng: random.Random, w: int, h: int) -> None:
    """Shop fronts, a pavement with a kerb, parked cars."""
    floor = 0.5 * h
    x = 0.0
    while x < w:
        wide = rng.uniform(0.18, 0.35) * h
        wall = pick(rng, [(150, 96, 76), (186, 176, 158), (124, 130, 138), (166, 140, 104)])
        _box(pen, x, 0, wide, floor, wall)
        glass = pick(rng, [(72, 92, 108), (206, 190, 140), (52, 60, 68)])
        _box(pen, x + 0.12 * wide, 0.16 * h, 0.5 * wide, 0.26 * h, glass)
        _box(pen, x + 0.7 * wide, 0.2 * h, 0.2 * wide, floor - 0.2 * h, shade(wall, 0.55))
        _box(pen, x, 0.1 * h, 0.95 * wide, 0.05 * h, pick(rng, GEAR))
        x += wide
    _box(pen, 0, floor, w, h, (150, 146, 140))
    for k in range(40):
        pen.line([(k * w / 20 - 0.4 * h, h), (k * w / 20, floor)], fill=(134, 130, 124), width=2)
    _box(pen, 0, floor + 0.13 * h, w, 0.02 * h, (176, 172, 166))
    for _ in range(3):
        x, paint = rng.random() * w, pick(rng, GEAR)
        pen.rounded_rectangle((x, 0.42 * h, x + 0.55 * h, 0.58 * h), radius=0.05 * h, fill=paint)
        pen.rounded_rectangle((x + 0.1 * h, 0.34 * h, x + 0.42 * h, 0.46 * h), radius=0.05 * h, fill=shade(paint, 0.6))
        for dx in (0.12, 0.42):
            pen.ellipse((x + (dx - 0.05) * h, 0.52 * h, x + (dx + 0.05) * h, 0.62 * h), fill=(26, 26, 28))


def _park(pen: Pen, rng: random.Random, w: int, h: int) -> None:
    """Sky, trees, grass, a path and benches."""
    _box(pen, 0, 0, w, 0.4 * h, (176, 200, 220))
    _box(pen, 0, 0.3 * h, w, h, (104, 134, 74))
    for _ in range(26):
        x, y, r = rng.random() * w, rng.uniform(0.02, 0.26) * h, rng.uniform(0.08, 0.18) * h
        green = shade((74, 112, 58), rng.uniform(0.7, 1.25))
        pen.rectangle((x - 0.015 * h, y, x + 0.015 * h, 0.42 * h), fill=(92, 70, 50))
        pen.ellipse((x - r, y - r, x + r, y + r), fill=green)
    pen.polygon([(0, 0.55 * h), (w, 0.48 * h), (w, 1.2 * h), (0, 1.2 * h)], fill=(168, 158, 138))
    for _ in range(60):
        x, y = rng.random() * w, rng.uniform(0.42, 1.1) * h
        pen.ellipse((x, y, x + 0.06 * h, y + 0.015 * h), fill=shade((140, 150, 96), rng.uniform(0.7, 1.2)))
    for _ in range(3):
        x = rng.random() * w
        _box(pen, x, 0.44 * h, 0.3 * h, 0.03 * h, (110, 76, 48))
        _box(pen, x, 0.5 * h, 0.3 * h, 0.03 * h, (110, 76, 48))
        _box(pen, x + 0.02 * h, 0.44 * h, 0.02 * h, 0.15 * h, (60, 60, 60))


def _station(pen: Pen, rng: random.Random, w: int, h: int) -> None:
    """Tiles, posters, a lamp strip and the yellow line."""
    floor = 0.58 * h
    _box(pen, 0, 0, w, floor, (178, 180, 176))
    for k in range(0, w, max(4, int(0.06 * h))):
        pen.line([(k, 0), (k, floor)], fill=(156, 160, 158), width=2)
    for k in range(0, int(floor), max(4, int(0.05 * h))):
        pen.line([(0, k), (w, k)], fill=(156, 160, 158), width=2)
    for _ in range(5):
        x, wide = rng.random() * w, rng.uniform(0.15, 0.3) * h
        _box(pen, x, 0.12 * h, wide, 0.3 * h, (240, 240, 236))
        _box(pen, x + 0.1 * wide, 0.15 * h, 0.8 * wide, 0.15 * h, pick(rng, CLOTHES))
        _box(pen, x + 0.1 * wide, 0.33 * h, 0.5 * wide, 0.03 * h, (60, 60, 66))
    _box(pen, 0, 0.03 * h, w, 0.03 * h, (240, 240, 232))
    _box(pen, 0, floor, w, h, (112, 114, 118))
    _box(pen, 0, 0.66 * h, w, 0.03 * h, (222, 184, 50))
    for _ in range(160):
        x, y = rng.random() * w, rng.uniform(0.6, 1.15) * h
        _box(pen, x, y, 3, 2, (134, 136, 140))


def _plaza(pen: Pen, rng: random.Random, w: int, h: int) -> None:
    """A far façade, columns and slabs in the evening."""
    _box(pen, 0, 0, w, 0.45 * h, (168, 154, 136))
    for k in range(24):
        x = (k + 0.3 * rng.random()) * w / 24
        for y in (0.05, 0.2):
            _box(pen, x, y * h, 0.05 * h, 0.09 * h, pick(rng, [(96, 84, 76), (240, 206, 120), (110, 100, 92)]))
    _box(pen, 0, 0.36 * h, w, 0.09 * h, (112, 92, 76))
    _box(pen, 0, 0.45 * h, w, h, (156, 150, 142))
    for k in range(7):
        y = h * (0.45 + 0.012 * (k + 1) ** 2)
        pen.line([(0, y), (w, y)], fill=(136, 130, 122), width=3)
    for k in range(-6, 30):
        far, near = w * (0.14 + 0.03 * k), w * (0.09 * k - 0.58)
        pen.line([(far, 0.45 * h), (near, 1.1 * h)], fill=(136, 130, 122), width=2)
    for _ in range(5):
        x = rng.random() * w
        _box(pen, x, 0.02 * h, 0.07 * h, 0.56 * h, (208, 196, 178))
        _box(pen, x + 0.045 * h, 0.02 * h, 0.025 * h, 0.56 * h, (168, 154, 136))


def _shop(pen: Pen, rng: random.Random, w: int, h: int) -> None:
    """Shelves full of boxes on a pale floor."""
    _box(pen, 0, 0, w, h, (172, 168, 160))
    for row in range(5):
        y = (0.02 + 0.12 * row) * h
        x = 0.0
        while x < w:
            wide, tall = rng.uniform(0.02, 0.07) * h, rng.uniform(0.05, 0.1) * h
            paint = pick(rng, CLOTHES)
            _box(pen, x, y + 0.1 * h - tall, wide, tall, shade(paint, rng.uniform(0.8, 1.25)))
            x += wide + 2
        _box(pen, 0, y + 0.1 * h, w, 0.015 * h, (120, 120, 122))
    _box(pen, 0, 0.62 * h, w, h, (176, 170, 160))
    for k in range(30):
        pen.line([(k * w / 30, 0.62 * h), (k * w / 15 - 0.5 * w, 1.2 * h)], fill=(160, 154, 146), width=2)


def _car_park(pen: Pen, rng: random.Random, w: int, h: int) -> None:
    """Asphalt, bays and a fence before a grey sky."""
    _box(pen, 0, 0, w, 0.4 * h, (188, 192, 200))
    _box(pen, 0, 0.22 * h, w, 0.2 * h, (110, 120, 112))
    for k in range(0, w, max(4, int(0.045 * h))):
        pen.line([(k, 0.16 * h), (k, 0.42 * h)], fill=(70, 74, 78), width=3)
    _box(pen, 0, 0.42 * h, w, h, (98, 98, 104))
    for k in range(10):
        x = k * w / 8
        bay = [(x, 0.46 * h), (x + 0.03 * h, 0.46 * h), (x - 0.25 * h, h), (x - 0.33 * h, h)]
        pen.polygon(bay, fill=(214, 212, 204))
    for _ in range(4):
        x, paint = rng.random() * w, pick(rng, GEAR)
        pen.rounded_rectangle((x, 0.36 * h, x + 0.4 * h, 0.5 * h), radius=0.05 * h, fill=paint)
        _box(pen, x + 0.08 * h, 0.32 * h, 0.24 * h, 0.08 * h, shade(paint, 0.55))


PLACES: list[Callable[[Pen, random.Random, int, int], None]] = [_street, _park, _station, _plaza, _shop, _car_park]


@lru_cache(maxsize=64)
def draw_place(scene: int, place: int, height: int, width: int) -> Image.Image:
    """Draw a place, supersampled and out of focus; each image shows a window of it."""
    w, h = 5 * width * SUPERSAMPLE, int(1.15 * height * SUPERSAMPLE)
    image = Image.new("RGB", (w, h))
    PLACES[place](ImageDraw.Draw(image, "RGBA"), keyed("place", scene, place), w, h)
    return image.filter(ImageFilter.GaussianBlur(0.012 * h))


def paint_occluder(pen: Pen, rng: random.Random, view: View, w: int, h: int) -> None:
    """Paint a pillar, bin, hedge or fence in front of the person, over at most a third of them."""
    kind = int(rng.random() * 4)
    side = pick(rng, [-1, 1])
    if kind == 0:
        wide = rng.uniform(0.12, 0.24) * w
        x = view.centre + side * rng.uniform(0.16, 0.42) * w - 0.5 * wide
        grey = shade((150, 146, 138), rng.uniform(0.5, 1.2))
        pen.rectangle((x, 0, x + wide, h), fill=grey)
        pen.rectangle((x + 0.65 * wide, 0, x + wide, h), fill=shade(grey, 0.75))
    elif kind == 1:
        wide, top = rng.uniform(0.25, 0.45) * w, rng.uniform(0.66, 0.8) * h
        x = view.centre + side * rng.uniform(0.1, 0.4) * w - 0.5 * wide
        paint = pick(rng, [(60, 90, 70), (70, 74, 82), (120, 84, 50)])
        pen.rounded_rectangle((x, top, x + wide, h + 20), radius=0.06 * w, fill=paint)
        pen.rectangle((x - 0.02 * w, top, x + wide + 0.02 * w, top + 0.03 * h), fill=shade(paint, 0.65))
    elif kind == 2:
        top = rng.uniform(0.7, 0.84) * h
        for k in range(9):
            x, r = (k + rng.random()) * w / 8, rng.uniform(0.07, 0.16) * w
            leaf = shade((66, 98, 52), rng.uniform(0.7, 1.2))
            pen.ellipse((x - r, top - r + 0.02 * h, x + r, top + 3 * r), fill=leaf)
        pen.rectangle((0, top + 0.08 * h, w, h), fill=(58, 88, 48))
    else:
        y = rng.uniform(0.62, 0.78) * h
        for k in range(2):
            pen.rectangle((0, y + k * 0.09 * h, w, y + (k * 0.09 + 0.025) * h), fill=(88, 90, 96))
        x = rng.random() * w
        pen.rectangle((x, y - 0.02 * h, x + 0.06 * w, h), fill=(70, 72, 78))
