"""The patterns of cloth, painted on a tube's surface so that they turn with the body."""

import math
from collections.abc import Callable

from shards.pedestrians.figure import Colour, Pen, Tube

# The order decides which person wears which pattern.
PATTERNS = ["plain", "bands", "pinstripes", "checks", "dots", "yoke"]
PATTERNS += ["hem", "belt", "sides", "block print", "round print", "sash"]
Pieces = Callable[[int], list[tuple[float, ...]]]  # number of repeats -> the pieces of the surface to paint
_AROUND = 0.0, 2 * math.pi  # angle and half width of a sector that covers all that is visible
# (angle, half width, t0, t1) of sectors
_SECTORS: dict[str, Pieces] = {
    "bands": lambda n: [(*_AROUND, (k + 0.5) / n, (k + 1) / n) for k in range(n)],
    "yoke": lambda n: [(*_AROUND, 0, 0.2 + 0.04 * n)],
    "hem": lambda n: [(*_AROUND, 0.85 - 0.05 * n, 1)],
    "belt": lambda n: [(*_AROUND, 0.4, 0.4 + 0.04 * n)],
    "pinstripes": lambda n: [(math.pi * k / n, 0.7 / n, 0, 1) for k in range(2 * n)],
    "sides": lambda n: [(side * math.pi, 0.1 + 0.1 * n, 0, 1) for side in (0.5, -0.5)],
    "block print": lambda n: [(angle, 0.35 + 0.05 * n, 0.2, 0.3 + 0.04 * n) for angle in (0.0, math.pi)],
    "sash": lambda n: [
        (start + (k - 3.5) * 0.3, 0.17, 0.1 * k, 0.1 * k + 0.1 + 0.025 * n)
        for start in (0.0, math.pi)
        for k in range(8)
    ],
}
# (angle, t) of discs
_DISCS: dict[str, Pieces] = {
    "dots": lambda n: [(math.pi * (k + 0.5 * (i % 2)) / n, (i + 0.5) / n) for i in range(n) for k in range(2 * n)],
    "round print": lambda n: [(0.0, 0.38), (math.pi, 0.38)],
}


def paint_pattern(pen: Pen, tube: Tube, name: str, colour: Colour, repeats: int) -> None:
    """Paint one of PATTERNS over the tube; larger `repeats` give finer stripes and larger prints."""
    if name == "checks":
        paint_pattern(pen, tube, "bands", (*colour, 150), repeats)
        paint_pattern(pen, tube, "pinstripes", (*colour, 150), repeats)
    elif name in _SECTORS:
        for angle, half, t0, t1 in _SECTORS[name](repeats):
            tube.paint_sector(pen, angle, half, t0, t1, colour)
    elif name in _DISCS:
        if name == "dots":
            radius, max_u = 0.3 * abs(tube.rings[-1][1] - tube.rings[0][1]) / repeats, 0.95
        else:
            radius, max_u = (0.25 + 0.05 * repeats) * tube.rings[1][2], 1.0
        for angle, t in _DISCS[name](repeats):
            u = tube.across(angle)
            if u is not None and abs(u) <= max_u:
                x, y = tube.at(u, t)
                wide = radius * math.sqrt(1 - u * u)  # narrower towards the edge of what is visible
                pen.ellipse((x - wide, y - radius, x + wide, y + radius), fill=colour)
