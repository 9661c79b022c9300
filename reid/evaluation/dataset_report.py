"""One dataset's evaluation as files: figures, per-query values, pictures and the page, in a folder of its own."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reid.config import Config
from reid.data.eval_loader import read_images
from reid.data.images import Pixels
from reid.data.manifest import Manifest
from reid.evaluation.comparison import NAME, PER_QUERY, About, describe, difference, load_about
from reid.evaluation.external_features import Foreign, read_pictures
from reid.metrics import retrieval
from reid.metrics.features import JUNK, UNKNOWN, Features
from reid.metrics.retrieval import Result
from reid.reports.analysis import CameraPairs, RankList, Read, choose_rank_lists, embed_centroids, measure_camera_pairs
from reid.reports.report import Report, write_report
from reid.reports.tables import RANKS


@dataclass(frozen=True)
class Evaluated:
    """One model on one dataset: its features, its results by protocol, and what went wrong with one of them."""

    query: Features
    gallery: Features
    results: dict[str, Result]
    warnings: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, dict[str, Any]]:
        return {protocol: result.to_json() for protocol, result in self.results.items()}


@dataclass(frozen=True)
class Domain:
    """Where the images come from. source: what gave the features; data_fingerprint: the shards', "" without shards.

    read: pictures for the rank lists, None where there are none; no_pictures says why, in a sentence.
    """

    dataset: str
    source: str
    data_fingerprint: str = ""
    read: Read | None = None
    no_pictures: str = ""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def choose_folder(base: Path, dataset: str, fingerprint: str, taken: Sequence[Path]) -> Path:
    """`base`/<dataset>; with the fingerprint's first digits behind it where that folder is of other data.

    taken: folders that this evaluation writes already.
    """
    name = re.sub(r"[^\w.-]+", "-", dataset).strip(".-") or "data"  # a manifest may come from anywhere
    folder = base / name
    there = read_about(folder)
    if folder in taken or (there and there.data_fingerprint != fingerprint):
        return base / f"{name}-{fingerprint[:8]}"
    return folder


def step_aside(folder: Path, about: About) -> Path:
    """`folder`; where it holds a report of other data, one beside it with the labels' first digits behind its name."""
    there = read_about(folder)
    if there and difference(there, about):
        whole = folder if folder.name else folder.resolve()
        return whole.with_name(f"{whole.name}-{about.labels_fingerprint[:8]}")
    return folder


def read_about(folder: Path) -> About | None:
    """What the report in `folder` is of; None where there is none or it is damaged: it is about to be written anew."""
    try:
        return load_about(folder) if (folder / NAME).is_file() else None
    except ValueError:
        return None


def write_domain(
    folder: Path,
    domain: Domain,
    rows: Mapping[str, Evaluated],
    facts: dict[str, str],
    ranks: Sequence[int] = RANKS,
    metric: str = "cosine",
) -> tuple[Path, list[str]]:
    """Everything that one dataset's evaluation leaves in `folder`. The first row is reported on.

    Returns the page and its warnings. What an earlier report left there and this one has not is removed.

    metrics.json has the first row's figures by protocol, baselines.json the others'.
    """
    first, *others = rows
    row = rows[first]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "metrics.json", row.figures())
    write_json(folder / "baselines.json", {name: rows[name].figures() for name in others})
    retrieval.save_results(folder / PER_QUERY, row.results)
    origin = describe(domain.dataset, domain.source, domain.data_fingerprint, row.query, row.gallery)
    origin.save(folder)
    shown = "image" if "image" in row.results else next(iter(row.results))
    result = row.results[shown]
    lists = _list_ranks(row, domain, metric)
    report = Report(
        domain.dataset,
        {name: evaluated.figures() for name, evaluated in rows.items()},
        {**facts, "images": f"{origin.num_queries:,} queries, {origin.num_gallery:,} gallery images"},
        domain.notes,
        [*row.warnings, *find_warnings(row), *domain.warnings, *_count_lost(lists, domain)],
        lists,
        domain.no_pictures if "image" in row.results else "Left out: they show the image protocol.",
        result.ap,
        shown,
        measure_camera_pairs(row.query, row.gallery, metric),
        embed_centroids(row.query, row.gallery, result.ap, result.valid),
        ranks,
    )
    (folder / "cameras.json").unlink(missing_ok=True)
    if isinstance(report.cameras, CameraPairs):
        write_json(folder / "cameras.json", report.cameras.to_json())
    return write_report(folder, report), report.warnings


def _list_ranks(row: Evaluated, domain: Domain, metric: str) -> list[RankList]:
    if "image" not in row.results:
        return []
    return choose_rank_lists(row.query, row.gallery, row.results["image"], domain.read or _no_images, metric)


def _no_images(split: str, rows: Sequence[int]) -> list[None]:
    return [None for _ in rows]


def _count_lost(lists: Sequence[RankList], domain: Domain) -> list[str]:
    entries = [entry for ranks in lists for entry in (ranks.query, *ranks.gallery)]
    lost = sum(entry.image is None for entry in entries)
    if domain.read is None or not lost:
        return []
    return [f"{lost} of {len(entries)} pictures of the rank lists are absent or cannot be read"]


def find_warnings(row: Evaluated) -> list[str]:
    """What a reader of the figures must know about the labels, counted."""
    warnings = []
    for protocol, result in row.results.items():
        left_out = len(result.valid) - result.num_valid_queries
        if left_out:
            warnings.append(f"{protocol}: {left_out} of {len(result.valid)} queries have no possible match; left out")
    missing = retrieval.missing_identities(row.query, row.gallery)
    if missing:
        warnings.append(f"{missing} identities of the queries have no image in the gallery")
    for name, split in (("query", row.query), ("gallery", row.gallery)):
        unknown = int((split.camids == UNKNOWN).sum())
        if unknown:
            which = "no" if unknown == len(split) else f"{unknown:,} of {len(split):,}"
            has = "image has" if unknown == len(split) else "images have no"
            warnings.append(f"{name}: {which} {has} a camera id; no same-camera rule was applied to them")
    return warnings


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


MAX_PIXELS = 50_000_000  # of a picture in a rank list; a guard against decompression bombs

SHOWN_HEIGHT = 128  # people look at more pixels than a small encoder does


def name_image(manifest: Manifest, split: str, row: int) -> str:
    """Where the image of a row of the features (junk left out) lies, for a person who looks for it."""
    part = manifest.split(split)
    place = int(kept_places(manifest, split)[row])
    identity = int(np.searchsorted(np.cumsum(part.images), place, side="right"))
    nth = place - int(part.images[:identity].sum()) + 1
    return (
        f"image {nth} of identity {part.names[identity]} (pid {part.pids[identity]}, row {row}) in "
        f"{part.shards[part.shard[identity]].name}"
    )


def kept_places(manifest: Manifest, split: str) -> np.ndarray:
    """(N,) places in storage order of the images that have features: all but junk."""
    part = manifest.split(split)
    return np.flatnonzero(np.repeat(part.pids != JUNK, part.images))


def domain_of_run(found: Path, root: str, manifest: Manifest, config: Config, trained_on: str) -> Domain:
    pixels = Pixels.from_config(config.data, scale=max(1, round(SHOWN_HEIGHT / config.data.height)))

    def read(split: str, rows: Sequence[int]) -> list[np.ndarray]:
        return read_images(root, manifest, split, kept_places(manifest, split)[list(rows)].tolist(), pixels)

    notes, warnings = [], []
    if trained_on and trained_on != manifest.fingerprint:
        notes.append(
            f"Across domains: the checkpoint was trained on other data (fingerprint {trained_on[:12]}) than it is "
            f"evaluated on ({manifest.fingerprint[:12]})."
        )
    if manifest.skipped:
        warnings.append(f"{len(manifest.skipped)} broken images were left out when the shards were built")
    return Domain(manifest.dataset, str(found), manifest.fingerprint, read, "", notes, warnings)


def domain_of_features(dataset: str, query: Foreign, gallery: Foreign, images: str) -> Domain:
    splits = {"query": query, "gallery": gallery}

    def read(split: str, rows: Sequence[int]) -> list[np.ndarray | None]:
        folder = Path(images) if images else splits[split].source.parent
        return read_pictures(splits[split], rows, folder, MAX_PIXELS)

    named = query.paths is not None and gallery.paths is not None
    no_pictures = "" if named else "As text: the feature files name no images: they have no paths."
    notes = []
    if not (query.knows_cameras and gallery.knows_cameras):
        notes.append(
            "No camera ids: images of the query's identity by its own camera are not removed. Figures are then higher "
            "than published ones, which remove them."
        )
    warnings = []
    if gallery.features.distractors is None and bool((gallery.features.pids == 0).any()):
        number = int((gallery.features.pids == 0).sum())
        warnings.append(
            f"{number:,} gallery images have pid 0 and the file has no distractors key: they count as one identity"
        )
    source = f"{query.source}, {gallery.source}"
    return Domain(dataset, source, "", read if named else None, no_pictures, notes, warnings)
