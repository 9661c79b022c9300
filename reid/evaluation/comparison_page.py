"""The page of a comparison: differences with their intervals, and queries that one model finds and another does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reid.data.eval_loader import kept_places, read_named_images
from reid.data.image_file import open_rgb
from reid.data.manifest import load_manifest
from reid.data.storage import is_remote
from reid.evaluation.about import load_about, write_json
from reid.evaluation.comparison import COLUMNS, Comparison, Row, format_comparison, list_cells, list_notes
from reid.evaluation.dataset_report import PER_QUERY
from reid.evaluation.external_features import SHOWN_PX
from reid.files import write_atomically
from reid.metrics.retrieval import Result, load_results
from reid.reports.charts import draw_differences
from reid.reports.html import render
from reid.reports.rank_lists import RankedImage, ReadNamed, load_images
from reid.reports.style import draw_both
from reid.reports.tables import format_now

SHOWN = 12  # queries of each kind


@dataclass(frozen=True)
class ChangedQuery:
    """A query that is right at rank 1 in one of two reports. ranks: of the first match; aps: both (first, other)."""

    query: RankedImage
    ranks: tuple[int, int]
    aps: tuple[float, float]

    @property
    def kind(self) -> str:
        return "right" if self.ranks[1] == 1 else "wrong"


@dataclass(frozen=True)
class ChangedQueries:
    """The queries of one report that are right at rank 1 only there, or only in the first report.

    won, lost: their numbers.
    shown: by `won` and `lost`, at most SHOWN of each, by the change of AP.
    """

    place: str
    protocol: str
    won: int
    lost: int
    shown: dict[str, list[ChangedQuery]]


class _ThumbnailDecoder:
    """Decodes an image at its own aspect, at most SHOWN_PX long."""

    def decode(self, data: memoryview, name: str) -> Tensor:
        """Return an image (3, H, W) uint8."""
        image = open_rgb(data)
        image.thumbnail((SHOWN_PX, SHOWN_PX))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def write_comparison(folder: Path, compared: Comparison) -> Path:
    """Write comparison.json, comparison.txt and comparison.html, and return the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {data: {p: [asdict(row) for row in rows] for p, rows in table.items()} for data, table in compared.items()}
    write_json(folder / "comparison.json", plain)
    write_atomically(folder / "comparison.txt", format_comparison(compared) + "\n")
    first, *others = next(iter(next(iter(compared.values())).values()))
    page = folder / "comparison.html"
    content = render(
        "comparison.html", sections=[_make_section(dataset, table) for dataset, table in compared.items()],
        first=first, others=others, columns=COLUMNS, notes=list_notes(compared),
        made=format_now(),
    )  # fmt: skip
    page.write_text(content, encoding="utf-8", errors="replace")  # names of files need not be UTF-8
    return page


def _make_section(dataset: str, protocols: dict[str, list[Row]]) -> dict[str, Any]:
    """Return what the page shows of one dataset."""
    protocol = "image" if "image" in protocols else next(iter(protocols))
    changes = find_changed_queries(protocol, protocols[protocol])
    many = len(protocols[protocol]) > 2
    differences = [
        (f"{row.label} · {name}" if many else name, row.against.mean, row.against.low, row.against.high)
        for name, rows in protocols.items()
        for row in rows
        if row.against
    ]
    return {
        "dataset": dataset,
        "cells": {name: list_cells({name: rows}) for name, rows in protocols.items()},
        "differences": draw_both(partial(draw_differences, differences)),
        "changes": changes,
        "no_images": _add_images(changes, [Path(row.folder) for row in protocols[protocol]]),
    }


def find_changed_queries(protocol: str, rows: Sequence[Row]) -> list[ChangedQueries]:
    """Return for each report but the first the queries whose rank-1 result is right in only one of both."""
    first, *others = [load_results(Path(row.folder) / PER_QUERY)[protocol] for row in rows]
    return [_changed_queries_of(row.label, protocol, first, other) for row, other in zip(rows[1:], others, strict=True)]


def _changed_queries_of(place: str, protocol: str, first: Result, other: Result) -> ChangedQueries:
    queries, change = np.flatnonzero(first.valid), other.ap - first.ap
    before, after = first.first_ranks == 1, other.first_ranks == 1
    found = {"won": np.flatnonzero(~before & after), "lost": np.flatnonzero(before & ~after)}
    shown = {}
    for kind, at in found.items():
        order = np.argsort(-np.abs(change[at]), kind="stable")[:SHOWN]
        shown[kind] = [
            ChangedQuery(
                RankedImage(None, "", kind == "won", split="query", row=int(queries[i])),
                (int(first.first_ranks[i]), int(other.first_ranks[i])),
                (float(first.ap[i]), float(other.ap[i])),
            )
            for i in at[order]
        ]
    return ChangedQueries(place, protocol, len(found["won"]), len(found["lost"]), shown)


def _add_images(changes: Sequence[ChangedQueries], folders: Sequence[Path]) -> str:
    """Set the images and names of changed queries, from the shards that the reports were made from.

    Returns:
        Why there are none, or "".
    """
    entries = [changed.query for each in changes for of_kind in each.shown.values() for changed in of_kind]
    reason = ""
    for folder in folders if entries else ():
        try:
            load_images(entries, _open_images(folder))
            return ""
        except (ValueError, OSError) as error:
            reason = reason or str(error)
    return reason


def _open_images(folder: Path) -> ReadNamed:
    """Return how to read the images of a report. Raises ValueError if its shards are gone, or are others by now."""
    about = load_about(folder)
    if not about.root or is_remote(about.root):  # a report may come from anywhere: what it names is not fetched
        raise ValueError(f"{folder} names no local folder of shards")
    manifest = load_manifest(about.root)
    if manifest.fingerprint != about.data_fingerprint:
        raise ValueError(f"{about.root} holds other data than when {folder} was written")

    def read(split: str, rows: Sequence[int]) -> list[tuple[np.ndarray, str]]:
        places = kept_places(manifest, split)[list(rows)].tolist()
        return read_named_images(about.root, manifest, split, places, _ThumbnailDecoder())

    return read
