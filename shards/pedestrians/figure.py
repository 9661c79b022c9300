"""How a body is projected to pixels: views, elliptic tubes with a surface, tapered limbs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import ImageDraw

SUPERSAMPLE = 3  # drawn this much larger, then averaged: smooth edges at the price of Pillow's fast fills
STRETCH = 1.15  # detectors' boxes are slimmer than the crop they are resized to, so people come out wider

Colour = tuple[int, ...]
Point = tuple[float, float]
Pen = ImageDraw.ImageDraw


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker (below 1) or lighter."""
    return tuple(min(255, int(c * factor)) for c in colour)


@dataclass(frozen=True)
class View:
    """Projects body coordinates (x to the person's left, y up from the ground, z forward) to pixels."""

    yaw: float  # 0 faces the camera, pi shows the back
    centre: float
    ground: float
    unit: float  # pixels of one body height
    pitch: float  # how much the camera looks down: heads grow, near feet sink
    light: int  # the lit side, -1 left, 1 right

    def point(self, x: float, y: float, z: float) -> Point:
        """Pixel of a point."""
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        scale = self.unit * (1 + self.pitch * (y - 0.5))
        rise = y + 0.5 * self.pitch * (y * y - y) - 0.6 * self.pitch * (z * cos - x * sin)
        return self.centre + STRETCH * scale * (x * cos + z * sin), self.ground - self.unit * rise


class Tube:
    """A body of elliptic rings (torso, skirt, bag), drawn as its silhouette; its skin is addressed by (u, t).

    u in [-1, 1] runs across what is visible, t in [0, 1] from the first ring to the last. `across` turns an angle
    around the body (0 front, pi back) into u, so a print on the chest moves aside and vanishes as the person turns.
    """

    def __init__(self, view: View, rings: Sequence[tuple[float, float, float]], x: float = 0.0, z: float = 0.0):
        """Rings are (y, half width, half depth), evenly spaced in t; (x, z) is the axis."""
        cos, sin = math.cos(view.yaw), math.sin(view.yaw)
        self.rings: list[tuple[float, float, float, float]] = []
        for y, wide, deep in rings:
            px, py = view.point(x, y, z)
            scale = STRETCH * view.unit * (1 + view.pitch * (y - 0.5))
            sag = 0.6 * view.pitch * view.unit * math.hypot(wide * sin, deep * cos)
            self.rings.append((px, py, scale * math.hypot(wide * cos, deep * sin), sag))
        _, wide, deep = rings[len(rings) // 2]
        self.towards = math.atan2(-sin / wide, cos / deep)
        self.light = view.light

    def at(self, u: float, t: float) -> Point:
        """Pixel of a place on the skin."""
        place = t * (len(self.rings) - 1)
        low = min(int(place), len(self.rings) - 2)
        f = place - low
        ax, ay, aw, asag = self.rings[low]
        bx, by, bw, bsag = self.rings[low + 1]
        sag = (asag + (bsag - asag) * f) * (1 - u * u)
        return ax + (bx - ax) * f + u * (aw + (bw - aw) * f), ay + (by - ay) * f + sag

    def across(self, angle: float) -> float | None:
        """u of an angle around the body, None on the far side."""
        turn = (angle - self.towards + math.pi) % (2 * math.pi) - math.pi
        return math.sin(turn) if abs(turn) < 0.5 * math.pi else None

    def patch(self, u0: float, u1: float, t0: float, t1: float) -> list[Point]:
        """Outline of a piece of the skin; its upper and lower edges are curved."""
        um = 0.5 * (u0 + u1)
        inner = [k / (len(self.rings) - 1) for k in range(1, len(self.rings) - 1)]
        steps = [t0, *(t for t in inner if t0 < t < t1), t1]
        left = [self.at(u0, t) for t in steps]
        right = [self.at(u1, t) for t in reversed(steps)]
        return [*left, self.at(um, t1), *right, self.at(um, t0)]

    def sector(self, angle: float, half: float, t0: float, t1: float) -> list[Point] | None:
        """Outline of a piece that spans `angle` ± `half` around the body, cut to what is visible."""
        turn = (angle - self.towards + math.pi) % (2 * math.pi) - math.pi
        a = max(turn - half, -0.5 * math.pi)
        b = min(turn + half, 0.5 * math.pi)
        return self.patch(math.sin(a), math.sin(b), t0, t1) if b - a > 0.05 else None

    def fill(self, pen: ImageDraw.ImageDraw, colour: Colour) -> None:
        """Paint the silhouette in one colour."""
        pen.polygon(self.patch(-1, 1, 0, 1), fill=colour)

    def shadow(self, pen: ImageDraw.ImageDraw) -> None:
        """Darken the side away from the light, over whatever is painted."""
        pen.polygon(self.patch(-self.light * 0.4, -self.light, 0, 1), fill=(10, 10, 30, 48))


def limb(pen: ImageDraw.ImageDraw, a: Point, b: Point, ra: float, rb: float, colour: Colour, light: int) -> None:
    """A tapered stroke with round ends, radii in pixels; the side away from the light keeps a dark rim."""
    _stroke(pen, a, b, ra, rb, shade(colour, 0.72))
    dx, dy = 0.22 * light, -0.1
    lit_a, lit_b = (a[0] + dx * ra, a[1] + dy * ra), (b[0] + dx * rb, b[1] + dy * rb)
    _stroke(pen, lit_a, lit_b, 0.8 * ra, 0.8 * rb, colour)


def _stroke(pen: ImageDraw.ImageDraw, a: Point, b: Point, ra: float, rb: float, colour: Colour) -> None:
    (ax, ay), (bx, by) = a, b
    length = math.hypot(bx - ax, by - ay) or 1.0
    nx, ny = (by - ay) / length, (ax - bx) / length
    pen.ellipse((ax - ra, ay - ra, ax + ra, ay + ra), fill=colour)
    pen.ellipse((bx - rb, by - rb, bx + rb, by + rb), fill=colour)
    left = [(ax + nx * ra, ay + ny * ra), (bx + nx * rb, by + ny * rb)]
    right = [(bx - nx * rb, by - ny * rb), (ax - nx * ra, ay - ny * ra)]
    pen.polygon(left + right, fill=colour)
