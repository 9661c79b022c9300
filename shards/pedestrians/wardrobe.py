"""Who a drawn person is (body, hair, clothes, bag) and how he stands, from keyed random generators."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from shards.pedestrians.figure import Colour
from shards.pedestrians.patterns import PATTERNS

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
