"""The patterns of cloth, painted on a tube's surface so that they turn with the body: (pen, tube, colour, repeats)."""

from __future__ import annotations

import math
from collections.abc import Callable

from shards.pedestrians.figure import Colour, Pen, Tube


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
