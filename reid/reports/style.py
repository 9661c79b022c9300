"""The look that all charts share: colors, axes and how a figure becomes a PNG. Imports no torch.

Uses Figure objects, never pyplot: no global state, no display. Text from outside is never parsed as a formula.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

GREEN, RED, GREY = "#1a9850", "#d73027", "#9aa3b0"  # right, wrong, and neither
DPI = 180
COLORMAP = "viridis"  # equal steps look equal, also in grey and to color-blind readers


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

    figure = Figure(figsize=size, dpi=DPI, facecolor=theme.paper, layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes, theme, title, labels)
    return figure, axes


def style_axes(axes: Axes, theme: Theme, title: str, labels: tuple[str, str]) -> None:
    """Give axes a title, `labels` for x and y, a faint grid and no frame."""
    axes.set_facecolor(theme.paper)
    axes.set_title(title, color=theme.ink, fontsize=12, fontweight="bold", loc="left", parse_math=False)
    axes.set_xlabel(labels[0], color=theme.ink, fontsize=11)
    axes.set_ylabel(labels[1], color=theme.ink, fontsize=11)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, length=0, labelsize=10)
    axes.spines[:].set_color(theme.grid)
    axes.spines[["top", "right"]].set_visible(False)


def add_legend(figure: Figure, theme: Theme, columns: int = 2) -> None:
    """Put the labels of what a figure's axes hold below them, in reading size."""
    style_legend(figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=10), theme)


def style_legend(legend: Legend, theme: Theme) -> None:
    """Give the texts of a legend their color, and show them as they are: `$` begins no formula."""
    for text in legend.get_texts():
        text.set_color(theme.ink)
        text.set_parse_math(False)


def add_colorbar(figure: Figure, axes: Axes, drawn: ScalarMappable, label: str, theme: Theme) -> Colorbar:
    """Add the legend of the colors of `drawn`, with a label along it."""
    bar = figure.colorbar(drawn, ax=axes, shrink=0.85)
    bar.set_label(label, color=theme.ink, fontsize=10)
    bar.ax.tick_params(colors=theme.ink, length=0, labelsize=9)
    bar.outline.set_visible(False)
    return bar


def to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    return buffer.getvalue()


def draw_both(draw: Callable[[Theme], bytes]) -> dict[str, bytes]:
    """Return the PNGs of a chart for light and dark pages."""
    return {"light": draw(LIGHT), "dark": draw(DARK)}
