"""Rank lists: queries and the nearest entries of their gallery, with pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from reid import metrics
from reid.metrics.features import UNKNOWN, Features
from reid.metrics.retrieval import Result

RANK_LIST_LENGTH = 10
# Split and rows of its features -> their images (H, W, 3) uint8, or None, and names of files, or "".
ReadNamed = Callable[[str, Sequence[int]], Sequence[tuple[np.ndarray | None, str]]]


@dataclass
class RankedImage:
    """A query, or an entry of a gallery.

    image: (H, W, 3) uint8, or None if there is none to show.
    correct: whether it has the query's identity.
    late: whether it stands after all entries that do: it is then no fault to be of another identity.
    split, row: where `load_images` finds it: a row of the features of `query` or `gallery`.
    name: the file, as the dataset calls it; "" if unknown.
    """

    image: np.ndarray | None
    caption: str
    correct: bool
    late: bool = False
    split: str = ""
    row: int = -1
    name: str = ""

    @property
    def file(self) -> str:
        """The name, or the row if there is none."""
        return self.name or f"{self.split} row {self.row}"

    @property
    def kind(self) -> str:
        return "right" if self.correct else "late" if self.late else "wrong"

    @property
    def symbol(self) -> str:
        """A sign in addition to the color, which not everyone can tell apart."""
        return {"right": "✓", "wrong": "✗", "late": "–"}[self.kind]


@dataclass
class RankList:
    """A query and the nearest entries of its gallery, best first. ap: in [0, 1]. title: `best`, `median` and so on."""

    query: RankedImage
    gallery: list[RankedImage]
    ap: float
    title: str

    @property
    def entries(self) -> list[RankedImage]:
        return [self.query, *self.gallery]

    @property
    def has_images(self) -> bool:
        return any(entry.image is not None for entry in self.entries)


class Labels:
    """The labels of a split on the CPU: pids, camids (N,) and distractors (N,) bool, and `show` for its images."""

    def __init__(self, split: str, features: Features) -> None:
        self.split = split
        self.pids, self.camids = features.pids.cpu().numpy(), features.camids.cpu().numpy()
        self.distractors = features.is_distractor().cpu().numpy()

    def show(self, row: int, correct: bool, note: str = "", late: bool = False) -> RankedImage:
        """Return an entry without its image. Caption: note, identity, and camera if it is known."""
        who = "distractor" if self.distractors[row] else f"id {self.pids[row]}"
        camera = "" if self.camids[row] == UNKNOWN else f"camera {self.camids[row]}"
        return RankedImage(None, " · ".join(filter(None, [note, who, camera])), correct, late, self.split, row)

    def count_matches(self, pid: int, camid: int) -> int:
        """Return how many images can match a query of this identity and camera."""
        other_camera = (self.camids != camid) | (camid == UNKNOWN)
        return int(((self.pids == pid) & ~self.distractors & other_camera).sum())


def choose_rank_lists(query: Features, gallery: Features, result: Result, metric: str) -> list[RankList]:
    """Return the rank lists of the queries at the quarters of AP, from best to worst, without their images.

    result: of the image protocol.
    """
    order = np.argsort(-result.ap, kind="stable")
    titles: dict[int, str] = {}  # by index into result.ap; with few queries some quarters are the same query
    for quarter, title in enumerate(("best", "upper quarter", "median", "lower quarter", "worst")):
        titles.setdefault(int(order[min(quarter * len(order) // 4, len(order) - 1)]), title)
    return list_ranked(query, gallery, result, titles, metric, RANK_LIST_LENGTH)


def list_ranked(
    query: Features, gallery: Features, result: Result, titles: Mapping[int, str], metric: str, length: int
) -> list[RankList]:
    """Return rank lists without their images.

    Args:
        query, gallery: of the evaluation.
        result: of the image protocol.
        titles: of the lists, by the index of their query into result.ap.
        metric: cosine or euclidean.
        length: entries of a list.
    """
    rows = np.flatnonzero(result.valid)[list(titles)]
    indices, scores = metrics.top_k(query.take(torch.from_numpy(rows)), gallery, length, "image", metric)
    query_labels, gallery_labels = Labels("query", query), Labels("gallery", gallery)
    lists = []
    best = zip(indices.tolist(), scores.tolist(), strict=True)
    for row, (found, of_found), (index, title) in zip(rows, best, titles.items(), strict=True):
        pid, entries = query_labels.pids[row], []
        left = gallery_labels.count_matches(pid, query_labels.camids[row])
        for j, score in zip(found, of_found, strict=True):
            if j >= 0:
                correct = bool(gallery_labels.pids[j] == pid and not gallery_labels.distractors[j])
                entries.append(gallery_labels.show(j, correct, f"{score:.2f}", late=not left))
                left -= correct
        lists.append(RankList(query_labels.show(int(row), True), entries, float(result.ap[index]), title))
    return lists


def load_images(entries: Iterable[RankedImage], read: ReadNamed) -> None:
    """Set image and name of entries; each split is read once."""
    by_split: dict[str, list[RankedImage]] = {}
    for entry in entries:
        by_split.setdefault(entry.split, []).append(entry)
    for split, of_split in by_split.items():
        rows = sorted({entry.row for entry in of_split})
        found = dict(zip(rows, read(split, rows), strict=True))
        for entry in of_split:
            entry.image, entry.name = found[entry.row]
