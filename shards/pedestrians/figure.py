"""Projection of a body to pixels: views, elliptic tubes with a surface, tapered limbs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import ImageDraw

SUPERSAMPLE = 3  # images are drawn this much larger and then averaged, which gives smooth edges
STRETCH = 1.15  # a detector's box is slimmer than the crop it is resized to, which makes people wider

Colour = tuple[int, ...]
Point = tuple[float, float]
Pen = ImageDraw.ImageDraw


def shade(colour: Colour, factor: float) -> Colour:
    """Make a colour darker (factor below 1) or lighter."""
    return tuple(min(255, int(c * factor)) for c in colour)


@dataclass(frozen=True)
class View:
    """A projection of body coordinates (x to the person's left, y up from the ground, z forward) to pixels."""

    yaw: float  # 0 faces the camera, pi shows the back
    centre: float
    ground: float
    unit: float  # pixels of one body height
    pitch: float  # how much the camera looks down, which makes heads larger and near feet lower
    light: int  # the lit side, -1 left, 1 right

    def point(self, x: float, y: float, z: float) -> Point:
        """Return the pixel of a point."""
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        scale = self.unit * (1 + self.pitch * (y - 0.5))
        rise = y + 0.5 * self.pitch * (y * y - y) - 0.6 * self.pitch * (z * cos - x * sin)
        return self.centre + STRETCH * scale * (x * cos + z * sin), self.ground - self.unit * rise


class Tube:
    """A body of elliptic rings (torso, skirt, bag), drawn as its silhouette. Places on its surface are given as (u, t).

    u in [-1, 1] runs across the visible side, t in [0, 1] from the first ring to the last. `across` converts an angle
    around the body (0 front, pi back) to u, so a print on the chest moves and disappears as the person turns.
    """

    def __init__(self, view: View, rings: Sequence[tuple[float, float, float]], x: float = 0.0, z: float = 0.0):
        """Take rings (y, half width, half depth), evenly spaced in t, around the axis (x, z)."""
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
        """Return the pixel of a place on the surface."""
        place = t * (len(self.rings) - 1)
        low = min(int(place), len(self.rings) - 2)
        f = place - low
        ax, ay, aw, asag = self.rings[low]
        bx, by, bw, bsag = self.rings[low + 1]
        sag = (asag + (bsag - asag) * f) * (1 - u * u)
        return ax + (bx - ax) * f + u * (aw + (bw - aw) * f), ay + (by - ay) * f + sag

    def across(self, angle: float) -> float | None:
        """Return the u of an angle around the body, None on the far side."""
        turn = self._turn(angle)
        return math.sin(turn) if abs(turn) < 0.5 * math.pi else None

    def _turn(self, angle: float) -> float:
        """Return the angle as seen from the camera, from -pi to pi."""
        return (angle - self.towards + math.pi) % (2 * math.pi) - math.pi

    def patch(self, u0: float, u1: float, t0: float, t1: float) -> list[Point]:
        """Return the outline of a piece of the surface; its upper and lower edges are curved."""
        um = 0.5 * (u0 + u1)
        inner = [k / (len(self.rings) - 1) for k in range(1, len(self.rings) - 1)]
        steps = [t0, *(t for t in inner if t0 < t < t1), t1]
        left = [self.at(u0, t) for t in steps]
        right = [self.at(u1, t) for t in reversed(steps)]
        return [*left, self.at(um, t1), *right, self.at(um, t0)]

    def paint_sector(self, pen: Pen, angle: float, half: float, t0: float, t1: float, colour: Colour) -> None:
        """Paint a piece that spans `angle` ± `half` around the body, as far as it is visible."""
        turn = self._turn(angle)
        a = max(turn - half, -0.5 * math.pi)
        b = min(turn + half, 0.5 * math.pi)
        if b - a > 0.05:
            pen.polygon(self.patch(math.sin(a), math.sin(b), t0, t1), fill=colour)

    def fill(self, pen: Pen, colour: Colour) -> None:
        """Paint the silhouette in one colour."""
        pen.polygon(self.patch(-1, 1, 0, 1), fill=colour)

    def shadow(self, pen: Pen) -> None:
        """Darken the side away from the light, over everything painted so far."""
        pen.polygon(self.patch(-self.light * 0.4, -self.light, 0, 1), fill=(10, 10, 30, 48))


def limb(pen: Pen, a: Point, b: Point, ra: float, rb: float, colour: Colour, light: int) -> None:
    """Paint a tapered stroke with round ends, radii in pixels, and a dark rim on the side away from the light."""
    _stroke(pen, a, b, ra, rb, shade(colour, 0.72))
    dx, dy = 0.22 * light, -0.1
    lit_a, lit_b = (a[0] + dx * ra, a[1] + dy * ra), (b[0] + dx * rb, b[1] + dy * rb)
    _stroke(pen, lit_a, lit_b, 0.8 * ra, 0.8 * rb, colour)


def _stroke(pen: Pen, a: Point, b: Point, ra: float, rb: float, colour: Colour) -> None:
    (ax, ay), (bx, by) = a, b
    length = math.hypot(bx - ax, by - ay) or 1.0
    nx, ny = (by - ay) / length, (ax - bx) / length
    for x, y, r in ((ax, ay, ra), (bx, by, rb)):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    left = [(ax + nx * ra, ay + ny * ra), (bx + nx * rb, by + ny * rb)]
    right = [(bx - nx * rb, by - ny * rb), (ax - nx * ra, ay - ny * ra)]
    pen.polygon(left + right, fill=colour)
