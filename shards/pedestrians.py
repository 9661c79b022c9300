"""People drawn procedurally: a small re-ID dataset in Market-1501's layout that needs no download.

An identity is a body, hair and clothes; a camera is a viewpoint, a place and a sensor; an image is a pose, a crop and
whatever stands in the way. Outfits come from a few shared colour sets and every camera has its own colour cast, so
colours alone do not tell people apart: cut, pattern and placement do.

Every random number comes from a generator keyed by names (seed, camera, identity, image), never from a shared stream:
the same arguments give the same bytes for each file, whatever the order or the number of files (with the same Pillow).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

VERSION = 1  # raise it with any change of the pictures: an older folder is then refused instead of silently mixed
MARKER = "pedestrians.json"
SUPERSAMPLE = 3  # drawn this much larger, then averaged: smooth edges at the price of Pillow's fast fills

STRETCH = 1.15  # detectors' boxes are slimmer than the crop they are resized to, so people come out wider

Colour = tuple[int, ...]
Point = tuple[float, float]
T = TypeVar("T")

# Every outfit is one of these sets in one of six orders (upper, trim, lower), so many people share all their colours.
OUTFITS: list[tuple[Colour, Colour, Colour]] = [
    ((36, 38, 44), (222, 218, 208), (122, 126, 132)),
    ((34, 50, 104), (222, 218, 208), (178, 44, 46)),
    ((58, 112, 182), (34, 38, 52), (202, 178, 138)),
    ((52, 112, 70), (214, 178, 62), (46, 48, 54)),
    ((178, 44, 46), (40, 40, 46), (116, 122, 130)),
    ((150, 110, 74), (226, 214, 186), (40, 52, 88)),
    ((222, 142, 160), (92, 62, 118), (70, 74, 84)),
    ((30, 122, 124), (232, 134, 60), (60, 54, 60)),
]
GEAR: list[Colour] = [(44, 42, 46), (104, 70, 46), (170, 46, 44), (46, 72, 120), (206, 196, 176), (84, 104, 62)]
SKIN: list[Colour] = [(244, 208, 180), (228, 182, 148), (196, 144, 108), (148, 100, 70), (98, 66, 48)]
HAIR: list[Colour] = [(30, 26, 26), (66, 44, 32), (118, 78, 44), (196, 158, 92), (152, 70, 36), (176, 174, 172)]


def keyed(*key: object) -> random.Random:
    """A generator of its own for a name; a string seed is hashed with SHA-512, so close keys are unrelated."""
    return random.Random("/".join(map(str, key)))


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """One option; only `random()` is used, whose sequence Python promises to keep between versions."""
    return options[int(rng.random() * len(options))]


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker (below 1) or lighter."""
    return tuple(min(255, int(c * factor)) for c in colour)


# ---------------------------------------------------------------- who


@dataclass(frozen=True)
class Identity:
    """What every image of a person shares. Lengths are in body heights of a tall adult (1.0), angles in radians."""

    height: float
    girth: float
    shoulders: float
    legs: float
    skin: Colour
    hair: str
    hair_colour: Colour
    hat: str
    upper: Colour
    trim: Colour
    lower: Colour
    cut: str
    sleeves: str
    contrast_sleeves: bool
    pattern: str
    repeats: int
    legwear: str
    shoes: Colour
    boots: bool
    bag: str
    bag_colour: Colour
    side: int
    scarf: bool


def make_identity(key: object) -> Identity:
    """The person of a key; equal keys give equal people."""
    rng = keyed("identity", key)
    outfit = list(pick(rng, OUTFITS))
    outfit = [outfit.pop(int(rng.random() * len(outfit))) for _ in range(3)]
    cut = pick(rng, ["shirt", "shirt", "shirt", "jacket", "jacket", "coat", "dress", "hoodie"])
    legwear = pick(rng, ["trousers", "trousers", "trousers", "wide", "shorts", "skirt", "long skirt"])
    if cut == "dress":
        legwear = pick(rng, ["bare", "tights"])
    sleeves = "long" if cut in ("jacket", "coat", "hoodie") else pick(rng, ["short", "short", "long", "none"])
    return Identity(
        height=rng.uniform(0.84, 1.06),
        girth=pick(rng, [0.82, 0.95, 1.1, 1.35]) * rng.uniform(0.96, 1.04),
        shoulders=rng.uniform(0.9, 1.12),
        legs=rng.uniform(0.46, 0.53),
        skin=pick(rng, SKIN),
        hair=pick(rng, ["short", "short", "bald", "long", "long", "bun", "ponytail", "afro", "bob"]),
        hair_colour=pick(rng, HAIR),
        hat=pick(rng, ["", "", "", "", "cap", "beanie", "brim", "headscarf"]),
        upper=outfit[0],
        trim=outfit[1],
        lower=outfit[2],
        cut=cut,
        sleeves=sleeves,
        contrast_sleeves=rng.random() < 0.3,
        pattern=pick(rng, list(PATTERNS)),
        repeats=pick(rng, [4, 6, 8]),
        legwear=legwear,
        shoes=pick(rng, [*GEAR, (236, 236, 232)]),
        boots=rng.random() < 0.2,
        bag=pick(rng, ["", "", "backpack", "backpack", "satchel", "satchel", "handbag", "suitcase"]),
        bag_colour=pick(rng, GEAR),
        side=pick(rng, [-1, 1]),
        scarf=rng.random() < 0.15,
    )


# ---------------------------------------------------------------- geometry


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


# ---------------------------------------------------------------- patterns: (pen, tube, colour, repeats)

Pen = ImageDraw.ImageDraw


def _plain(pen: Pen, tube: Tube, colour: Colour, repeats: int) -> None:
    pass


def _bands(pen: Pen, tube: Tube, colour: Colour, repeats: int) -> None:
    for k in range(repeats):
        pen.polygon(tube.patch(-1, 1, (k + 0.5) / repeats, (k + 1) / repeats), fill=colour)


def _pinstripes(pen: Pen, tube: Tube, colour: Colour, repeats: int) -> None:
    for k in range(2 * repeats):
        outline = tube.sector(math.pi * k / repeats, 0.7 / repeats, 0, 1)
        if outline:
            pen.polygon(outline, fill=colour)


def _checks(pen: Pen, tube: Tube, colour: Colour, repeats: int) -> None:
    _bands(pen, tube, (*colour, 150), repeats)
    _pinstripes(pen, tube, (*colour, 150), repeats)


def _dots(pen: Pen, tube: Tube, colour: Colour, repeats: int) -> None:
    radius = 0.3 * abs(tube.rings[-1][1] - tube.rings[0][1]) / repeats
    for row in range(repeats):
        for k in range(2 * repeats):
            u = tube.across(math.pi * (k + 0.5 * (row % 2)) / repeats)
            if u is not None and abs(u) < 0.95:
                x, y = tube.at(u, (row + 0.5) / repeats)
                r = radius * math.sqrt(1 - u * u)
                pen.ellipse((x - r, y - radius, x + r, y + radius), fill=colour)


def _yoke(pen: Pen, tube: Tube, colour: Colour, repeats: int) -> None:
    pen.polygon(tube.patch(-1, 1, 0, 0.2 + 0.04 * repeats), fill=colour)


def _hem(pen: Pen, tube: Tube, colour: Colour, repeats: int) -> None:
    pen.polygon(tube.patch(-1, 1, 0.85 - 0.05 * repeats, 1), fill=colour)


def _belt(pen: Pen, tube: Tube, colour: Colour, repeats: int) -> None:
    pen.polygon(tube.patch(-1, 1, 0.4, 0.4 + 0.04 * repeats), fill=colour)


def _sides(pen: Pen, tube: Tube, colour: Colour, repeats: int) -> None:
    for angle in (0.5 * math.pi, -0.5 * math.pi):
        outline = tube.sector(angle, 0.1 + 0.1 * repeats, 0, 1)
        if outline:
            pen.polygon(outline, fill=colour)


def _block_print(pen: Pen, tube: Tube, colour: Colour, repeats: int) -> None:
    for angle in (0.0, math.pi):
        outline = tube.sector(angle, 0.35 + 0.05 * repeats, 0.2, 0.3 + 0.04 * repeats)
        if outline:
            pen.polygon(outline, fill=colour)


def _round_print(pen: Pen, tube: Tube, colour: Colour, repeats: int) -> None:
    for angle in (0.0, math.pi):
        u = tube.across(angle)
        if u is not None:
            x, y = tube.at(u, 0.38)
            r = (0.25 + 0.05 * repeats) * tube.rings[1][2]
            squeeze = math.sqrt(1 - u * u)
            pen.ellipse((x - r * squeeze, y - r, x + r * squeeze, y + r), fill=colour)


def _sash(pen: Pen, tube: Tube, colour: Colour, repeats: int) -> None:
    for start in (0.0, math.pi):
        for k in range(8):
            outline = tube.sector(start + (k - 3.5) * 0.3, 0.17, 0.1 * k, 0.1 * k + 0.1 + 0.025 * repeats)
            if outline:
                pen.polygon(outline, fill=colour)


PATTERNS: dict[str, Callable[[Pen, Tube, Colour, int], None]] = {
    "plain": _plain,
    "bands": _bands,
    "pinstripes": _pinstripes,
    "checks": _checks,
    "dots": _dots,
    "yoke": _yoke,
    "hem": _hem,
    "belt": _belt,
    "sides": _sides,
    "block print": _block_print,
    "round print": _round_print,
    "sash": _sash,
}


# ---------------------------------------------------------------- painting a person


@dataclass(frozen=True)
class Pose:
    """What a person does in one image. Angles in radians, forward positive."""

    stride: float  # signed swing of the left leg
    swing: float  # signed swing of the left arm
    elbows: tuple[float, float]
    raised: tuple[float, float]  # extra lift of the (left, right) upper arm


def make_pose(rng: random.Random) -> Pose:
    """A walking phase, and arms that swing, hold a phone or rest in pockets."""
    phase = math.sin(2 * math.pi * rng.random()) * rng.uniform(0.5, 1.0)
    elbows, raised = [0.35, 0.35], [0.0, 0.0]
    habit = rng.random()
    if habit < 0.2:
        elbows[int(rng.random() * 2)] = 2.0
    elif habit < 0.3:
        elbows = [0.9, 0.9]
    elif habit < 0.38:
        arm = int(rng.random() * 2)
        elbows[arm], raised[arm] = 1.6, 0.6
    return Pose(0.46 * phase, -0.6 * phase * rng.uniform(0.4, 1.0), (elbows[0], elbows[1]), (raised[0], raised[1]))


def _leg(who: Identity, side: int, angle: float) -> tuple[tuple[float, float, float], ...]:
    """Hip, knee and ankle of one leg, the hip at its standing height."""
    length = who.height * who.legs
    thigh, shin = 0.5 * length, 0.46 * length
    bend = 0.12 + max(0.0, -angle) * 0.9
    x = side * 0.045 * who.girth
    hip = (x, length, 0.0)
    knee = (x, hip[1] - thigh * math.cos(angle), thigh * math.sin(angle))
    ankle = (x, knee[1] - shin * math.cos(angle - bend), knee[2] + shin * math.sin(angle - bend))
    return hip, knee, ankle


def _paint_leg(pen: Pen, view: View, who: Identity, joints: Sequence[tuple[float, float, float]]) -> None:
    hip, knee, ankle = (view.point(*j) for j in joints)
    unit = view.unit
    bulk = unit * (0.6 + 0.4 * who.girth)
    skin, cloth = who.skin, who.lower
    thigh, shin = {
        "trousers": (cloth, cloth),
        "wide": (cloth, cloth),
        "shorts": (skin, skin),
        "skirt": (skin, skin),
        "long skirt": (skin, skin),
        "bare": (skin, skin),
        "tights": (shade(who.lower, 0.8), shade(who.lower, 0.8)),
    }[who.legwear]
    toe = view.point(joints[2][0], joints[2][1] - 0.02, joints[2][2] + 0.075)
    heel = view.point(joints[2][0], joints[2][1] - 0.012, joints[2][2] - 0.01)
    calf = 0.036 if who.legwear == "wide" else 0.026
    limb(pen, heel, toe, 0.024 * unit, 0.02 * unit, who.shoes, view.light)
    limb(pen, knee, ankle, 0.032 * bulk, (0.04 if who.legwear == "wide" else 0.021) * bulk, shin, view.light)
    if who.boots:
        middle = (0.5 * (knee[0] + ankle[0]), 0.5 * (knee[1] + ankle[1]))
        limb(pen, middle, ankle, 0.034 * bulk, calf * unit, who.shoes, view.light)
    limb(pen, hip, knee, 0.052 * bulk, 0.035 * bulk, thigh, view.light)
    if who.legwear == "shorts":
        end = (hip[0] + 0.9 * (knee[0] - hip[0]), hip[1] + 0.9 * (knee[1] - hip[1]))
        limb(pen, hip, end, 0.056 * bulk, 0.05 * bulk, cloth, view.light)


def _paint_arm(pen: Pen, view: View, who: Identity, pose: Pose, side: int, shoulder_y: float) -> None:
    arm = 0 if side > 0 else 1
    angle = side * pose.swing + pose.raised[arm]
    upper, fore = 0.165 * who.height, 0.15 * who.height
    x = side * (0.105 * who.shoulders * (0.7 + 0.3 * who.girth) + 0.012)
    spread = side * 0.02 * (1 + who.girth)
    shoulder = (x, shoulder_y, 0.0)
    elbow = (x + spread, shoulder_y - upper * math.cos(angle), upper * math.sin(angle))
    bent = angle + pose.elbows[arm]
    hand = (x + 0.6 * spread, elbow[1] - fore * math.cos(bent), elbow[2] + fore * math.sin(bent))
    a, b, c = view.point(*shoulder), view.point(*elbow), view.point(*hand)
    bulk = view.unit * (0.55 + 0.45 * who.girth)
    cloth = who.trim if who.contrast_sleeves else who.upper
    top = who.skin if who.sleeves == "none" else cloth
    low = cloth if who.sleeves == "long" else who.skin
    thick = 1.15 if who.cut in ("jacket", "coat", "hoodie") else 1.0
    r = 0.02 * view.unit
    pen.ellipse((c[0] - r, c[1] - r, c[0] + r, c[1] + r), fill=who.skin)
    limb(pen, b, c, 0.026 * bulk * thick, 0.02 * bulk * thick, low, view.light)
    limb(pen, a, b, 0.034 * bulk * thick, 0.027 * bulk * thick, top, view.light)
    if who.bag == "handbag" and side == who.side:
        w, h = 0.062 * view.unit, 0.105 * view.unit
        pen.line([c, (c[0], c[1] + 0.05 * view.unit)], fill=shade(who.bag_colour, 0.7), width=SUPERSAMPLE)
        top_y = c[1] + 0.045 * view.unit
        pen.rounded_rectangle((c[0] - w, top_y, c[0] + w, top_y + h), radius=0.02 * view.unit, fill=who.bag_colour)
        pen.line([(c[0] - w, top_y + 0.3 * h), (c[0] + w, top_y + 0.3 * h)], fill=shade(who.bag_colour, 0.65), width=2)


def _torso(view: View, who: Identity, hip: float, shoulder: float) -> Tube:
    """The upper garment's body, shoulders to hem; a dress or coat reaches further down and flares."""
    wide, deep = 0.108 * who.shoulders * (0.7 + 0.3 * who.girth), 0.06 * who.girth
    waist, belly = 0.085 * who.girth, 0.068 * who.girth
    if who.cut == "dress":
        hem, flare = 0.52 * hip, 1.6
    elif who.cut == "coat":
        hem, flare = 0.6 * hip, 1.35
    else:
        hem, flare = hip - 0.03, 1.08 if who.cut == "shirt" else 1.18
    return Tube(
        view,
        [
            (shoulder + 0.035, 0.5 * wide, 0.6 * deep),
            (shoulder - 0.01, 1.05 * wide, deep),
            (0.5 * (shoulder + hip), 0.5 * (wide + waist), 0.5 * (deep + belly) * 1.05),
            (hip + 0.02, waist * 1.06, belly * 1.05),
            (hem, waist * flare, belly * flare),
        ],
    )


def _paint_upper(pen: Pen, torso: Tube, who: Identity) -> None:
    torso.fill(pen, who.upper)
    PATTERNS[who.pattern](pen, torso, who.trim, who.repeats)
    if who.cut in ("jacket", "coat"):
        opening = torso.sector(0.0, 0.3 if who.cut == "jacket" else 0.16, 0.02, 1)
        if opening:
            pen.polygon(opening, fill=who.lower if who.cut == "jacket" else shade(who.upper, 0.6))
    if who.cut == "hoodie":
        pocket = torso.sector(0.0, 0.7, 0.68, 0.88)
        if pocket:
            pen.polygon(pocket, fill=shade(who.upper, 0.72))
    torso.shadow(pen)


def _paint_lower(pen: Pen, view: View, who: Identity, hip: float) -> None:
    """The hips and, with a skirt, its whole body."""
    waist, belly = 0.086 * who.girth, 0.066 * who.girth
    hem = {"skirt": 0.52 * hip, "long skirt": 0.2 * hip}.get(who.legwear, hip - 0.07)
    flare = {"skirt": 1.5, "long skirt": 1.45}.get(who.legwear, 1.0)
    rings = [(hip + 0.05, waist, belly), (hip - 0.03, waist * 1.1, belly * 1.1), (hem, waist * flare, belly * flare)]
    tube = Tube(view, rings)
    tube.fill(pen, who.lower)
    tube.shadow(pen)


def _paint_backpack(pen: Pen, view: View, who: Identity, hip: float, shoulder: float) -> None:
    rings = [
        (shoulder + 0.0, 0.06, 0.03),
        (shoulder - 0.04, 0.085, 0.05),
        (hip + 0.1, 0.092, 0.06),
        (hip + 0.03, 0.085, 0.055),
    ]
    tube = Tube(view, rings, z=-0.06 * who.girth - 0.05)
    tube.fill(pen, who.bag_colour)
    pocket = tube.sector(math.pi, 1.0, 0.55, 0.92)
    if pocket:
        pen.polygon(pocket, fill=shade(who.bag_colour, 0.7))
    tube.shadow(pen)


def _paint_straps(pen: Pen, torso: Tube, who: Identity) -> None:
    """A backpack's straps, or a satchel's over one shoulder."""
    width = max(2, int(0.45 * torso.rings[1][2] * 0.35))
    strap = shade(who.bag_colour, 0.8)
    if who.bag == "backpack":
        for angle in (0.75, -0.75):
            u = torso.across(angle)
            if u is not None:
                pen.line([torso.at(u, t) for t in (0.05, 0.3, 0.55)], fill=strap, width=width)
    if who.bag == "satchel":
        for start, end in ((-0.9, 1.45), (math.pi + 0.9, math.pi - 1.45)):
            steps = [(start + (end - start) * k / 6, 0.05 + 0.75 * k / 6) for k in range(7)]
            shown = [(torso.across(who.side * angle), t) for angle, t in steps]
            line = [torso.at(u, t) for u, t in shown if u is not None]
            if len(line) > 1:
                pen.line(line, fill=strap, width=width)


def _paint_satchel(pen: Pen, view: View, who: Identity, hip: float) -> None:
    rings = [(hip + 0.06, 0.035, 0.08), (hip - 0.005, 0.04, 0.085), (hip - 0.07, 0.04, 0.08)]
    tube = Tube(view, rings, x=who.side * (0.1 * who.girth + 0.035))
    tube.fill(pen, who.bag_colour)
    pen.polygon(tube.patch(-1, 1, 0, 0.45), fill=shade(who.bag_colour, 0.78))
    tube.shadow(pen)


def _paint_suitcase(pen: Pen, view: View, who: Identity) -> None:
    rings = [(0.24, 0.06, 0.045), (0.13, 0.07, 0.05), (0.02, 0.065, 0.05)]
    tube = Tube(view, rings, x=who.side * 0.2, z=-0.1)
    x, y = tube.at(0, 0)
    pen.line([(x, y), view.point(who.side * 0.15, 0.42, -0.05)], fill=(70, 70, 76), width=SUPERSAMPLE)
    tube.fill(pen, who.bag_colour)
    for t in (0.3, 0.55, 0.8):
        pen.line([tube.at(-0.8, t), tube.at(0.8, t)], fill=shade(who.bag_colour, 0.65), width=2)
    tube.shadow(pen)


def _paint_head(pen: Pen, view: View, who: Identity, shoulder: float, hair_behind: bool) -> None:
    """Neck, head, face, hair and hat; long hair hangs behind the torso only when the face is seen (`hair_behind`)."""
    unit = view.unit * (1 + view.pitch * 0.4)
    r = 0.058 * unit
    x, y = view.point(0, shoulder + 0.105, 0.015)
    turn, facing = math.sin(view.yaw), math.cos(view.yaw)
    hair = who.hair_colour
    drop = {"long": 3.1, "bob": 1.5}.get(who.hair, 0.0)
    if hair_behind:
        if drop and facing > 0:
            pen.rounded_rectangle((x - 1.12 * r, y - r, x + 1.12 * r, y + drop * r), radius=0.8 * r, fill=hair)
        return
    limb(pen, view.point(0, shoulder + 0.02, 0), (x, y + 0.6 * r), 0.6 * r, 0.55 * r, shade(who.skin, 0.88), view.light)
    if who.hair == "afro":
        pen.ellipse((x - 1.5 * r, y - 1.75 * r, x + 1.5 * r, y + 0.9 * r), fill=hair)
    if who.hair in ("bun", "ponytail"):
        bx = x - turn * 1.2 * r
        by = y - 0.9 * r if who.hair == "bun" else y + 0.2 * r
        if who.hair == "bun":
            pen.ellipse((bx - 0.55 * r, by - 0.75 * r, bx + 0.55 * r, by + 0.35 * r), fill=hair)
        elif facing < 0.5:
            pen.ellipse((bx - 0.4 * r, by - 0.5 * r, bx + 0.4 * r, by + 2.4 * r), fill=hair)
    scalp = who.skin if who.hair == "bald" else hair
    pen.ellipse((x - r, y - 1.22 * r, x + r, y + 1.22 * r), fill=scalp)
    if drop and facing <= 0:
        pen.rounded_rectangle((x - 1.05 * r, y - r, x + 1.05 * r, y + drop * r), radius=0.7 * r, fill=hair)
    elif drop and abs(turn) > 0.5:
        back = x - math.copysign(0.55 * r, turn)
        pen.rounded_rectangle((back - 0.6 * r, y - r, back + 0.6 * r, y + drop * r), radius=0.5 * r, fill=hair)
    show = min(1.0, facing + 0.75)
    if show > 0.1:
        fx, fw = x + 0.62 * r * turn * (1 - 0.3 * facing), 0.86 * r * (0.35 + 0.65 * show) * (1 - 0.3 * abs(turn))
        pen.ellipse((fx - fw, y - 0.72 * r, fx + fw, y + 1.2 * r), fill=who.skin)
        if show > 0.6:
            for side in (-1, 1):
                ex = fx + side * 0.4 * fw + 0.25 * fw * turn
                pen.ellipse((ex - 0.1 * r, y - 0.05 * r, ex + 0.1 * r, y + 0.2 * r), fill=(40, 34, 34))
    _paint_hat(pen, who, x, y, r, turn, facing)


def _paint_hat(pen: Pen, who: Identity, x: float, y: float, r: float, turn: float, facing: float) -> None:
    colour = who.bag_colour if who.hat in ("cap", "brim") else who.trim
    if who.hat in ("cap", "beanie", "brim"):
        top, brow = y - (1.55 if who.hat == "beanie" else 1.4) * r, y - 0.3 * r
        pen.pieslice((x - 1.12 * r, top, x + 1.12 * r, 2 * brow - top), 180, 360, fill=colour)
    if who.hat == "cap":
        if facing > -0.3:
            bx, bw = x + 0.9 * r * turn, r * (0.55 + 0.4 * abs(turn))
            pen.ellipse((bx - bw, y - 0.5 * r, bx + bw, y - 0.1 * r), fill=shade(colour, 0.7))
    elif who.hat == "brim":
        pen.ellipse((x - 1.9 * r, y - 0.65 * r, x + 1.9 * r, y - 0.05 * r), fill=shade(colour, 0.8))
    elif who.hat == "beanie":
        pen.rectangle((x - 1.1 * r, y - 0.6 * r, x + 1.1 * r, y - 0.25 * r), fill=shade(colour, 0.75))
    elif who.hat == "headscarf":
        pen.chord((x - 1.2 * r, y - 1.4 * r, x + 1.2 * r, y + 1.5 * r), 180, 360, fill=colour)
        for side in (-1, 1):
            if facing <= 0 or side * turn < 0.4:
                fold = x + 0.8 * side * r
                pen.ellipse((fold - 0.4 * r, y - 0.6 * r, fold + 0.4 * r, y + 1.6 * r), fill=colour)
        if facing <= 0.1:
            pen.ellipse((x - 1.15 * r, y - 1.3 * r, x + 1.15 * r, y + 1.6 * r), fill=colour)


def paint_person(pen: Pen, view: View, who: Identity, pose: Pose) -> None:
    """Draw a person standing at the view's place, far parts first."""
    legs = {side: _leg(who, side, side * pose.stride) for side in (-1, 1)}
    lift = 0.035 - min(joints[2][1] for joints in legs.values())
    legs = {side: tuple((x, y + lift, z) for x, y, z in joints) for side, joints in legs.items()}
    hip = legs[1][0][1]
    shoulder = hip + who.height * (0.81 - who.legs)
    far = 1 if math.sin(view.yaw) > 0 else -1  # the person's left side is the far one when he walks to the right
    seen_from_behind = math.cos(view.yaw) < 0
    torso = _torso(view, who, hip, shoulder)
    (x, y), r = view.point(0, 0, 0), 0.2 * view.unit
    pen.ellipse((x - r, y - 0.15 * r, x + r, y + 0.18 * r), fill=(8, 8, 20, 90))
    if who.bag == "suitcase" and who.side == far:
        _paint_suitcase(pen, view, who)
    _paint_leg(pen, view, who, legs[far])
    _paint_leg(pen, view, who, legs[-far])
    if who.bag == "backpack" and not seen_from_behind:
        _paint_backpack(pen, view, who, hip, shoulder)
    if who.bag == "satchel" and who.side == far:
        _paint_satchel(pen, view, who, hip)
    _paint_head(pen, view, who, shoulder, hair_behind=True)
    _paint_arm(pen, view, who, pose, far, shoulder - 0.025)
    _paint_lower(pen, view, who, hip)
    _paint_upper(pen, torso, who)
    if who.bag in ("backpack", "satchel"):
        _paint_straps(pen, torso, who)
    _paint_head(pen, view, who, shoulder, hair_behind=False)
    if who.scarf:
        neck = Tube(view, [(shoulder + 0.06, 0.05, 0.045), (shoulder + 0.015, 0.065, 0.055)])
        neck.fill(pen, who.trim)
        tail = torso.sector(0.25, 0.16, 0.02, 0.45)
        if tail:
            pen.polygon(tail, fill=shade(who.trim, 0.85))
    if who.bag == "backpack" and seen_from_behind:
        _paint_backpack(pen, view, who, hip, shoulder)
    _paint_arm(pen, view, who, pose, -far, shoulder - 0.025)
    if who.bag == "satchel" and who.side != far:
        _paint_satchel(pen, view, who, hip)
    if who.bag == "suitcase" and who.side != far:
        _paint_suitcase(pen, view, who)


# ---------------------------------------------------------------- where: places and sensors


@dataclass(frozen=True)
class Camera:
    """A viewpoint and a sensor; what every image of a camera shares."""

    yaw: float  # the way most people walk here
    pitch: float
    light: int
    places: tuple[int, ...]  # indices into PLACES, one for each of four images; a neighbour overlooks the last one too
    cast: tuple[float, float, float]  # gain of red, green and blue
    saturation: float
    exposure: float
    haze: float  # black level, 0-255
    gamma: float
    blur: float  # radius at the final size for a height of 128
    noise: float  # standard deviation, 0-255
    quality: int  # of the JPEG


# (cast, saturation, exposure, haze, gamma, blur, noise): warm, cold, fluorescent, evening, faded, violet
SENSORS = [
    ((1.04, 1.00, 0.95), 1.00, 1.00, 0, 1.00, 0.0, 3.0),
    ((0.94, 0.99, 1.06), 0.92, 0.94, 5, 1.03, 0.4, 4.0),
    ((0.97, 1.04, 0.96), 0.85, 0.98, 10, 0.97, 0.2, 5.0),
    ((1.07, 0.98, 0.90), 1.00, 0.89, 2, 1.04, 0.3, 5.0),
    ((1.00, 1.00, 1.02), 0.75, 0.95, 15, 0.97, 0.4, 3.0),
    ((1.04, 0.95, 1.05), 0.94, 0.94, 5, 1.02, 0.2, 6.0),
]
YAWS = [0.35, 2.75, -1.35, 3.6, 1.0, -0.5]


@lru_cache(maxsize=64)
def make_camera(scene: int, number: int) -> Camera:
    """Camera `number` (from 1) of a scene; neighbours differ strongly by table, details by the scene's seed."""
    rng = keyed("camera", scene, number)
    cast, saturation, exposure, haze, gamma, blur, noise = SENSORS[(number - 1) % len(SENSORS)]
    here = (number - 1) % len(PLACES)
    return Camera(
        yaw=YAWS[(number - 1) % len(YAWS)] + rng.uniform(-0.2, 0.2),
        pitch=rng.uniform(0.05, 0.4),
        light=pick(rng, [-1, 1]),
        places=(here, here, here, number % len(PLACES)),
        cast=(cast[0] * rng.uniform(0.97, 1.03), cast[1], cast[2] * rng.uniform(0.97, 1.03)),
        saturation=saturation,
        exposure=exposure,
        haze=haze,
        gamma=gamma,
        blur=blur,
        noise=noise,
        quality=int(rng.uniform(80, 93)),
    )


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
        _box(pen, x + 0.1 * wide, 0.15 * h, 0.8 * wide, 0.15 * h, pick(rng, [c for o in OUTFITS for c in o]))
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
            paint = pick(rng, [c for o in OUTFITS for c in o])
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
def _scenery(scene: int, place: int, height: int, width: int) -> Image.Image:
    """A whole place, supersampled and out of focus; each image is a window of it."""
    w, h = 5 * width * SUPERSAMPLE, int(1.15 * height * SUPERSAMPLE)
    image = Image.new("RGB", (w, h))
    PLACES[place](ImageDraw.Draw(image, "RGBA"), keyed("place", scene, place), w, h)
    return image.filter(ImageFilter.GaussianBlur(0.012 * h))


@lru_cache(maxsize=4)
def _grain(height: int, width: int) -> np.ndarray:
    """Unit noise, four times an image's size; each image takes a window of it, much cheaper than fresh noise."""
    rng = np.random.RandomState(1501)  # the legacy generator: numpy promises that its stream never changes
    grey = rng.standard_normal((2 * height, 2 * width, 1))
    return (0.8 * grey + 0.6 * rng.standard_normal((2 * height, 2 * width, 3))).astype(np.float32)


# ---------------------------------------------------------------- one image


def _paint_occluder(pen: Pen, rng: random.Random, view: View, w: int, h: int) -> None:
    """Something between the camera and the person: pillar, bin, hedge, bench or car bonnet, at most a third of them."""
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


def draw_pedestrian(
    identity: object | None,
    camera: int,
    image: object,
    height: int = 128,
    width: int = 64,
    scene: int = 0,
    crop: str = "",
) -> Image.Image:
    """One surveillance crop of a person, as a camera delivers it: RGB, `height` x `width`.

    `identity` and `image` are keys, any printable value: who (None for nobody, a false detection), and the pose, crop
    and occlusion; `camera` counts from 1; `scene` seeds the cameras and their places; `crop="bad"` misses the person
    by half, as a failing detector would.
    """
    sensor = make_camera(scene, camera)
    rng = keyed("image", scene, camera, identity, image)
    w, h = width * SUPERSAMPLE, height * SUPERSAMPLE
    scenery = _scenery(scene, pick(rng, sensor.places), height, width)
    x, y = int(rng.random() * (scenery.width - w)), int(rng.random() * (scenery.height - h))
    canvas = scenery.crop((x, y, x + w, y + h))
    pen = ImageDraw.Draw(canvas, "RGBA")
    view = _frame(rng, sensor, w, h, crop)
    people = [] if identity is None else [(view, make_identity(identity))]
    if rng.random() < 0.1:  # a passer-by, half outside the crop, in front or behind
        aside = view.centre + pick(rng, [-1, 1]) * rng.uniform(0.42, 0.6) * w
        other = replace(view, yaw=rng.uniform(0, 6.28), centre=aside, unit=view.unit * rng.uniform(0.8, 1.05))
        stranger = make_identity(("passer-by", rng.random()))
        people.insert(0 if rng.random() < 0.6 else len(people), (other, stranger))
    for where, who in people:
        paint_person(pen, where, who, make_pose(rng))
    if rng.random() < 0.14:
        _paint_occluder(pen, rng, view, w, h)
    return _expose(canvas.reduce(SUPERSAMPLE), sensor, rng)


def _frame(rng: random.Random, sensor: Camera, w: int, h: int, crop: str) -> View:
    """Where the detector's box puts the person, and how he is turned."""
    yaw = sensor.yaw + rng.gauss(0, 0.4) + (math.pi if rng.random() < 0.3 else 0.0)
    size = rng.uniform(0.84, 0.99)
    centre, ground = (0.5 + rng.gauss(0, 0.05)) * w, (0.965 + rng.gauss(0, 0.026)) * h
    if rng.random() < 0.05:  # the box ends at the knees or the chest fills it
        size, ground = size * 1.25, ground + 0.22 * h
    if crop == "bad":
        size *= rng.uniform(1.0, 1.6)
        centre += pick(rng, [-1, 1]) * rng.uniform(0.35, 0.6) * w
        ground += rng.uniform(-0.4, 0.6) * h
    return View(yaw, centre, ground, size * h, sensor.pitch * rng.uniform(0.7, 1.3), sensor.light)


def _expose(image: Image.Image, sensor: Camera, rng: random.Random) -> Image.Image:
    """What lens and sensor make of the light: blur, low resolution, cast, exposure, gamma, noise."""
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


# ---------------------------------------------------------------- the dataset


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
        who = f"{seed}/stranger/{index}" if index % 2 else None
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
