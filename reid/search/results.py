"""What a search found, as an HTML page, as CSV, as JSON, and as lines for a terminal."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from reid.reports.html import render


@dataclass(frozen=True)
class Answer:
    """One line of a result.

    score: cosine similarity, at most 1.
    camera, time: of an image; "" for a centroid.
    images: 1, or the number of images that a centroid is the mean of.
    path: of the image, or of the first image of a centroid's identity, in the folder `root`.
    """

    query: str
    rank: int
    score: float
    identity: str
    camera: str
    time: str
    images: int
    path: str
    root: str

    @property
    def description(self) -> str:
        """`identity anna · camera door`: what is known of it."""
        known = [f"identity {self.identity}" if self.identity else "identity unknown"]
        known += [f"camera {self.camera}"] if self.camera else []
        known += [self.time] if self.time else []
        known += [f"{self.images} images"] if self.images > 1 else []
        return " · ".join(known)


Picture = np.ndarray | None  # (H, W, 3) uint8, or None if it cannot be read


def to_json(queries: Sequence[str], answers: Sequence[Sequence[Answer]]) -> list[dict]:
    """Return a document per query: {"query", "results"}."""
    return [
        {"query": query, "results": [{k: v for k, v in asdict(a).items() if k != "query"} for a in found]}
        for query, found in zip(queries, answers, strict=True)
    ]


def to_csv(answers: Sequence[Sequence[Answer]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [column.name for column in fields(Answer)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(answer) for found in answers for answer in found)
    return buffer.getvalue()


def to_text(query: str, found: Sequence[Answer]) -> str:
    lines = [f"{answer.rank:>5}  {answer.score:6.3f}  {answer.description}  {answer.path}" for answer in found]
    return "\n".join([query, *(lines or ["       nothing found"])])


def build_page(
    title: str,
    facts: dict[str, str],
    queries: Sequence[tuple[str, Picture]],
    answers: Sequence[Sequence[tuple[Answer, Picture]]],
) -> str:
    """Return the HTML page. queries: name and picture of each; answers: what each found, best first."""
    return render("search.html", title=title, search_facts=facts, lists=list(zip(queries, answers, strict=True)))
