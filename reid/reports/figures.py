"""CMC curves as PNG, and rank lists in green, red and grey frames."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from reid.reports.rank_lists import RankList
from reid.reports.style import GREEN, GREY, LIGHT, RED, Theme, start_chart, style_legend, to_png
from reid.reports.tables import Results, list_protocols, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TICK_RANKS = (1, 5, 10, 20, 30, 40, 50, 100)
ZOOM_RANKS = 10
LEGEND_COLUMNS, LONG_NAME = 3, 20  # one column less with longer names
MODEL_LINES = (("-", 1.8, "o"), ("--", 1.1, None), (":", 1.4, None), ("-.", 1.1, None))  # style, width, marker
NEAR = 0.006  # of the range of a chart: curves at this distance hide each other
FRAMES = {"right": GREEN, "wrong": RED, "late": GREY}
CAPTION_LETTERS = 18  # in a line below a picture of a rank list


def draw_cmc_zoom(results: Results, dataset: str, theme: Theme = LIGHT) -> bytes:
    """Draw the first ranks of the first model only, where the curves of its protocols lie close together."""
    model, protocols = next(iter(results.items()))
    first = {protocol: metrics | {"cmc": metrics["cmc"][:ZOOM_RANKS]} for protocol, metrics in protocols.items()}
    return draw_cmc({model: first}, f"{dataset}, first ranks", theme)


def draw_cmc(results: Results, dataset: str, theme: Theme = LIGHT) -> bytes:
    """Draw the matching rate by rank: a color per protocol, a line style per model.

    Where curves of the first model coincide, the later ones lie below and are wider, so that each can be seen. `image`,
    which most readers look for, is on top.
    """
    figure, axes = start_chart(theme, f"CMC · {dataset}", ("rank", "matching rate (%)"), (5.6, 5.0))
    colors = {protocol: theme.lines[i % len(theme.lines)] for i, protocol in enumerate(list_protocols(results))}
    curves = [{name: 100 * np.asarray(row["cmc"]) for name, row in _image_first(model)} for model in results.values()]
    values = np.concatenate([curve for of_model in curves for curve in of_model.values()])
    last = max(len(curve) for of_model in curves for curve in of_model.values())
    for i, of_model in enumerate(curves):
        style, width, marker = MODEL_LINES[min(i, len(MODEL_LINES) - 1)]
        for j, (protocol, curve) in enumerate(of_model.items()):
            shown = [rank for rank in range(len(curve)) if last <= ZOOM_RANKS or rank + 1 in TICK_RANKS]
            axes.plot(np.arange(1, len(curve) + 1), curve, style, color=colors[protocol], marker=marker,
                      linewidth=width, markersize=4.5 + 2 * j, zorder=3 - 0.1 * j - 0.5 * bool(i),
                      markevery=shown)  # fmt: skip
    _widen_hidden(axes, curves[0], colors, NEAR * max(float(np.ptp(values)), 1.0))
    axes.set_xlim(min(0.5, last - 1), last + 0.5)
    axes.set_xticks(range(1, last + 1) if last <= ZOOM_RANKS else [rank for rank in TICK_RANKS if rank <= last])
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2), min(high, 102))  # space for the dots at 100
    _draw_legend(figure, colors, list(results), theme)
    return to_png(figure)


def _image_first(of_model: dict[str, dict]) -> list[tuple[str, dict]]:
    return sorted(of_model.items(), key=lambda item: item[0] != "image")


def _widen_hidden(axes: Axes, curves: dict[str, np.ndarray], colors: dict[str, str], near: float) -> None:
    """Draw each curve wider where earlier ones, on top of it, are nearer than `near`: its color is at both sides."""
    width = MODEL_LINES[0][1]
    for j, (protocol, curve) in enumerate(curves.items()):
        hidden = np.zeros(len(curve), dtype=int)
        for above in list(curves.values())[:j]:
            both = min(len(curve), len(above))
            hidden[:both] += np.abs(curve[:both] - above[:both]) < near
        for depth in range(1, int(hidden.max(initial=0)) + 1):
            axes.plot(np.arange(1, len(curve) + 1), np.where(hidden >= depth, curve, np.nan), color=colors[protocol],
                      linewidth=width + 2.4 * depth, zorder=3 - 0.1 * j, solid_capstyle="butt")  # fmt: skip


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
    style_legend(legend, theme)


def draw_rank_lists(rank_lists: list[RankList], theme: Theme = LIGHT) -> bytes:
    """Draw a row per list: the query, then its gallery in green and red frames; an entry without an image is empty."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    entries = [entry for ranks in rank_lists for entry in ranks.entries]
    columns = max(len(ranks.entries) for ranks in rank_lists)
    lines = max(len(wrap_caption(entry.caption)) for entry in entries)
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
            color = FRAMES[entry.kind] if j else theme.ink
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
            axes.annotate("\n".join(wrap_caption(entry.caption)), (middle, bottom), xytext=(0, -20),
                          textcoords="offset points", ha="center", va="top", fontsize=8, color=theme.ink,
                          parse_math=False)  # fmt: skip
    return to_png(figure)


def wrap_caption(caption: str) -> list[str]:
    """Return at most four lines, which break between parts ("id 7", "camera 2") rather than inside of one."""
    lines = [""]
    for part in caption.split(" · "):
        joined = f"{lines[-1]} · {part}" if lines[-1] else part
        if len(joined) <= CAPTION_LETTERS:
            lines[-1] = joined
        else:
            lines += textwrap.wrap(part, CAPTION_LETTERS)
    return list(filter(None, lines))[:4]
