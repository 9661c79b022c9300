"""One dataset's evaluation as files in a folder: metrics, values per query, figures and the page."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reid.config import DataConfig, EvaluateConfig
from reid.data.normalization import describe_pixels
from reid.evaluation.external_features import write_features
from reid.files import write_atomically
from reid.metrics import retrieval
from reid.metrics.features import JUNK, UNKNOWN, Features
from reid.metrics.retrieval import Result
from reid.reports.analysis import CameraPairs, Read, choose_rank_lists, embed_centroids, measure_camera_pairs
from reid.reports.report import Report, write_report

METRICS, BASELINES, ABOUT, CAMERAS = "metrics.json", "baselines.json", "about.json", "cameras.json"
THRESHOLDS = "thresholds.json"
PER_QUERY, FEATURES = "per_query.npz", ("query.npz", "gallery.npz")
# Split and rows of its features -> their images (H, W, 3) uint8, or None, and names of files, or "".
ReadNamed = Callable[[str, Sequence[int]], Sequence[tuple[np.ndarray | None, str]]]
DISTRACTOR = -2  # stands for any pid of a distractor in fingerprints


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


@dataclass(frozen=True)
class About:
    """What a report is about, as about.json holds it. Junk is left out of the labels and the numbers.

    source: the checkpoint or the feature files.
    data_fingerprint: of the shards' manifest, "" for feature files.
    labels_fingerprint: of pids and camids in their order, which identifies the images of another system's features.
    num_queries, num_gallery: images.
    pixels: how pictures became the encoder's input (`describe_pixels`); empty for feature files. Reports of earlier
        versions do not say it: ImageNet's mean and std, bilinear.
    flip: whether features are means of those of an image and of its mirror image.
    """

    dataset: str
    source: str
    data_fingerprint: str
    labels_fingerprint: str
    num_queries: int
    num_gallery: int
    pixels: dict[str, Any] = field(default_factory=dict)
    flip: bool = False


def describe(
    dataset: str,
    source: str,
    data_fingerprint: str,
    query: Features,
    gallery: Features,
    pixels: Mapping[str, Any] | None = None,
    flip: bool = False,
) -> About:
    digest, sizes = hashlib.sha256(), []
    for split in (query, gallery):
        kept = split.pids != JUNK
        pids = split.pids.masked_fill(split.is_distractor(), DISTRACTOR)
        digest.update(torch.stack([pids[kept], split.camids[kept]]).cpu().numpy().astype("<i8").tobytes())
        sizes.append(int(kept.sum()))
    digest.update(f"{sizes}".encode())
    return About(dataset, source, data_fingerprint, digest.hexdigest(), sizes[0], sizes[1], dict(pixels or {}), flip)


def load_about(folder: Path) -> About:
    """Read about.json. Raises ValueError if it is damaged."""
    path = folder / ABOUT
    try:
        document = {"pixels": {}, "flip": False, **json.loads(path.read_text(encoding="utf-8"))}
        about = About(**{f.name: document[f.name] for f in fields(About)})
        for f in fields(About):
            if type(getattr(about, f.name)).__name__ != str(f.type).split("[")[0]:
                raise TypeError(f"{f.name} is no {f.type}")
        if about.data_fingerprint and not about.pixels:
            return replace(about, pixels=describe_pixels(DataConfig()))
        return about
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); evaluate again to write it") from error


def difference(one: About, other: About) -> str:
    """Say what shows that two reports are about different data; return "" if they are about the same."""
    if (one.num_queries, one.num_gallery) != (other.num_queries, other.num_gallery):
        return (
            f"{one.num_queries} queries and {one.num_gallery} gallery images against {other.num_queries} and "
            f"{other.num_gallery}"
        )
    for name in ("data_fingerprint", "labels_fingerprint"):
        ours, theirs = getattr(one, name), getattr(other, name)
        if ours and theirs and ours != theirs:
            return f"{name.replace('_', ' ')} {ours[:12]} against {theirs[:12]}"
    return ""


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2) + "\n")


@dataclass
class DatasetReport:
    """A report on one dataset, without its metrics.

    out: the folder of the report if `dataset` is "", which is then its name; otherwise the folder of all reports.
    source: the checkpoint or the feature files.
    facts: what was evaluated and how, name -> value, in the order shown.
    read_images: reads images for the rank lists.
    read_named: reads images and the names of their files.
    data_fingerprint: of the shards' manifest, "" for feature files.
    pixels: how pictures became the encoder's input; empty for feature files.
    flip: whether features are means of those of an image and of its mirror image.
    model: sha256 of the checkpoint's weights, for which thresholds hold; "" for feature files.
    no_images: a sentence that says why there are none, or "".
    notes: what a reader must know that is no fault.
    warnings: what may be wrong with the data.
    """

    out: Path
    dataset: str
    source: str
    facts: dict[str, str]
    read_images: Read
    read_named: ReadNamed
    data_fingerprint: str = ""
    pixels: dict[str, Any] = field(default_factory=dict)
    flip: bool = False
    model: str = ""
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
        query, gallery = evaluation.query, evaluation.gallery
        about = describe(self.dataset, self.source, self.data_fingerprint, query, gallery, self.pixels, self.flip)
        folder = self._choose_folder(about, taken)
        replaces = _read_about(folder) is not None
        folder.mkdir(parents=True, exist_ok=True)
        about = replace(about, dataset=self.dataset or folder.name)
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
            made = {"source": self.source, "model": self.model, "flip": self.flip, "dim": query.embeddings.shape[1]}
            write_json(folder / THRESHOLDS, made | evaluation.thresholds)
        report = self._make_report(about, evaluations, options)
        (folder / CAMERAS).unlink(missing_ok=True)
        if isinstance(report.cameras, CameraPairs):
            write_json(folder / CAMERAS, report.cameras.to_json())
        return write_report(folder, report), report.warnings

    def _choose_folder(self, about: About, taken: Collection[Path]) -> Path:
        """Return the report's folder, or one with a fingerprint in its name if the folder holds another report.

        Another report is one on other data, or one on feature files if this one is on a run, and the reverse.
        """
        name = re.sub(r"[^\w.-]+", "-", self.dataset).strip(".-") or "data"  # a manifest may come from anywhere
        folder = self.out / name if self.dataset else self.out
        earlier = _read_about(folder)
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
        rank_lists, no_lists = [], "Left out: they show the image protocol."
        if protocol == "image":
            rank_lists = choose_rank_lists(query, gallery, result, self.read_images, options.metric)
            no_lists = self.no_images
        warnings = list(dict.fromkeys([*first.warnings, *find_warnings(first), *self.warnings]))  # after reading images
        images = [entry.image for ranks in rank_lists for entry in ranks.entries]
        lost = sum(image is None for image in images)
        if lost and not self.no_images:
            warnings.append(f"{lost} of {len(images)} pictures of the rank lists are absent or cannot be read")
        return Report(
            about.dataset,
            {name: evaluation.to_json() for name, evaluation in evaluations.items()},
            {**self.facts, "images": f"{about.num_queries:,} queries, {about.num_gallery:,} gallery images"},
            self.notes,
            warnings,
            rank_lists,
            no_lists,
            result.ap,
            protocol,
            measure_camera_pairs(query, gallery, options.metric),
            embed_centroids(query, gallery, result.ap, result.valid),
            options.ranks,
            first.thresholds,
        )


def _read_about(folder: Path) -> About | None:
    """Read about.json, or return None if there is none or it is damaged: the report is then replaced."""
    with suppress(FileNotFoundError, NotADirectoryError, ValueError):
        return load_about(folder)
    return None


def find_warnings(evaluation: Evaluation) -> list[str]:
    """List what a reader of the metrics must know about the labels, with numbers."""
    warnings = []
    for protocol, result in evaluation.results.items():
        if left_out := len(result.valid) - result.num_valid_queries:
            warnings.append(f"{protocol}: {left_out} of {len(result.valid)} queries have no possible match; left out")
    if missing := retrieval.missing_identities(evaluation.query, evaluation.gallery):
        warnings.append(f"{missing} identities of the queries have no image in the gallery")
    for name, split in (("query", evaluation.query), ("gallery", evaluation.gallery)):
        if unknown := int((split.camids == UNKNOWN).sum()):
            have = "no image has a" if unknown == len(split) else f"{unknown:,} of {len(split):,} images have no"
            warnings.append(f"{name}: {have} camera id; no same-camera rule was applied to them")
    return warnings
