"""The report of an evaluation: a page with tables, charts and rank lists, and each chart as a PNG next to it.

Takes `Result.to_json()`, arrays and pixels, so it can report the results of any system.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reid.reports import tables
from reid.reports.analysis import CameraPairs, Embedding, ScoreHistogram
from reid.reports.charts import draw_ap_histogram, draw_camera_pairs, draw_points, draw_roc, draw_scores
from reid.reports.curves import TrainingCurves, draw_curves, draw_panel
from reid.reports.figures import ZOOM_RANKS, draw_cmc, draw_cmc_zoom, draw_rank_lists
from reid.reports.hard_examples import CONFUSED_PAIRS, DEPTH, Confusion, HardQuery
from reid.reports.html import render
from reid.reports.rank_lists import RankedImage, RankList
from reid.reports.style import Theme, draw_both
from reid.reports.tables import RANKS, Results, percent

PICTURES = ("curves", "cmc", "cmc_zoom", "rank_lists", "ap_histogram", "scores", "cameras", "roc", "pca", "tsne")


@dataclass(frozen=True)
class Report:
    """What a report shows. Everything but `results` is about the first model.

    dataset: its name.
    results: model -> protocol -> `Result.to_json()`.
    facts: what was evaluated and how, name -> value, in the order shown.
    notes: what affects the metrics and is no fault of the data.
    warnings: what was left out or may be wrong.
    rank_lists: the lists to show.
    rank_lists_note: why there are no rank lists or no images in them, as a sentence, or "".
    hard_queries: those of lowest AP under the image protocol.
    confusions: identities that are taken for each other, the most frequent first; None if that was not counted.
    curves: of the training, if there was one.
    scores: cosines of pairs, or the reason why there are none.
    ap: (V,) the AP of each valid query under the protocol `ap_protocol`.
    cameras: mAP by pair of cameras, or the reason why there is none.
    embedding: centroids in two dimensions, or the reason why there are none.
    ranks: the ranks of the CMC that the tables show.
    thresholds: of verification and open_set (thresholds.json), if they were measured.
    """

    dataset: str
    results: Results
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    rank_lists: list[RankList] = field(default_factory=list)
    rank_lists_note: str = ""
    hard_queries: list[HardQuery] = field(default_factory=list)
    confusions: list[Confusion] | None = None
    curves: TrainingCurves | None = None
    scores: ScoreHistogram | str | None = None
    ap: np.ndarray | None = None
    ap_protocol: str = "image"
    cameras: CameraPairs | str | None = None
    embedding: Embedding | str | None = None
    ranks: Sequence[int] = RANKS
    thresholds: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.results or not all(self.results.values()):
            raise ValueError(f"nothing to report: results are {self.results!r}; give at least one model and protocol")
        for entry in self.entries:
            image = entry.image
            if image is not None and (image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3):
                raise ValueError(
                    f"image {entry.caption!r} is {image.dtype} {image.shape}; give uint8 (height, width, 3)"
                )

    @property
    def entries(self) -> list[RankedImage]:
        """Every query and gallery image that is shown."""
        shown = (self.rank_lists, self.hard_queries, self.confusions or [])
        return [entry for parts in shown for part in parts for entry in part.entries]

    @property
    def ap_quartiles(self) -> list[float]:
        return [] if self.ap is None else np.quantile(self.ap, (0.25, 0.5, 0.75)).tolist()


def write_report(folder: Path, report: Report) -> Path:
    """Write report.html and a PNG per picture into `folder`, and return the page's path.

    A picture of an earlier report in the folder that this report does not have is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    charts = {name: draw_both(draw) for name, draw in list_charts(report).items()}
    pictures = {name: chart["light"] for name, chart in charts.items()}
    panels = report.curves.panels if report.curves else []
    if panels:
        pictures["curves"] = draw_curves(panels)
    if any(ranks.has_images for ranks in report.rank_lists):
        pictures["rank_lists"] = draw_rank_lists(report.rank_lists)
    for name in PICTURES:
        path = folder / f"{name}.png"
        path.write_bytes(pictures[name]) if name in pictures else path.unlink(missing_ok=True)
    page = folder / "report.html"
    limits = {"depth": DEPTH, "pairs": CONFUSED_PAIRS}
    content = render(
        "report.html", report=report, charts=charts, tables=tables, limits=limits,
        panels=[(panel.title, draw_both(partial(draw_panel, panel))) for panel in panels],
    )  # fmt: skip
    page.write_text(content, encoding="utf-8", errors="replace")  # names of files need not be UTF-8
    return page


def list_charts(report: Report) -> dict[str, Callable[[Theme], bytes]]:
    """Return the charts that the report has data for, by name; each is a function that draws a PNG."""
    charts: dict[str, Callable[[Theme], bytes]] = {"cmc": partial(draw_cmc, report.results, report.dataset)}
    lengths = [len(metrics["cmc"]) for metrics in next(iter(report.results.values())).values()]
    if max(lengths) > (1 if len(report.results) > 1 else ZOOM_RANKS):  # otherwise it would show the same
        charts["cmc_zoom"] = partial(draw_cmc_zoom, report.results, report.dataset)
    if report.ap is not None and len(report.ap):
        charts["ap_histogram"] = partial(draw_ap_histogram, report.ap)
    if isinstance(report.scores, ScoreHistogram):
        charts["scores"] = partial(draw_scores, report.scores)
    if isinstance(report.cameras, CameraPairs):
        charts["cameras"] = partial(draw_camera_pairs, report.cameras)
    if "verification" in report.thresholds:
        charts["roc"] = partial(draw_roc, report.thresholds["verification"])
    if isinstance(report.embedding, Embedding):
        embedding = report.embedding
        first, second = (percent(share) for share in embedding.explained)
        labels = (f"first axis ({first}% of the variance)", f"second axis ({second}%)")
        charts["pca"] = partial(draw_points, embedding.pca, embedding.mean_ap, "PCA of centroids", labels)
        if embedding.tsne is not None:
            charts["tsne"] = partial(draw_points, embedding.tsne, embedding.mean_ap, "t-SNE of centroids", ("", ""))
    return charts


def list_pictures(folder: Path) -> dict[str, Path]:
    """Return the PNGs of the report in `folder`, by name."""
    paths = {name: folder / f"{name}.png" for name in PICTURES}
    return {name: path for name, path in paths.items() if path.is_file()}
