"""Drawn people: body, hair, clothes, bag and pose, from random generators with keys."""

import math
import random
from collections.abc import Sequence
from typing import TypeVar

from shards.pedestrians.figure import Colour
from shards.pedestrians.patterns import PATTERNS

T = TypeVar("T")

# An outfit is one of these sets in one of six orders (upper, trim, lower), so many people share all their colours.
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
CLOTHES = [colour for outfit in OUTFITS for colour in outfit]
GEAR: list[Colour] = [(44, 42, 46), (104, 70, 46), (170, 46, 44), (46, 72, 120), (206, 196, 176), (84, 104, 62)]
SKIN: list[Colour] = [(244, 208, 180), (228, 182, 148), (196, 144, 108), (148, 100, 70), (98, 66, 48)]
HAIR: list[Colour] = [(30, 26, 26), (66, 44, 32), (118, 78, 44), (196, 158, 92), (152, 70, 36), (176, 174, 172)]


def keyed(*key: object) -> random.Random:
    """Return a random generator for a name. A string seed is hashed with SHA-512, so similar names are unrelated."""
    return random.Random("/".join(map(str, key)))


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """Return a random option. Python promises to keep the sequence of `random()` between versions, so it is used."""
    return options[int(rng.random() * len(options))]


class Identity:
    """A person: what all of their images share; equal keys give equal people.

    Lengths are in body heights of a tall adult (1.0). The order of the lines decides which random number a trait gets.
    """

    def __init__(self, key: object) -> None:
        rng = keyed("identity", key)
        outfit = list(pick(rng, OUTFITS))
        self.upper, self.trim, self.lower = (outfit.pop(int(rng.random() * len(outfit))) for _ in range(3))
        self.cut = pick(rng, ["shirt", "shirt", "shirt", "jacket", "jacket", "coat", "dress", "hoodie"])
        self.legwear = pick(rng, ["trousers", "trousers", "trousers", "wide", "shorts", "skirt", "long skirt"])
        if self.cut == "dress":
            self.legwear = pick(rng, ["bare", "tights"])
        self.has_jacket = self.cut in ("jacket", "coat", "hoodie")
        self.sleeves = "long" if self.has_jacket else pick(rng, ["short", "short", "long", "none"])
        self.height = rng.uniform(0.84, 1.06)
        self.girth = pick(rng, [0.82, 0.95, 1.1, 1.35]) * rng.uniform(0.96, 1.04)
        self.shoulders = rng.uniform(0.9, 1.12)
        self.legs = rng.uniform(0.46, 0.53)
        self.skin = pick(rng, SKIN)
        self.hair = pick(rng, ["short", "short", "bald", "long", "long", "bun", "ponytail", "afro", "bob"])
        self.hair_colour = pick(rng, HAIR)
        self.hat = pick(rng, ["", "", "", "", "cap", "beanie", "brim", "headscarf"])
        self.contrast_sleeves = rng.random() < 0.3
        self.pattern = pick(rng, PATTERNS)
        self.repeats = pick(rng, [4, 6, 8])
        self.shoes = pick(rng, [*GEAR, (236, 236, 232)])
        self.boots = rng.random() < 0.2
        self.bag = pick(rng, ["", "", "backpack", "backpack", "satchel", "satchel", "handbag", "suitcase"])
        self.bag_colour = pick(rng, GEAR)
        self.side = pick(rng, [-1, 1])  # of the bag
        self.scarf = rng.random() < 0.15


class Pose:
    """A walking phase, and arms that swing, hold a phone or rest in pockets. Angles in radians, forward positive."""

    def __init__(self, rng: random.Random) -> None:
        phase = math.sin(2 * math.pi * rng.random()) * rng.uniform(0.5, 1.0)
        self.elbows, self.raised = [0.35, 0.35], [0.0, 0.0]  # left, right; raised lifts the upper arm
        habit = rng.random()
        if habit < 0.2:
            self.elbows[int(rng.random() * 2)] = 2.0
        elif habit < 0.3:
            self.elbows = [0.9, 0.9]
        elif habit < 0.38:
            arm = int(rng.random() * 2)
            self.elbows[arm], self.raised[arm] = 1.6, 0.6
        self.stride = 0.46 * phase  # of the left leg
        self.swing = -0.6 * phase * rng.uniform(0.4, 1.0)  # of the left arm
