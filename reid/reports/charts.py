"""Charts of one model's results: the AP of its queries, camera pairs, and centroids in two dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from reid.reports.analysis import CameraPairs
from reid.reports.figures import DARK, LIGHT, Theme, style_axes, to_png
from reid.reports.tables import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

BINS = 20
SCALE = "viridis"  # even steps look even, also in grey and to the colour-blind
NUMBERS_FIT = 16  # cameras a side, above which the cells are too small for numbers


def draw_ap_histogram(ap: np.ndarray, title: str, theme: Theme = LIGHT) -> bytes:
    """PNG: how many queries have which AP, with the mean marked."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _start(theme, title, (5.6, 3.4))
    axes.hist(100 * ap, bins=BINS, range=(0, 100), color=theme.lines[0], edgecolor=theme.paper, linewidth=0.8)
    axes.axvline(100 * ap.mean(), color=theme.ink, linewidth=1.2, linestyle="--")
    left = ap.mean() > 0.5
    axes.annotate(f"mAP {percent(ap.mean())}", (100 * ap.mean(), 1), xycoords=("data", "axes fraction"),
                  xytext=(-6 if left else 6, -4), textcoords="offset points", ha="right" if left else "left",
                  va="top", color=theme.ink, fontsize=10,
                  bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1.5})  # fmt: skip
    axes.set_xlim(0, 100)
    axes.set_xlabel("AP of a query (%)", color=theme.ink, fontsize=11)
    axes.set_ylabel("queries", color=theme.ink, fontsize=11)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return to_png(figure)


def draw_camera_pairs(pairs: CameraPairs, title: str, theme: Theme = LIGHT) -> bytes:
    """PNG: a cell per camera of the query (rows) and of the gallery (columns), its mAP as colour and number."""
    from matplotlib import colormaps

    rows, columns = pairs.mean_ap.shape
    size = max(5.6, min(0.46 * columns + 2.0, 9.0)), max(2.4, min(0.46 * rows + 1.2, 8.2))
    figure, axes = _start(theme, title, size)
    axes.grid(False)
    colours = colormaps[SCALE].with_extremes(bad=theme.grid)
    image = axes.imshow(100 * np.ma.masked_invalid(pairs.mean_ap), cmap=colours, vmin=0, vmax=100)
    axes.set_xticks(range(columns), [str(camera) for camera in pairs.gallery_cameras])
    axes.set_yticks(range(rows), [str(camera) for camera in pairs.query_cameras])
    axes.set_xlabel("camera of the gallery", color=theme.ink, fontsize=11)
    axes.set_ylabel("camera of the query", color=theme.ink, fontsize=11)
    if max(rows, columns) <= NUMBERS_FIT:
        for (i, j), value in np.ndenumerate(pairs.mean_ap):
            ink = theme.ink if np.isnan(value) else "#ffffff" if value < 0.6 else "#10141a"
            cell = "n/a" if np.isnan(value) else percent(value)
            axes.text(j, i, cell, ha="center", va="center", fontsize=8.5, color=ink)
    bar = figure.colorbar(image, ax=axes, shrink=0.85)
    bar.set_label("mAP (%)", color=theme.ink, fontsize=10)
    bar.ax.tick_params(colors=theme.ink, length=0, labelsize=9)
    bar.outline.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return to_png(figure)


def draw_points(points: np.ndarray, mean_ap: np.ndarray, title: str, labels: tuple[str, str], theme: Theme) -> bytes:
    """PNG of identities at points (I, 2), coloured by the mean AP of their queries; a cross where they have none."""
    figure, axes = _start(theme, title, (5.6, 4.6))
    asked = ~np.isnan(mean_ap)
    size = float(np.clip(4000 / len(points), 12, 60))
    x, y = points.T
    axes.scatter(x[~asked], y[~asked], s=size, c=theme.soft, marker="x", linewidths=0.9)
    dots = axes.scatter(x[asked], y[asked], s=size, c=100 * mean_ap[asked], cmap=_scale(theme), vmin=0, vmax=100,
                        edgecolors=theme.soft, linewidths=0.4)  # fmt: skip
    axes.set_xlabel(labels[0], color=theme.ink, fontsize=11)
    axes.set_ylabel(labels[1], color=theme.ink, fontsize=11)
    axes.set_aspect("equal", adjustable="datalim")
    if not any(labels):  # places without a scale
        axes.tick_params(labelbottom=False, labelleft=False)
    if asked.any():
        bar = figure.colorbar(dots, ax=axes, shrink=0.85)
        bar.set_label("mean AP of the identity's queries (%)", color=theme.ink, fontsize=10)
        bar.ax.tick_params(colors=theme.ink, length=0, labelsize=9)
        bar.outline.set_visible(False)
    return to_png(figure)


def _scale(theme: Theme) -> Colormap:
    """Without its darkest part on dark paper, where dots would vanish."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps[SCALE](np.linspace(0.3, 1, 256))) if theme == DARK else colormaps[SCALE]


def _start(theme: Theme, title: str, size: tuple[float, float]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=180, facecolor=theme.paper, layout="constrained")
    axes = figure.add_subplot(facecolor=theme.paper)
    axes.set_title(title, color=theme.ink, fontsize=12, fontweight="bold", loc="left", parse_math=False)
    style_axes(axes, theme)
    return figure, axes
