"""Evaluation results as pictures: CMC curves, and rank lists in green and red frames.

Figure objects, never pyplot: no global state, no display needed. Text from outside is never read as formulas.
"""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reid.reports.analysis import Ranked, RankList
from reid.reports.tables import Results, list_protocols, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MARKED = (1, 5, 10, 20, 30, 40, 50, 100)  # ranks with a tick and a dot
ZOOMED = 10
LEGEND_COLUMNS, LONG_NAME = 3, 20  # of longer names, two columns fit
STROKES = (("-", 1.8, "o"), ("--", 1.1, None), (":", 1.4, None), ("-.", 1.1, None))  # by model, the first stands out
RIGHT, WRONG = "#1a9850", "#d73027"


@dataclass(frozen=True)
class Theme:
    paper: str
    ink: str
    soft: str
    grid: str
    lines: tuple[str, ...]


LIGHT = Theme(
    "#ffffff", "#1f2430", "#5d6675", "#e4e7ec", ("#0072b2", "#d55e00", "#7b3fa0", "#009e73", "#8a6d00", "#c2185b"),
)  # fmt: skip
DARK = Theme(
    "#171b22", "#dfe3ea", "#98a2b3", "#2c323c", ("#56b4e9", "#f0953f", "#c792ea", "#3fc9a0", "#e5c558", "#f48fb1"),
)  # fmt: skip


def draw_cmc_zoom(results: Results, dataset: str, theme: Theme = LIGHT) -> bytes:
    """The first ranks of the first model alone, on a scale of their own: there the protocols lie close together."""
    first = {
        protocol: {**figures, "cmc": figures["cmc"][:ZOOMED]}
        for protocol, figures in next(iter(results.values())).items()
    }
    return draw_cmc({next(iter(results)): first}, f"{dataset}, first ranks", theme)


def draw_cmc(results: Results, dataset: str, theme: Theme = LIGHT) -> bytes:
    """PNG of the matching rate by rank: a colour per protocol, thick for the first model, thin for the others."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 5.0), dpi=180, facecolor=theme.paper, layout="constrained")
    axes = figure.add_subplot(facecolor=theme.paper)
    colours = {protocol: theme.lines[i % len(theme.lines)] for i, protocol in enumerate(list_protocols(results))}
    for i, protocols in enumerate(results.values()):
        style, width, marker = _stroke(i)
        for j, (protocol, figures) in enumerate(protocols.items()):
            cmc = 100 * np.asarray(figures["cmc"])
            dots = range(len(cmc)) if len(cmc) <= ZOOMED else [rank - 1 for rank in MARKED if rank <= len(cmc)]
            most = 0.7 if protocol == "image" and not i else 0.0  # the one that most readers look for
            # Later protocols lie beneath with larger dots, so that curves which coincide can be told apart.
            axes.plot(np.arange(1, len(cmc) + 1), cmc, style, color=colours[protocol], marker=marker,
                      linewidth=width + most, markersize=5 + 0.8 * j, zorder=3 - 0.1 * j + most,
                      markevery=list(dots))  # fmt: skip
    last = max(len(figures["cmc"]) for protocols in results.values() for figures in protocols.values())
    axes.set_xlim(min(0.5, last - 1), last + 0.5)
    axes.set_xticks([rank for rank in MARKED if rank <= last])
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2), min(high, 102))  # room for the dots at 100
    axes.set_xlabel("rank", color=theme.ink, fontsize=11)
    axes.set_ylabel("matching rate (%)", color=theme.ink, fontsize=11)
    axes.set_title(f"CMC · {dataset}", color=theme.ink, fontsize=12, fontweight="bold", loc="left", parse_math=False)
    if last <= ZOOMED:
        axes.set_xticks(range(1, last + 1))
    style_axes(axes, theme)
    _draw_legend(figure, colours, list(results), theme)
    return to_png(figure)


def style_axes(axes: Axes, theme: Theme) -> None:
    """The look that all charts share: a faint grid, no frame."""
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, length=0, labelsize=10)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(theme.grid)


def _stroke(model: int) -> tuple[str, float, str | None]:
    return STROKES[min(model, len(STROKES) - 1)]


def _draw_legend(figure: Figure, colours: dict[str, str], models: list[str], theme: Theme) -> None:
    """Rows that tell protocols by colour and rows that tell models by stroke."""
    from matplotlib.lines import Line2D

    def sample(model: int) -> Line2D:
        style, width, marker = _stroke(model)
        return figure.axes[0].plot([], [], style, color=theme.ink, linewidth=width, marker=marker, markersize=5)[0]

    kinds = [
        [(Line2D([], [], color=colour, linewidth=4), protocol) for protocol, colour in colours.items()],
        [(sample(i), model) for i, model in enumerate(models) if len(models) > 1],
    ]
    fit = LEGEND_COLUMNS - any(len(name) > LONG_NAME for name in (*colours, *models))
    columns = min(fit, max(map(len, kinds)))
    rows = [kind[i : i + columns] for kind in kinds for i in range(0, len(kind), columns)]
    blank = Line2D([], [], linestyle="none"), ""
    cells = [row[i] if i < len(row) else blank for i in range(columns) for row in rows]  # legends fill by column
    lines, names = zip(*cells, strict=True)
    legend = figure.legend(lines, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=10)
    for text in legend.get_texts():
        text.set_color(theme.ink)
        text.set_parse_math(False)


def draw_rank_lists(rank_lists: list[RankList], theme: Theme = LIGHT) -> bytes:
    """PNG with a row per list: the query, then its gallery, framed green where it matches and red where it does not.

    An entry without a picture is an empty frame.
    """
    from matplotlib.figure import Figure

    columns = 1 + max(len(ranks.gallery) for ranks in rank_lists)
    lines = max(len(_wrap(p.caption)) for ranks in rank_lists for p in (ranks.query, *ranks.gallery))
    aspect = np.median(
        [
            p.image.shape[0] / p.image.shape[1]
            for ranks in rank_lists
            for p in (ranks.query, *ranks.gallery)
            if p.image is not None
        ]
    )
    width, head, foot = 1.1, 0.55, 0.2 + 0.14 * (lines + 1)
    height = min(max(width * aspect, 0.8), 2.4)
    row = head + height + foot
    size = (columns + 0.5) * (width + 0.12) + 0.1, row * len(rank_lists) + 0.1
    figure = Figure(figsize=size, dpi=120, facecolor=theme.paper)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(0, size[1]))  # inches; one, as axes are slow to make
    axes.set_axis_off()
    for i, ranks in enumerate(rank_lists):
        top = size[1] - i * row
        axes.text(0.12, top - 0.3, f"{ranks.title}  ·  AP {percent(ranks.ap)}%",
                  color=theme.ink, fontsize=11, fontweight="bold", parse_math=False)  # fmt: skip
        for j, picture in enumerate([ranks.query, *ranks.gallery]):
            left = 0.12 + j * (width + 0.12) + (0.3 if j else 0)
            colour = theme.ink if j == 0 else RIGHT if picture.correct else WRONG
            box = left, top - head - height, width, height
            _draw_picture(axes, box, picture, colour, f"{j} {mark(picture)}" if j else "query", theme)
    return to_png(figure)


def _draw_picture(
    axes: Axes, box: tuple[float, float, float, float], picture: Ranked, colour: str, head: str, theme: Theme
) -> None:
    """In the middle of `box`, as large as fits: left, bottom, width and height in inches."""
    from matplotlib.patches import Rectangle

    image = np.zeros((2, 1, 4), np.uint8) if picture.image is None else picture.image
    scale = min(box[2] / image.shape[1], box[3] / image.shape[0])
    width, height = scale * image.shape[1], scale * image.shape[0]
    middle, foot = box[0] + box[2] / 2, box[1] + (box[3] - height) / 2
    place = middle - width / 2, middle + width / 2, foot, foot + height
    axes.imshow(image, interpolation="lanczos", extent=place, aspect="auto")
    frame = Rectangle((place[0], foot), width, height, fill=False, edgecolor=colour, linewidth=3.5, clip_on=False)
    axes.add_patch(frame)
    axes.annotate(head, (middle, foot), xytext=(0, -7), textcoords="offset points",
                  ha="center", va="top", fontsize=9, fontweight="bold", color=colour)  # fmt: skip
    axes.annotate("\n".join(_wrap(picture.caption)), (middle, foot), xytext=(0, -20), textcoords="offset points",
                  ha="center", va="top", fontsize=8, color=theme.ink, parse_math=False)  # fmt: skip


def _wrap(caption: str) -> list[str]:
    return textwrap.wrap(caption, 18)[:4]


def mark(picture: Ranked) -> str:
    return "✓" if picture.correct else "✗"  # not by colour alone


def to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    return buffer.getvalue()
