"""Reports without their pictures, for tests of everything else that an evaluation does: drawing takes most of its time.

What the pictures show is tested in tests/reports/test_report.py.
"""

import base64

import pytest

from reid.reports import report

CHARTS = ("draw_cmc", "draw_cmc_zoom", "draw_ap_histogram", "draw_scores", "draw_camera_pairs", "draw_points",
          "draw_panel", "draw_curves")  # fmt: skip
DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)  # a PNG of one pixel


def without_pictures() -> None:
    """`leave_out_pictures` for a process of its own: `Program(..., prepare=without_pictures)`."""
    leave_out_pictures(pytest.MonkeyPatch())


def leave_out_charts(patch: pytest.MonkeyPatch) -> None:
    """Put a dot in place of every chart of the reports that are written from now on; rank lists are drawn."""
    for name in CHARTS:
        patch.setattr(report, name, lambda *_: DOT)


def leave_out_pictures(patch: pytest.MonkeyPatch) -> None:
    """Put a dot in place of every chart and of the rank lists; the page still holds the rank lists' images."""
    leave_out_charts(patch)
    patch.setattr(report, "draw_rank_lists", lambda *_: DOT)
