"""Charts of one model's results as PNG: the AP of its queries, pairs of cameras, and centroids in two dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from reid.reports.analysis import CameraPairs
from reid.reports.figures import DARK, LIGHT, Theme, start_chart, to_png
from reid.reports.tables import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

BINS = 20
COLORMAP = "viridis"  # equal steps look equal, also in grey and to color-blind readers
MAX_CAMERAS_WITH_NUMBERS = 16  # with more, the cells are too small for numbers


def draw_ap_histogram(ap: np.ndarray, theme: Theme = LIGHT) -> bytes:
    """Draw how many queries have which AP, and the mean. ap: (V,)."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = start_chart(theme, "AP of the queries", ("AP of a query (%)", "queries"))
    axes.hist(100 * ap, bins=BINS, range=(0, 100), color=theme.lines[0], edgecolor=theme.paper, linewidth=0.8)
    axes.axvline(100 * ap.mean(), color=theme.ink, linewidth=1.2, linestyle="--")
    left = ap.mean() > 0.5
    axes.annotate(f"mAP {percent(ap.mean())}", (100 * ap.mean(), 1), xycoords=("data", "axes fraction"),
                  xytext=(-6 if left else 6, -4), textcoords="offset points", ha="right" if left else "left",
                  va="top", color=theme.ink, fontsize=10,
                  bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1.5})  # fmt: skip
    axes.set_xlim(0, 100)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return to_png(figure)


def draw_camera_pairs(pairs: CameraPairs, theme: Theme = LIGHT) -> bytes:
    """Draw the mAP of each pair of cameras as color and number: a row per query camera, a column per gallery camera."""
    from matplotlib import colormaps

    rows, columns = pairs.mean_ap.shape
    size = max(5.6, min(0.46 * columns + 2.0, 9.0)), max(2.4, min(0.46 * rows + 1.2, 8.2))
    figure, axes = start_chart(theme, "mAP by camera", ("camera of the gallery", "camera of the query"), size)
    axes.grid(False)
    colors = colormaps[COLORMAP].with_extremes(bad=theme.grid)
    image = axes.imshow(100 * np.ma.masked_invalid(pairs.mean_ap), cmap=colors, vmin=0, vmax=100)
    axes.set_xticks(range(columns), [str(camera) for camera in pairs.gallery_cameras])
    axes.set_yticks(range(rows), [str(camera) for camera in pairs.query_cameras])
    if max(rows, columns) <= MAX_CAMERAS_WITH_NUMBERS:
        for (i, j), value in np.ndenumerate(pairs.mean_ap):
            ink = theme.ink if np.isnan(value) else "#ffffff" if value < 0.6 else "#10141a"
            cell = "n/a" if np.isnan(value) else percent(value)
            axes.text(j, i, cell, ha="center", va="center", fontsize=8.5, color=ink)
    _add_colorbar(figure, axes, image, "mAP (%)", theme)
    axes.spines[:].set_visible(False)
    return to_png(figure)


def draw_roc(verification: Mapping[str, Any], theme: Theme = LIGHT) -> bytes:
    """Draw the true positive rate by the false positive rate, with the chosen thresholds. verification: `verify`."""
    labels = ("false positive rate (%)", "true positive rate (%)")
    figure, axes = start_chart(theme, "Pairs of images: ROC", labels)
    curve = (100 * np.asarray(verification["roc"][name]) for name in ("false_positive_rate", "true_positive_rate"))
    axes.plot(*curve, color=theme.lines[0], linewidth=1.8)
    for point in verification["thresholds"].values():
        place = 100 * point["false_positive_rate"], 100 * point["true_positive_rate"]
        axes.plot(*place, "o", color=theme.lines[0], markersize=6)
        axes.annotate(f"{point['threshold']:.3f}", place, xytext=(6, -4), textcoords="offset points", ha="left",
                      va="top", color=theme.ink, fontsize=9)  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(-2, 102)
    return to_png(figure)


def draw_points(
    points: np.ndarray, mean_ap: np.ndarray, title: str, labels: tuple[str, str], theme: Theme = LIGHT
) -> bytes:
    """Draw identities at points (I, 2), colored by mean AP (I,); a cross where it is NaN."""
    figure, axes = start_chart(theme, title, labels, (5.6, 4.6))
    asked = ~np.isnan(mean_ap)
    size = float(np.clip(4000 / len(points), 12, 60))
    x, y = points.T
    axes.scatter(x[~asked], y[~asked], s=size, c=theme.soft, marker="x", linewidths=0.9)
    dots = axes.scatter(x[asked], y[asked], s=size, c=100 * mean_ap[asked], cmap=choose_colors(theme), vmin=0,
                        vmax=100, edgecolors=theme.soft, linewidths=0.4)  # fmt: skip
    axes.set_aspect("equal", adjustable="datalim")
    if not any(labels):  # the coordinates have no meaning
        axes.tick_params(labelbottom=False, labelleft=False)
    if asked.any():
        _add_colorbar(figure, axes, dots, "mean AP of the identity's queries (%)", theme)
    return to_png(figure)


def choose_colors(theme: Theme) -> Colormap:
    """Return the colors of dots; on dark paper without the darkest ones, which could not be seen there."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps[COLORMAP](np.linspace(0.3, 1, 256))) if theme == DARK else colormaps[COLORMAP]


def _add_colorbar(figure: Figure, axes: Axes, drawn: ScalarMappable, label: str, theme: Theme) -> None:
    bar = figure.colorbar(drawn, ax=axes, shrink=0.85)
    bar.set_label(label, color=theme.ink, fontsize=10)
    bar.ax.tick_params(colors=theme.ink, length=0, labelsize=9)
    bar.outline.set_visible(False)
