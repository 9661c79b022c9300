"""Training curves as PNG: panels of lines over epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reid.reports.style import DPI, LIGHT, Theme, add_legend, start_chart, style_axes, style_legend, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW_POINTS = 40  # lines of fewer points have dots


@dataclass(frozen=True)
class Panel:
    """One chart of a training.

    title: what it shows, with the unit.
    lines: name -> (x, y), each (N,).
    x_label, x_end: what x is, and where its axis ends.
    log: whether y has a logarithmic axis.
    """

    title: str
    lines: dict[str, tuple[np.ndarray, np.ndarray]]
    x_label: str = "epoch"
    x_end: float = 1.0
    log: bool = False


@dataclass(frozen=True)
class TrainingCurves:
    """The panels of a training, and a note on what is missing or "". Without panels the note says why."""

    panels: list[Panel]
    note: str = ""


def draw_panel(panel: Panel, theme: Theme = LIGHT) -> bytes:
    figure, axes = start_chart(theme, panel.title, (panel.x_label, ""))
    _fill(axes, panel, theme)
    if len(panel.lines) > 1:
        add_legend(figure, theme)
    return to_png(figure)


def draw_curves(panels: Sequence[Panel], theme: Theme = LIGHT) -> bytes:
    """Draw all panels in one picture, two in a row."""
    from matplotlib.figure import Figure

    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(11.2, 3.6 * rows), dpi=DPI, facecolor=theme.paper, layout="constrained")
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, 2, place)
        style_axes(axes, theme, panel.title, (panel.x_label, ""))
        _fill(axes, panel, theme)
        if len(panel.lines) > 1:
            style_legend(axes.legend(frameon=False, fontsize=9), theme)
    return to_png(figure)


def _fill(axes: Axes, panel: Panel, theme: Theme) -> None:
    for i, (name, (x, y)) in enumerate(panel.lines.items()):
        axes.plot(x, y, ("-", "--")[i // len(theme.lines) % 2], color=theme.lines[i % len(theme.lines)], label=name,
                  linewidth=1.6, marker="o" if len(x) < FEW_POINTS else None, markersize=3.5,
                  zorder=3 - 0.01 * i)  # fmt: skip
    axes.set_xlim(0, 1.02 * panel.x_end)
    known = np.concatenate([y[np.isfinite(y)] for _, y in panel.lines.values()])
    if panel.log:
        axes.set_yscale("log")
    elif len(known) and known.min() >= 0:
        axes.set_ylim(0, 1.06 * known.max() or 1)
