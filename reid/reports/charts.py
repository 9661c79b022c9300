"""Charts of one model's results as PNG: AP of its queries, scores of pairs, pairs of cameras, ROC, centroids in two
dimensions; and differences between models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from reid.reports.analysis import CameraPairs, ScoreHistogram
from reid.reports.style import COLORMAP, DARK, LIGHT, Theme, add_colorbar, add_legend, start_chart, to_png
from reid.reports.tables import percent

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

BINS = 20
MAX_CAMERAS_WITH_NUMBERS = 16  # with more, the cells are too small for numbers
LEAST_RANGE = 0.1  # of the colors of a map, in mAP: small differences do not look large
MAX_LABEL = 34  # letters at the axis


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


def draw_scores(scores: ScoreHistogram, theme: Theme = LIGHT) -> bytes:
    """Draw which share of the pairs of one person, and of two, has which cosine, and the threshold of equal errors."""
    figure, axes = start_chart(theme, "Scores of pairs", ("cosine", "share of the pairs (%)"))
    edges = np.linspace(-1, 1, len(scores.genuine) + 1)
    counted = np.flatnonzero(scores.genuine + scores.impostor)
    kinds = ("two persons", scores.impostor, theme.lines[1]), ("one person", scores.genuine, theme.lines[0])
    for label, counts, color in kinds:
        shares = 100 * counts / counts.sum()
        axes.stairs(shares, edges, fill=True, color=color, alpha=0.3)
        axes.stairs(shares, edges, color=color, linewidth=1.5, label=f"{label} ({counts.sum():,})")
    axes.axvline(scores.threshold, color=theme.ink, linewidth=1.2, linestyle="--",
                 label=f"equal errors: {percent(scores.error)}% at {scores.threshold:.2f}")  # fmt: skip
    axes.set_xlim(edges[counted[0]] - 0.02, edges[counted[-1] + 1] + 0.02)
    axes.set_ylim(bottom=0)
    add_legend(figure, theme)
    return to_png(figure)


def draw_camera_pairs(pairs: CameraPairs, theme: Theme = LIGHT) -> bytes:
    """Draw the mAP of each pair of cameras as color and number: a row per query camera, a column per gallery camera."""
    from matplotlib import colormaps

    rows, columns = pairs.mean_ap.shape
    size = max(5.6, min(0.46 * columns + 2.0, 9.0)), max(2.6, min(0.5 * rows + 1.2, 8.2))
    figure, axes = start_chart(theme, "mAP by camera (%)", ("camera of the gallery", "camera of the query"), size)
    axes.grid(False)
    colors = colormaps[COLORMAP].with_extremes(bad=theme.grid)
    low, high = color_range(pairs.mean_ap)
    image = axes.imshow(100 * np.ma.masked_invalid(pairs.mean_ap), cmap=colors, vmin=100 * low, vmax=100 * high,
                        aspect="auto")  # fmt: skip
    axes.set_xticks(range(columns), [str(camera) for camera in pairs.gallery_cameras])
    axes.set_yticks(range(rows), [str(camera) for camera in pairs.query_cameras])
    if max(rows, columns) <= MAX_CAMERAS_WITH_NUMBERS:
        for (i, j), value in np.ndenumerate(pairs.mean_ap):
            cell, ink = ("n/a", theme.ink) if np.isnan(value) else (percent(value), ink_on(value, low, high))
            axes.text(j, i, cell, ha="center", va="center", fontsize=11 if columns <= 8 else 8.5, color=ink)
    add_colorbar(figure, axes, image, "", theme)
    axes.spines[:].set_visible(False)
    return to_png(figure)


def color_range(values: np.ndarray) -> tuple[float, float]:
    """Return the least and the largest of some shares without NaN, at least LEAST_RANGE apart and inside 0 to 1."""
    known = values[~np.isnan(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    missing = max(0.0, LEAST_RANGE - (high - low))
    low = max(0.0, low - missing / 2)
    high = min(1.0, max(high + missing / 2, low + LEAST_RANGE))
    return min(low, high - LEAST_RANGE), high


def ink_on(value: float, low: float, high: float) -> str:
    """Return a color of text that can be read on COLORMAP's color of a value in a range."""
    return "#ffffff" if value < low + 0.6 * (high - low) else "#10141a"


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
    known = ~np.isnan(mean_ap)
    size = float(np.clip(4000 / len(points), 12, 60))
    x, y = points.T
    axes.scatter(x[~known], y[~known], s=size, c=theme.soft, marker="x", linewidths=0.9)
    dots = axes.scatter(x[known], y[known], s=size, c=100 * mean_ap[known], cmap=choose_colors(theme), vmin=0,
                        vmax=100, edgecolors=theme.soft, linewidths=0.4)  # fmt: skip
    axes.set_aspect("equal", adjustable="datalim")
    if not any(labels):  # the coordinates have no meaning
        axes.tick_params(labelbottom=False, labelleft=False)
    if known.any():
        add_colorbar(figure, axes, dots, "mean AP of the identity's queries (%)", theme)
    return to_png(figure)


def choose_colors(theme: Theme) -> Colormap:
    """Return the colors of dots; on dark paper without the darkest ones, which could not be seen there."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps[COLORMAP](np.linspace(0.3, 1, 256))) if theme == DARK else colormaps[COLORMAP]


def draw_differences(rows: Sequence[tuple[str, float, float, float]], theme: Theme = LIGHT) -> bytes:
    """Draw differences in mAP with their intervals, one below the other. rows: label, mean, low and high, as shares."""
    size = (5.6, 1.2 + 0.36 * len(rows))
    figure, axes = start_chart(theme, "Difference in mAP", ("points of mAP, with the 95% interval", ""), size)
    for place, (_, mean, low, high) in enumerate(rows):
        color = theme.soft if low <= 0 <= high else theme.lines[0] if mean > 0 else theme.lines[1]
        axes.plot([100 * low, 100 * high], [place, place], color=color, linewidth=2.4, solid_capstyle="butt")
        axes.plot(100 * mean, place, "o", color=color, markersize=7)
    axes.axvline(0, color=theme.ink, linewidth=1.0)
    axes.set_yticks(range(len(rows)), [shorten(label) for label, *_ in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    return to_png(figure)


def shorten(label: str) -> str:
    """Return a label of at most MAX_LABEL letters; the end of a path says more than its beginning."""
    return label if len(label) <= MAX_LABEL else "…" + label[1 - MAX_LABEL :]
