"""What people look at after an evaluation: pictures as files, and one page that holds them, the tables and the notes.

Takes plain figures (`Result.to_json()`), arrays and pixels, so it can report any system's results.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from reid.reports.analysis import CameraPairs, Embedding, RankList
from reid.reports.charts import draw_ap_histogram, draw_camera_pairs, draw_points
from reid.reports.figures import DARK, LIGHT, Theme, draw_cmc, draw_cmc_zoom, draw_rank_lists
from reid.reports.html import Chart, Section, build_page
from reid.reports.tables import RANKS, Results, percent

PICTURES = ("cmc", "cmc_zoom", "rank_lists", "ap_histogram", "cameras", "pca", "tsne")


@dataclass(frozen=True)
class Report:
    """results: model -> protocol -> figures; everything else is about the first model.

    facts: what was run, name -> value, in the order shown. notes: what a reader must know that is no fault; warnings:
    what was left out or may be wrong. no_lists: what to say in place of rank lists or their pictures. ap: the AP of
    each valid query of protocol `ap_of`. cameras, embedding: or the reason why there are none. ranks: those of the CMC
    that the tables show.
    """

    dataset: str
    results: Results
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    rank_lists: list[RankList] = field(default_factory=list)
    no_lists: str = ""
    ap: np.ndarray | None = None
    ap_of: str = "image"
    cameras: CameraPairs | str | None = None
    embedding: Embedding | str | None = None
    ranks: Sequence[int] = RANKS


def write_report(folder: Path, report: Report) -> Path:
    """Write report.html and a PNG per picture into `folder`; return the page's path.

    PNGs that an earlier report left there and this one has not are removed. ValueError on empty results or pictures
    that are not RGB.
    """
    _check(report)
    folder.mkdir(parents=True, exist_ok=True)
    sections = [_cmc(report), *_queries(report), *_cameras(report), *_embedding(report)]
    pictures = {chart.name: chart.light for section in sections for chart in section.charts}
    if any(ranked.image is not None for ranked in _entries(report)):
        pictures["rank_lists"] = draw_rank_lists(report.rank_lists)
    for name in PICTURES:
        path = folder / f"{name}.png"
        path.write_bytes(pictures[name]) if name in pictures else path.unlink(missing_ok=True)
    page = folder / "report.html"
    page.write_text(
        build_page(
            report.dataset, report.results, report.ranks, report.facts, report.notes, report.warnings,
            report.rank_lists, report.no_lists, sections,
        ),
        encoding="utf-8",
    )  # fmt: skip
    return page


def list_pictures(folder: Path) -> dict[str, Path]:
    """The PNGs of the report in `folder`, by name."""
    paths = {name: folder / f"{name}.png" for name in PICTURES}
    return {name: path for name, path in paths.items() if path.is_file()}


def _entries(report: Report) -> list:
    return [ranked for ranks in report.rank_lists for ranked in (ranks.query, *ranks.gallery)]


def _check(report: Report) -> None:
    if not report.results or not all(report.results.values()):
        raise ValueError(f"nothing to report: results are {report.results!r}; give at least one model and protocol")
    for ranked in _entries(report):
        image = ranked.image
        if image is not None and (image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3):
            raise ValueError(
                f"picture {ranked.caption!r} is {image.dtype} {image.shape}; give uint8 (height, width, 3)"
            )


def _chart(name: str, alt: str, said: str, draw: Callable[[Theme], bytes]) -> Chart:
    return Chart(name, alt, said, draw(LIGHT), draw(DARK))


def _cmc(report: Report) -> Section:
    model, protocols = next(iter(report.results.items()))
    figures = "; ".join(f"{name} {percent(f['cmc'][0])}% at rank 1" for name, f in protocols.items())
    alone = len(report.results) == 1
    charts = [
        _chart("cmc", f"CMC curves of every {'' if alone else 'model and '}protocol. {model}: {figures}", "",
               lambda theme: draw_cmc(report.results, report.dataset, theme)),
    ]  # fmt: skip
    if len(next(iter(protocols.values()))["cmc"]) > 1:
        charts.append(
            _chart("cmc_zoom", f"The same curves of {model} over the first ranks. {figures}", "",
                   lambda theme: draw_cmc_zoom(report.results, report.dataset, theme))
        )  # fmt: skip
    lead = "Share of queries with a match within the first ranks."
    return Section("CMC", lead if alone else f"{lead} Solid, and alone in the second picture: {model}.", charts)


def _queries(report: Report) -> list[Section]:
    ap = report.ap
    if ap is None or not len(ap):
        return []
    quarters = ", ".join(f"{percent(value)}%" for value in np.quantile(ap, (0.25, 0.5, 0.75)))
    alt = f"Histogram of the AP of {len(ap):,} queries; quartiles {quarters}"
    said = (
        f"Quartiles: {quarters}. {int((ap >= 1).sum()):,} of {len(ap):,} queries have all their matches first, "
        f"{int((ap < 0.1).sum()):,} have an AP below 10%."
    )
    chart = _chart("ap_histogram", alt, said, lambda theme: draw_ap_histogram(ap, "AP of the queries", theme))
    return [Section("Queries", f"How the mean over queries comes about, {report.ap_of} protocol.", [chart])]


def _cameras(report: Report) -> list[Section]:
    pairs = report.cameras
    if not isinstance(pairs, CameraPairs):
        return _absent("Cameras", pairs)
    known = pairs.mean_ap[~np.isnan(pairs.mean_ap)]
    alt = f"mAP for each camera of the query and of the gallery, {pairs.mean_ap.shape[0]} by {pairs.mean_ap.shape[1]}"
    said = "n/a: no query has a match there; images by the query's own camera are never searched."
    if len(known):
        low, high = (_cell(pairs, index) for index in (np.nanargmin(pairs.mean_ap), np.nanargmax(pairs.mean_ap)))
        said, alt = f"Lowest: {low}; highest: {high}. {said}", f"{alt}; lowest {low}, highest {high}"
    chart = _chart("cameras", alt, said, lambda theme: draw_camera_pairs(pairs, "mAP by camera", theme))
    return [Section("Cameras", "Image mAP of one camera's queries among another camera's images alone.", [chart])]


def _cell(pairs: CameraPairs, index: np.intp) -> str:
    i, j = np.unravel_index(index, pairs.mean_ap.shape)
    value, count = pairs.mean_ap[i, j], pairs.num_queries[i, j]
    return f"{pairs.query_cameras[i]} → {pairs.gallery_cameras[j]} with {percent(value)}% ({count:,} queries)"


def _embedding(report: Report) -> list[Section]:
    found = report.embedding
    if not isinstance(found, Embedding):
        return _absent("Centroids", found)
    shown = f"{len(found.pids):,} identities"
    shares = [f"{percent(share)}%" for share in found.explained]
    axes = (f"first axis ({shares[0]} of the variance)", f"second axis ({shares[1]})")
    charts = [
        _chart("pca", f"PCA of the centroids of {shown}, coloured by AP; {shares[0]} and {shares[1]} of the variance",
               "PCA: distances along the two axes of largest variance.",
               lambda theme: draw_points(found.pca, found.mean_ap, "PCA of centroids", axes, theme)),
    ]  # fmt: skip
    if found.tsne is not None:
        points = found.tsne
        charts.append(
            _chart("tsne", f"t-SNE of the centroids of {shown}, coloured by AP",
                   "t-SNE: neighbours stay neighbours; distances between groups and their sizes mean nothing.",
                   lambda theme: draw_points(points, found.mean_ap, "t-SNE of centroids", ("", ""), theme))
        )  # fmt: skip
    sample = f", a fixed random sample of {found.total:,}" if found.total > len(found.pids) else ""
    lead = f"A dot is one of {shown} of the gallery{sample}, at the normalised mean of its images' features. "
    lead += "Colour: AP of its queries; a cross: it has none. " + (f"{found.no_tsne}." if found.no_tsne else "")
    return [Section("Centroids", lead.strip(), charts)]


def _absent(title: str, reason: str | None) -> list[Section]:
    return [Section(title, "", [], reason)] if reason else []
