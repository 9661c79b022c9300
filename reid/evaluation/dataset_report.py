"""One dataset's evaluation as files in a folder: metrics, values per query, figures and the page."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from reid.config import EvaluateConfig
from reid.data.joined import plain_name
from reid.evaluation.about import ABOUT, About, difference, find_about, write_json
from reid.evaluation.external_features import write_features
from reid.metrics import retrieval
from reid.metrics.features import UNKNOWN, Features
from reid.metrics.retrieval import Result
from reid.reports.analysis import CameraPairs, embed_centroids, measure_camera_pairs, measure_scores
from reid.reports.curves import TrainingCurves
from reid.reports.hard_examples import choose_hard_queries, find_confusions
from reid.reports.rank_lists import ReadNamed, choose_rank_lists, load_images
from reid.reports.report import Report, write_report

METRICS, BASELINES, CAMERAS, THRESHOLDS = "metrics.json", "baselines.json", "cameras.json", "thresholds.json"
HARD_QUERIES, CONFUSIONS = "hard_queries.json", "confused_identities.json"
PER_QUERY, FEATURES = "per_query.npz", ("query.npz", "gallery.npz")
NO_CAMERAS = (
    "No camera ids: images of the query's identity by its own camera are not removed. Metrics are then higher than "
    "published ones, which remove them."
)


@dataclass(frozen=True)
class Evaluation:
    """One model on one dataset: its features, its results by protocol, and warnings about protocols left out.

    thresholds: of `verification` and `open_set`, if they were asked for (reid/evaluation/verification.py).
    """

    query: Features
    gallery: Features
    results: dict[str, Result]
    warnings: list[str] = field(default_factory=list)
    thresholds: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, dict[str, Any]]:
        return {protocol: result.to_json() for protocol, result in self.results.items()}


@dataclass
class DatasetReport:
    """A report on one dataset, without its metrics.

    out: the folder of the report if `about.dataset` is "", which is then its name; otherwise the folder of all reports.
    facts: what was evaluated and how, name -> value, in the order shown.
    read_named: reads the images that the page shows, and the names of their files.
    model: sha256 of the checkpoint's weights, for which thresholds hold; "" for feature files.
    curves: of the training, if there was one.
    no_images: a sentence that says why there are none, or "".
    notes: what affects the metrics and is no fault of the data.
    warnings: what may be wrong with the data.
    """

    out: Path
    about: About
    facts: dict[str, str]
    read_named: ReadNamed
    model: str = ""
    curves: TrainingCurves | None = None
    no_images: str = ""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def write(
        self, evaluations: Mapping[str, Evaluation], options: EvaluateConfig, taken: Collection[Path] = ()
    ) -> tuple[Path, list[str]]:
        """Write all files of the report. Files of an earlier report that this one does not have are removed.

        Args:
            evaluations: by the model's name. The report is about the first; baselines.json has the others'.
            options: of the evaluation.
            taken: folders that this evaluation has already written.

        Returns:
            The page and the warnings in it.
        """
        (_, evaluation), *others = evaluations.items()
        folder = self._choose_folder(taken)
        replaces = find_about(folder) is not None
        folder.mkdir(parents=True, exist_ok=True)
        about = replace(self.about, dataset=self.about.dataset or folder.name)
        write_json(folder / METRICS, evaluation.to_json())
        (folder / BASELINES).unlink(missing_ok=True)
        if others:
            write_json(folder / BASELINES, {name: other.to_json() for name, other in others})
        retrieval.save_results(folder / PER_QUERY, evaluation.results)
        write_json(folder / ABOUT, asdict(about))
        for name, features in zip(FEATURES, (evaluation.query, evaluation.gallery), strict=True):
            if options.save_features:
                write_features(folder / name, features)
            elif replaces and not options.features:  # with --features they may be the user's own files
                (folder / name).unlink(missing_ok=True)
        (folder / THRESHOLDS).unlink(missing_ok=True)
        if evaluation.thresholds:
            dim = evaluation.query.embeddings.shape[1]
            made = {"source": about.source, "model": self.model, "flip": about.flip, "dim": dim}
            write_json(folder / THRESHOLDS, made | evaluation.thresholds)
        report = self._make_report(about, evaluations, options)
        for name in (CAMERAS, HARD_QUERIES, CONFUSIONS):
            (folder / name).unlink(missing_ok=True)
        if isinstance(report.cameras, CameraPairs):
            write_json(folder / CAMERAS, report.cameras.to_json())
        if report.confusions is not None:
            write_json(folder / HARD_QUERIES, [each.to_json() for each in report.hard_queries])
            write_json(folder / CONFUSIONS, [each.to_json() for each in report.confusions])
        return write_report(folder, report), report.warnings

    def _choose_folder(self, taken: Collection[Path]) -> Path:
        """Return the report's folder, or one with a fingerprint in its name if the folder holds another report.

        Another report is one on other data, or one on feature files if this one is on a run, and the reverse.
        """
        about = self.about
        folder = self.out / plain_name(about.dataset) if about.dataset else self.out
        earlier = find_about(folder)
        other = earlier and (earlier.data_fingerprint != about.data_fingerprint or difference(earlier, about))
        if other or folder in taken:
            folder = folder if folder.name else folder.resolve()
            return folder.with_name(f"{folder.name}-{(about.data_fingerprint or about.labels_fingerprint)[:8]}")
        return folder

    def _make_report(self, about: About, evaluations: Mapping[str, Evaluation], options: EvaluateConfig) -> Report:
        first = next(iter(evaluations.values()))
        query, gallery = first.query, first.gallery
        protocol = "image" if "image" in first.results else next(iter(first.results))
        result = first.results[protocol]
        report = Report(
            about.dataset,
            {name: evaluation.to_json() for name, evaluation in evaluations.items()},
            {**self.facts, "images": f"{about.num_queries:,} queries, {about.num_gallery:,} gallery images"},
            [*self.notes, *find_notes(first)],
            rank_lists_note="Left out: they show the image protocol.",
            curves=self.curves,
            scores=measure_scores(query, gallery),
            ap=result.ap,
            ap_protocol=protocol,
            cameras=measure_camera_pairs(query, gallery, options.metric),
            embedding=embed_centroids(query, gallery, result.ap, result.valid),
            ranks=options.ranks,
            thresholds=first.thresholds,
        )
        if protocol == "image":
            report = self._add_examples(report, first, options.metric)
        found = [*first.warnings, *find_warnings(first), *self.warnings, *report.warnings]  # after reading images
        return replace(report, warnings=list(dict.fromkeys(found)))

    def _add_examples(self, report: Report, evaluation: Evaluation, metric: str) -> Report:
        """Add what the image protocol finds, with pictures: rank lists, hard queries and confused identities."""
        found = evaluation.query, evaluation.gallery, evaluation.results["image"], metric
        report = replace(
            report,
            rank_lists=choose_rank_lists(*found),
            rank_lists_note=self.no_images,
            hard_queries=choose_hard_queries(*found),
            confusions=find_confusions(*found),
        )
        load_images(report.entries, self.read_named)
        lost = sum(entry.image is None for entry in report.entries)
        if lost and not self.no_images:
            text = f"{lost} of {len(report.entries)} pictures of this page are absent or cannot be read"
            return replace(report, warnings=[text])
        return report


def find_notes(evaluation: Evaluation) -> list[str]:
    """List what affects the metrics and is no fault of the data."""
    notes = []
    if all((split.camids == UNKNOWN).all() for split in (evaluation.query, evaluation.gallery)):
        notes.append(NO_CAMERAS)
    if number := _left_out_by_ctl(evaluation):
        notes.append(f"ctl_published: {number} queries more than under the other protocols cannot match, as in the CTL "
                     "authors' code; they are left out.")  # fmt: skip
    return notes


def _left_out_by_ctl(evaluation: Evaluation) -> int:
    """Return how many queries only `ctl_published` leaves out; 0 if no other protocol was evaluated."""
    left_out = {protocol: _count_left_out(result) for protocol, result in evaluation.results.items()}
    others = [number for protocol, number in left_out.items() if protocol != "ctl_published"]
    return max(0, left_out.get("ctl_published", 0) - max(others)) if others else 0


def _count_left_out(result: Result) -> int:
    return len(result.valid) - result.num_valid_queries


def find_warnings(evaluation: Evaluation) -> list[str]:
    """List what may be wrong with the labels, with numbers."""
    warnings = []
    by_number: dict[int, list[str]] = {}
    for protocol, result in evaluation.results.items():
        if protocol != "ctl_published" or len(evaluation.results) == 1:
            by_number.setdefault(_count_left_out(result), []).append(protocol)
    total = len(evaluation.query)
    for number, protocols in by_number.items():
        if number:
            names = ", ".join(protocols)
            warnings.append(f"{names}: {number} of {total} queries have no possible match; left out")
    if missing := retrieval.missing_identities(evaluation.query, evaluation.gallery):
        warnings.append(f"{missing} identities of the queries have no image in the gallery")
    splits = {"query": evaluation.query, "gallery": evaluation.gallery}
    unknown = {name: int((split.camids == UNKNOWN).sum()) for name, split in splits.items()}
    for name, number in unknown.items() if NO_CAMERAS not in find_notes(evaluation) else ():
        if number:
            size = len(splits[name])
            have = "no image has a" if number == size else f"{number:,} of {size:,} images have no"
            warnings.append(f"{name}: {have} camera id; no same-camera rule was applied to them")
    return warnings
