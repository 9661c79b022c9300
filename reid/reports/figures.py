"""Charts as PNG: CMC curves, and rank lists in green and red frames; the look that all charts share.

Uses Figure objects, never pyplot: no global state, no display. Text from outside is never parsed as a formula.
"""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reid.reports.analysis import RankList
from reid.reports.tables import Results, list_protocols, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TICK_RANKS = (1, 5, 10, 20, 30, 40, 50, 100)
ZOOM_RANKS = 10
LEGEND_COLUMNS, LONG_NAME = 3, 20  # one column less with longer names
MODEL_LINES = (("-", 1.8, "o"), ("--", 1.1, None), (":", 1.4, None), ("-.", 1.1, None))  # style, width, marker
GREEN, RED = "#1a9850", "#d73027"  # frames of entries with the query's identity, and of others


@dataclass(frozen=True)
class Theme:
    """Colors. ink: text; soft: secondary text and marks; lines: curves, by protocol."""

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


def start_chart(
    theme: Theme, title: str, labels: tuple[str, str], size: tuple[float, float] = (5.6, 3.4)
) -> tuple[Figure, Axes]:
    """Return a figure of `size` inches and its axes, with `labels` for x and y, a faint grid and no frame."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=180, facecolor=theme.paper, layout="constrained")
    axes = figure.add_subplot(facecolor=theme.paper)
    axes.set_title(title, color=theme.ink, fontsize=12, fontweight="bold", loc="left", parse_math=False)
    axes.set_xlabel(labels[0], color=theme.ink, fontsize=11)
    axes.set_ylabel(labels[1], color=theme.ink, fontsize=11)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, length=0, labelsize=10)
    axes.spines[:].set_color(theme.grid)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    return buffer.getvalue()


def draw_cmc_zoom(results: Results, dataset: str, theme: Theme = LIGHT) -> bytes:
    """Draw the first ranks of the first model only, where the curves of its protocols lie close together."""
    model, protocols = next(iter(results.items()))
    first = {protocol: metrics | {"cmc": metrics["cmc"][:ZOOM_RANKS]} for protocol, metrics in protocols.items()}
    return draw_cmc({model: first}, f"{dataset}, first ranks", theme)


def draw_cmc(results: Results, dataset: str, theme: Theme = LIGHT) -> bytes:
    """Draw the matching rate by rank: a color per protocol, a line style per model."""
    figure, axes = start_chart(theme, f"CMC · {dataset}", ("rank", "matching rate (%)"), (5.6, 5.0))
    colors = {protocol: theme.lines[i % len(theme.lines)] for i, protocol in enumerate(list_protocols(results))}
    for i, protocols in enumerate(results.values()):
        style, width, marker = MODEL_LINES[min(i, len(MODEL_LINES) - 1)]
        for j, (protocol, metrics) in enumerate(protocols.items()):
            cmc = 100 * np.asarray(metrics["cmc"])
            dots = range(len(cmc)) if len(cmc) <= ZOOM_RANKS else [rank - 1 for rank in TICK_RANKS if rank <= len(cmc)]
            lift = 0.7 if protocol == "image" and not i else 0.0  # the curve that most readers look for
            # Later protocols lie below and have larger dots, so that equal curves can be told apart.
            axes.plot(np.arange(1, len(cmc) + 1), cmc, style, color=colors[protocol], marker=marker,
                      linewidth=width + lift, markersize=5 + 0.8 * j, zorder=3 - 0.1 * j + lift,
                      markevery=list(dots))  # fmt: skip
    last = max(len(metrics["cmc"]) for protocols in results.values() for metrics in protocols.values())
    axes.set_xlim(min(0.5, last - 1), last + 0.5)
    axes.set_xticks(range(1, last + 1) if last <= ZOOM_RANKS else [rank for rank in TICK_RANKS if rank <= last])
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2), min(high, 102))  # space for the dots at 100
    _draw_legend(figure, colors, list(results), theme)
    return to_png(figure)


def _draw_legend(figure: Figure, colors: dict[str, str], models: list[str], theme: Theme) -> None:
    """Draw rows of protocols with their colors, then, for several models, rows of models with their line styles."""
    from matplotlib.lines import Line2D

    keys = [[(Line2D([], [], color=color, linewidth=4), protocol) for protocol, color in colors.items()]]
    if len(models) > 1:
        keys.append([])
        for i, model in enumerate(models):
            style, width, marker = MODEL_LINES[min(i, len(MODEL_LINES) - 1)]
            (line,) = figure.axes[0].plot([], [], style, color=theme.ink, linewidth=width, marker=marker, markersize=5)
            keys[1].append((line, model))
    columns = LEGEND_COLUMNS - any(len(name) > LONG_NAME for name in (*colors, *models))
    columns = min(columns, max(map(len, keys)))
    rows = [kind[i : i + columns] for kind in keys for i in range(0, len(kind), columns)]
    blank = Line2D([], [], linestyle="none"), ""
    cells = [row[i] if i < len(row) else blank for i in range(columns) for row in rows]  # legends fill by column
    lines, names = zip(*cells, strict=True)
    legend = figure.legend(lines, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=10)
    for text in legend.get_texts():
        text.set_color(theme.ink)
        text.set_parse_math(False)


def draw_rank_lists(rank_lists: list[RankList], theme: Theme = LIGHT) -> bytes:
    """Draw a row per list: the query, then its gallery in green and red frames; an entry without an image is empty."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    entries = [entry for ranks in rank_lists for entry in ranks.entries]
    columns = max(len(ranks.entries) for ranks in rank_lists)
    lines = max(len(_wrap(entry.caption)) for entry in entries)
    aspect = np.median([e.image.shape[0] / e.image.shape[1] for e in entries if e.image is not None])
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
        for j, entry in enumerate(ranks.entries):
            left = 0.12 + j * (width + 0.12) + (0.3 if j else 0)
            color = theme.ink if j == 0 else GREEN if entry.correct else RED
            image = np.zeros((2, 1, 4), np.uint8) if entry.image is None else entry.image
            scale = min(width / image.shape[1], height / image.shape[0])  # the largest that fits
            drawn_width, drawn_height = scale * image.shape[1], scale * image.shape[0]
            middle, bottom = left + width / 2, top - head - height + (height - drawn_height) / 2
            extent = middle - drawn_width / 2, middle + drawn_width / 2, bottom, bottom + drawn_height
            axes.imshow(image, interpolation="lanczos", extent=extent, aspect="auto")
            axes.add_patch(Rectangle((extent[0], bottom), drawn_width, drawn_height, fill=False, edgecolor=color,
                                     linewidth=3.5, clip_on=False))  # fmt: skip
            axes.annotate(f"{j} {entry.symbol}" if j else "query", (middle, bottom), xytext=(0, -7),
                          textcoords="offset points", ha="center", va="top", fontsize=9, fontweight="bold",
                          color=color)  # fmt: skip
            axes.annotate("\n".join(_wrap(entry.caption)), (middle, bottom), xytext=(0, -20),
                          textcoords="offset points", ha="center", va="top", fontsize=8, color=theme.ink,
                          parse_math=False)  # fmt: skip
    return to_png(figure)


def _wrap(caption: str) -> list[str]:
    return textwrap.wrap(caption, 18)[:4]
