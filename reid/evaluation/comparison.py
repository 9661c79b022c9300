"""Several reports on the same data side by side, each against the first, query by query."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from reid.metrics.bootstrap import Difference, paired
from reid.metrics.features import JUNK, Features
from reid.metrics.retrieval import Result, load_results
from reid.reports.tables import format_interval, format_table, percent

PER_QUERY = "per_query.npz"
NOTE = (
    "In percent. Δ: mAP minus the first report's over the same queries, with its 95% bootstrap interval.\n"
    "p: two-sided, of no difference, not corrected for the number of rows; chance of the training seed is not in it."
)


@dataclass(frozen=True)
class Row:
    """One report under one protocol; `against` is None in the first row, which the others are compared with."""

    place: str
    mAP: float
    mAP_interval: tuple[float, float]
    mINP: float
    rank1: float
    num_valid_queries: int
    against: Difference | None


Comparison = dict[str, dict[str, list[Row]]]  # dataset -> protocol -> rows, the first report's first


def compare(places: Sequence[str]) -> Comparison:
    """places: folders of runs or of reports. Datasets and protocols that all of them hold are compared.

    ValueError where a folder holds no report, where none is of the same data in all of them, or on damaged files.
    """
    found = [find_reports(Path(place)) for place in places]
    compared: Comparison = {}
    for folder, about in found[0].items():
        same = [folder, *(_same_data(about, others) for others in found[1:])]
        folders = [other for other in same if other is not None]
        if len(folders) == len(places):
            compared[folder.name if about.dataset in compared else about.dataset] = _compare(places, folders)
    if not compared:
        raise ValueError(_explain(places, found))
    return compared


def find_reports(place: Path) -> dict[Path, About]:
    """The reports in a run's folder, or the one that `place` is."""
    folders = [place] if (place / NAME).is_file() else sorted(path.parent for path in place.glob(f"eval/*/{NAME}"))
    if not folders:
        raise ValueError(f"{place} holds no report ({NAME}, or eval/*/{NAME}); evaluate it first, or mend the path")
    return {folder: load_about(folder) for folder in folders}


def _same_data(about: About, others: dict[Path, About]) -> Path | None:
    return next((folder for folder, other in others.items() if not difference(about, other)), None)


def _explain(places: Sequence[str], found: Sequence[dict[Path, About]]) -> str:
    (folder, about), *_ = found[0].items()
    for place, others in zip(places[1:], found[1:], strict=True):
        said = {other: difference(about, theirs) for other, theirs in others.items()}
        if all(said.values()):
            other, what = next(iter(said.items()))
            return (
                f"{places[0]} and {place} hold no results on the same data: {folder} and {other} differ: {what}; "
                "evaluate both on the same shards, in the same order"
            )
    return f"{', '.join(places)} share data two by two, but no dataset is in all of them; evaluate all on one"


def _compare(places: Sequence[str], folders: Sequence[Path]) -> dict[str, list[Row]]:
    for folder in folders:
        if not (folder / PER_QUERY).is_file():
            raise ValueError(f"{folder} holds no {PER_QUERY}; evaluate again to write it")
    results = [load_results(folder / PER_QUERY) for folder in folders]
    shared = [protocol for protocol in results[0] if all(protocol in others for others in results)]
    if not shared:
        raise ValueError(
            f"{' and '.join(map(str, folders))} share no protocol; evaluate them with the same --protocols"
        )
    table = {}
    for protocol in shared:
        first = results[0][protocol]
        for folder, result in zip(folders, results, strict=True):
            if not np.array_equal(result[protocol].valid, first.valid):
                raise ValueError(
                    f"{folder / PER_QUERY}: other queries can match than in {folders[0] / PER_QUERY} ({protocol}); "
                    "evaluate both again"
                )
        table[protocol] = [
            _row(place, result[protocol], first if i else None)
            for i, (place, result) in enumerate(zip(places, results, strict=True))
        ]
    return table


def _row(place: str, result: Result, first: Result | None) -> Row:
    return Row(
        place,
        result.mAP,
        result.intervals["mAP"],
        result.mINP,
        result.cmc_at([1])[1],
        result.num_valid_queries,
        None if first is None else paired(result.ap, first.ap),
    )


def format_comparison(compared: Comparison) -> str:
    """Plain text, a table per dataset."""
    header = ("report", "protocol", "queries", "mAP", "95%", "mINP", "R1", "Δ", "95% of Δ", "p")
    parts = []
    for dataset, protocols in compared.items():
        rows = [
            (
                row.place,
                protocol,
                f"{row.num_valid_queries:,}",
                percent(row.mAP),
                format_interval(row.mAP_interval),
                percent(row.mINP),
                percent(row.rank1),
                *_cells(row.against),
            )
            for protocol, rows in protocols.items()
            for row in rows
        ]
        parts.append(f"{dataset}\n{format_table(header, rows, left=2)}")
    return "\n\n".join([*parts, NOTE])


def _cells(against: Difference | None) -> tuple[str, str, str]:
    if against is None:
        return "", "", ""
    ends = f"{100 * against.low:+.1f} to {100 * against.high:+.1f}"
    return f"{100 * against.mean:+.1f}", ends, f"{against.p:.3f}"


def write_comparison(folder: Path, compared: Comparison) -> Path:
    """comparison.json and comparison.txt; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {data: {p: [asdict(row) for row in rows] for p, rows in table.items()} for data, table in compared.items()}
    path = folder / "comparison.json"
    path.write_text(json.dumps(plain, indent=2) + "\n")
    (folder / "comparison.txt").write_text(format_comparison(compared) + "\n")
    return path


NAME = "about.json"

DISTRACTOR = -2  # whatever pid a dataset gives them


@dataclass(frozen=True)
class About:
    """source: the checkpoint or feature files. data_fingerprint: of the shards' manifest, "" for feature files.

    labels_fingerprint: of identities and cameras in their order, so that another system's features of the same images
    are known as such. num_queries, num_gallery: images. Junk is left out of all three.
    """

    dataset: str
    source: str
    data_fingerprint: str
    labels_fingerprint: str
    num_queries: int
    num_gallery: int

    def save(self, folder: Path) -> None:
        (folder / NAME).write_text(json.dumps(asdict(self), indent=2) + "\n")


def describe(dataset: str, source: str, data_fingerprint: str, query: Features, gallery: Features) -> About:
    columns = [_labels(split) for split in (query, gallery)]
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(column, dtype="<i8").tobytes() for column in columns))
    sizes = [column.shape[1] for column in columns]
    digest.update(f"{sizes}".encode())
    return About(dataset, source, data_fingerprint, digest.hexdigest(), *sizes)


def _labels(split: Features) -> np.ndarray:
    """(2, N) identities and cameras of all images but junk."""
    pids = split.pids.masked_fill(split.is_distractor(), DISTRACTOR)[split.pids != JUNK]
    return np.stack([pids.cpu().numpy(), split.camids[split.pids != JUNK].cpu().numpy()])


def load_about(folder: Path) -> About:
    """ValueError where `folder` holds no report of this version."""
    path = folder / NAME
    if not path.is_file():
        raise ValueError(f"{folder} holds no report ({NAME}); evaluate first, or give the folder of a run or a report")
    try:
        document = json.loads(path.read_text())
        return About(**{f.name: document[f.name] for f in fields(About)})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); evaluate again to write it") from error


def difference(one: About, other: About) -> str:
    """What shows that two reports are of different data; empty where they are of the same."""
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
