"""One person, painted from the far parts to the near ones: legs, arms, clothes, bags, head."""

import math
from collections.abc import Sequence

from shards.pedestrians.figure import SUPERSAMPLE, Pen, Tube, View, limb, shade
from shards.pedestrians.patterns import paint_pattern
from shards.pedestrians.wardrobe import Identity, Pose


def _leg(who: Identity, side: int, angle: float) -> tuple[tuple[float, float, float], ...]:
    """Return hip, knee and ankle of one leg, with the hip at its standing height."""
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
    trousers = who.legwear in ("trousers", "wide")
    colour = who.lower if trousers else shade(who.lower, 0.8) if who.legwear == "tights" else who.skin
    toe = view.point(joints[2][0], joints[2][1] - 0.02, joints[2][2] + 0.075)
    heel = view.point(joints[2][0], joints[2][1] - 0.012, joints[2][2] - 0.01)
    calf = 0.036 if who.legwear == "wide" else 0.026
    limb(pen, heel, toe, 0.024 * unit, 0.02 * unit, who.shoes, view.light)
    limb(pen, knee, ankle, 0.032 * bulk, (0.04 if who.legwear == "wide" else 0.021) * bulk, colour, view.light)
    if who.boots:
        middle = (0.5 * (knee[0] + ankle[0]), 0.5 * (knee[1] + ankle[1]))
        limb(pen, middle, ankle, 0.034 * bulk, calf * unit, who.shoes, view.light)
    limb(pen, hip, knee, 0.052 * bulk, 0.035 * bulk, colour, view.light)
    if who.legwear == "shorts":
        end = (hip[0] + 0.9 * (knee[0] - hip[0]), hip[1] + 0.9 * (knee[1] - hip[1]))
        limb(pen, hip, end, 0.056 * bulk, 0.05 * bulk, who.lower, view.light)


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
    thick = 1.15 if who.has_jacket else 1.0
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
    """Return the body of the upper garment, shoulders to hem; a dress or coat is longer and wider at the hem."""
    wide, deep = 0.108 * who.shoulders * (0.7 + 0.3 * who.girth), 0.06 * who.girth
    waist, belly = 0.085 * who.girth, 0.068 * who.girth
    hem = {"dress": 0.52 * hip, "coat": 0.6 * hip}.get(who.cut, hip - 0.03)
    flare = {"dress": 1.6, "coat": 1.35, "shirt": 1.08}.get(who.cut, 1.18)
    rings = [
        (shoulder + 0.035, 0.5 * wide, 0.6 * deep),
        (shoulder - 0.01, 1.05 * wide, deep),
        (0.5 * (shoulder + hip), 0.5 * (wide + waist), 0.5 * (deep + belly) * 1.05),
        (hip + 0.02, waist * 1.06, belly * 1.05),
        (hem, waist * flare, belly * flare),
    ]
    return Tube(view, rings)


def _paint_upper(pen: Pen, torso: Tube, who: Identity) -> None:
    torso.fill(pen, who.upper)
    paint_pattern(pen, torso, who.pattern, who.trim, who.repeats)
    if who.cut == "jacket":
        torso.paint_sector(pen, 0.0, 0.3, 0.02, 1, who.lower)
    elif who.cut == "coat":
        torso.paint_sector(pen, 0.0, 0.16, 0.02, 1, shade(who.upper, 0.6))
    elif who.cut == "hoodie":
        torso.paint_sector(pen, 0.0, 0.7, 0.68, 0.88, shade(who.upper, 0.72))
    torso.shadow(pen)


def _paint_lower(pen: Pen, view: View, who: Identity, hip: float) -> None:
    """Paint the hips and the skirt."""
    waist, belly = 0.086 * who.girth, 0.066 * who.girth
    hem = {"skirt": 0.52 * hip, "long skirt": 0.2 * hip}.get(who.legwear, hip - 0.07)
    flare = {"skirt": 1.5, "long skirt": 1.45}.get(who.legwear, 1.0)
    rings = [(hip + 0.05, waist, belly), (hip - 0.03, waist * 1.1, belly * 1.1), (hem, waist * flare, belly * flare)]
    tube = Tube(view, rings)
    tube.fill(pen, who.lower)
    tube.shadow(pen)


def _paint_bag(pen: Pen, view: View, who: Identity, hip: float, shoulder: float) -> None:
    """Paint a backpack, satchel or suitcase; a handbag belongs to the arm."""
    if who.bag == "backpack":
        heights = (shoulder, shoulder - 0.04, hip + 0.1, hip + 0.03)
        rings = list(zip(heights, (0.06, 0.085, 0.092, 0.085), (0.03, 0.05, 0.06, 0.055), strict=True))
        tube = Tube(view, rings, z=-0.06 * who.girth - 0.05)
        tube.fill(pen, who.bag_colour)
        tube.paint_sector(pen, math.pi, 1.0, 0.55, 0.92, shade(who.bag_colour, 0.7))
    elif who.bag == "satchel":
        rings = [(hip + 0.06, 0.035, 0.08), (hip - 0.005, 0.04, 0.085), (hip - 0.07, 0.04, 0.08)]
        tube = Tube(view, rings, x=who.side * (0.1 * who.girth + 0.035))
        tube.fill(pen, who.bag_colour)
        pen.polygon(tube.patch(-1, 1, 0, 0.45), fill=shade(who.bag_colour, 0.78))
    else:
        rings = [(0.24, 0.06, 0.045), (0.13, 0.07, 0.05), (0.02, 0.065, 0.05)]
        tube = Tube(view, rings, x=who.side * 0.2, z=-0.1)
        handle = [tube.at(0, 0), view.point(who.side * 0.15, 0.42, -0.05)]
        pen.line(handle, fill=(70, 70, 76), width=SUPERSAMPLE)
        tube.fill(pen, who.bag_colour)
        for t in (0.3, 0.55, 0.8):
            pen.line([tube.at(-0.8, t), tube.at(0.8, t)], fill=shade(who.bag_colour, 0.65), width=2)
    tube.shadow(pen)


def _paint_straps(pen: Pen, torso: Tube, who: Identity) -> None:
    """Paint the straps of a backpack, or that of a satchel over one shoulder."""
    width = max(2, int(0.45 * torso.rings[1][2] * 0.35))
    straps: list[list[tuple[float, float]]] = []  # of angles around the body and heights t
    if who.bag == "backpack":
        straps = [[(angle, t) for t in (0.05, 0.3, 0.55)] for angle in (0.75, -0.75)]
    elif who.bag == "satchel":
        ends = (-0.9, 1.45), (math.pi + 0.9, math.pi - 1.45)
        straps = [[(who.side * (a + (b - a) * k / 6), 0.05 + 0.75 * k / 6) for k in range(7)] for a, b in ends]
    for strap in straps:
        shown = [(torso.across(angle), t) for angle, t in strap]
        line = [torso.at(u, t) for u, t in shown if u is not None]
        if len(line) > 1:
            pen.line(line, fill=shade(who.bag_colour, 0.8), width=width)


HAIR_LENGTH = {"long": 3.1, "bob": 1.5}  # in radii of the head; other hair does not hang down


def _paint_head(pen: Pen, view: View, who: Identity, shoulder: float, head: tuple[float, float, float]) -> None:
    """Paint neck, head, face, hair and hat."""
    x, y, r = head
    turn, facing = math.sin(view.yaw), math.cos(view.yaw)
    hair, drop = who.hair_colour, HAIR_LENGTH.get(who.hair, 0.0)
    limb(pen, view.point(0, shoulder + 0.02, 0), (x, y + 0.6 * r), 0.6 * r, 0.55 * r, shade(who.skin, 0.88), view.light)
    if who.hair == "afro":
        pen.ellipse((x - 1.5 * r, y - 1.75 * r, x + 1.5 * r, y + 0.9 * r), fill=hair)
    bx = x - turn * 1.2 * r
    if who.hair == "bun":
        by = y - 0.9 * r
        pen.ellipse((bx - 0.55 * r, by - 0.75 * r, bx + 0.55 * r, by + 0.35 * r), fill=hair)
    elif who.hair == "ponytail" and facing < 0.5:
        by = y + 0.2 * r
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
    """Paint a person who stands at the view's place, from the far parts to the near ones."""
    legs = {side: _leg(who, side, side * pose.stride) for side in (-1, 1)}
    lift = 0.035 - min(joints[2][1] for joints in legs.values())
    legs = {side: tuple((x, y + lift, z) for x, y, z in joints) for side, joints in legs.items()}
    hip = legs[1][0][1]
    shoulder = hip + who.height * (0.81 - who.legs)
    far = 1 if math.sin(view.yaw) > 0 else -1  # the left side is the far one of a person who walks to the right
    torso = _torso(view, who, hip, shoulder)
    (x, y), r = view.point(0, 0, 0), 0.2 * view.unit
    pen.ellipse((x - r, y - 0.15 * r, x + r, y + 0.18 * r), fill=(8, 8, 20, 90))
    bag = who.bag, math.cos(view.yaw) >= 0 if who.bag == "backpack" else who.side == far
    if bag == ("suitcase", True):
        _paint_bag(pen, view, who, hip, shoulder)
    _paint_leg(pen, view, who, legs[far])
    _paint_leg(pen, view, who, legs[-far])
    if bag in (("backpack", True), ("satchel", True)):
        _paint_bag(pen, view, who, hip, shoulder)
    x, y, r = head = (*view.point(0, shoulder + 0.105, 0.015), 0.058 * (view.unit * (1 + view.pitch * 0.4)))
    if who.hair in HAIR_LENGTH and math.cos(view.yaw) > 0:  # the torso then covers a part of it
        box = (x - 1.12 * r, y - r, x + 1.12 * r, y + HAIR_LENGTH[who.hair] * r)
        pen.rounded_rectangle(box, radius=0.8 * r, fill=who.hair_colour)
    _paint_arm(pen, view, who, pose, far, shoulder - 0.025)
    _paint_lower(pen, view, who, hip)
    _paint_upper(pen, torso, who)
    _paint_straps(pen, torso, who)
    _paint_head(pen, view, who, shoulder, head)
    if who.scarf:
        neck = Tube(view, [(shoulder + 0.06, 0.05, 0.045), (shoulder + 0.015, 0.065, 0.055)])
        neck.fill(pen, who.trim)
        torso.paint_sector(pen, 0.25, 0.16, 0.02, 0.45, shade(who.trim, 0.85))
    if bag == ("backpack", False):
        _paint_bag(pen, view, who, hip, shoulder)
    _paint_arm(pen, view, who, pose, -far, shoulder - 0.025)
    if bag in (("satchel", False), ("suitcase", False)):
        _paint_bag(pen, view, who, hip, shoulder)
