"""Comparison of reports on the same data with the first of them, query by query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reid.evaluation.about import ABOUT, About, difference, load_about
from reid.evaluation.dataset_report import PER_QUERY
from reid.metrics.bootstrap import Difference, paired
from reid.metrics.retrieval import load_results
from reid.model.features import FLIP_TEST
from reid.reports.tables import format_interval, format_table, percent

FLIP_NOTE = "Some of these reports are of a flip test (twice the computation), and some are not: Δ contains its effect."
COLUMNS = ("report", "protocol", "queries", "mAP", "95%", "mINP", "R1", "Δ", "95% of Δ", "p")
NOTE = (
    "In percent. Δ: mAP minus the first report's over the same queries, with its 95% bootstrap interval.\n"
    "p: two-sided, of no difference, not corrected for the number of rows; it does not cover other training seeds."
)


@dataclass(frozen=True)
class Row:
    """Metrics of one report under one protocol.

    against: the difference from the first report, None in its row.
    flip: whether the report is of a flip test.
    folder: of the report.
    """

    place: str
    mAP: float
    mAP_interval: tuple[float, float]
    mINP: float
    rank1: float
    num_valid_queries: int
    against: Difference | None
    flip: bool = False
    folder: str = ""

    @property
    def label(self) -> str:
        return f"{self.place} + {FLIP_TEST}" if self.flip else self.place


Comparison = dict[str, dict[str, list[Row]]]  # dataset -> protocol -> rows, the first report's first


def compare(places: Sequence[str]) -> Comparison:
    """Compare what all of some folders, of runs or of reports, hold: datasets and protocols.

    Raises ValueError if a folder holds no report, if no data is in all of them, or if a file is damaged.
    """
    first, *others = [find_reports(Path(place)) for place in places]
    compared: Comparison = {}
    reason = ""
    for folder, about in first.items():
        folders = [folder]
        for reports in others:
            differences = {other: difference(about, theirs) for other, theirs in reports.items()}
            same = [other for other, text in differences.items() if not text]
            folders += same[:1]
            if not same:
                other, text = next(iter(differences.items()))
                reason = reason or f"{folder} and {other} differ: {text}"
        if len(folders) == len(places):
            compared[folder.name if about.dataset in compared else about.dataset] = _compare(places, folders)
    if not compared:
        raise ValueError(
            f"no data is in all of {', '.join(places)}: {reason}; evaluate all on the same shards, in the same order"
        )
    return compared


def find_reports(place: Path) -> dict[Path, About]:
    """Find the reports of a run, or the one in the folder `place` itself."""
    folders = [place] if (place / ABOUT).is_file() else sorted(path.parent for path in place.glob(f"eval/*/{ABOUT}"))
    if not folders:
        raise ValueError(f"{place} holds no report ({ABOUT}, or eval/*/{ABOUT}); evaluate it first, or fix the path")
    return {folder: load_about(folder) for folder in folders}


def _compare(places: Sequence[str], folders: Sequence[Path]) -> dict[str, list[Row]]:
    for folder in folders:
        if not (folder / PER_QUERY).is_file():
            raise ValueError(f"{folder} holds no {PER_QUERY}; evaluate again to write it")
    results = [load_results(folder / PER_QUERY) for folder in folders]
    flips = [load_about(folder).flip for folder in folders]
    table: dict[str, list[Row]] = {}
    for protocol, first in results[0].items():
        if not all(protocol in others for others in results):
            continue
        table[protocol] = []
        for place, folder, of_folder, flip in zip(places, folders, results, flips, strict=True):
            result = of_folder[protocol]
            if not np.array_equal(result.valid, first.valid):
                raise ValueError(
                    f"{folder / PER_QUERY}: other queries can match than in {folders[0] / PER_QUERY} ({protocol}); "
                    "evaluate both again"
                )
            interval, rank1 = result.intervals["mAP"], float(result.cmc[0])
            against = None if result is first else paired(result.ap, first.ap)
            number = result.num_valid_queries
            row = Row(place, result.mAP, interval, result.mINP, rank1, number, against, flip, str(folder))
            table[protocol].append(row)
    if not table:
        raise ValueError(
            f"{' and '.join(map(str, folders))} share no protocol; evaluate them with the same --protocols"
        )
    return table


def format_comparison(compared: Comparison) -> str:
    """Format a table per dataset."""
    parts = [
        f"{dataset}\n{format_table(COLUMNS, list_cells(protocols), left=2)}" for dataset, protocols in compared.items()
    ]
    return "\n\n".join([*parts, *list_notes(compared)])


def list_cells(protocols: dict[str, list[Row]]) -> list[list[str]]:
    """Return rows of COLUMNS for one dataset."""
    cells = []
    for protocol, row in ((protocol, row) for protocol, of_protocol in protocols.items() for row in of_protocol):
        against = ["", "", ""]
        if row.against:
            ends = f"{100 * row.against.low:+.1f} to {100 * row.against.high:+.1f}"
            against = [f"{100 * row.against.mean:+.1f}", ends, f"{row.against.p:.3f}"]
        metrics = percent(row.mAP), format_interval(row.mAP_interval), percent(row.mINP), percent(row.rank1)
        cells.append([row.label, protocol, f"{row.num_valid_queries:,}", *metrics, *against])
    return cells


def list_notes(compared: Comparison) -> list[str]:
    flips = {row.flip for protocols in compared.values() for rows in protocols.values() for row in rows}
    return [FLIP_NOTE, NOTE] if len(flips) > 1 else [NOTE]
