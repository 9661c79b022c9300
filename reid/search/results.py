"""What a search found, as one HTML file that opens offline, as a CSV, as JSON, and as lines for a terminal.

The page has no script and no link; what comes from outside is escaped.
"""

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape

import numpy as np
from PIL import Image

from reid.reports.style import list_facts, wrap

THUMBNAIL_PX = 256  # longest side of a picture inside the page


@dataclass(frozen=True)
class Answer:
    """One line of a result. score: cosine similarity, at most 1. images: 1, or how many a centroid is the mean of.

    path, in root: the image, or of a centroid the identity's first image; camera and time are those of an image alone.
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


COLUMNS = list(Answer.__dataclass_fields__)
Picture = np.ndarray | None


def to_json(queries: Sequence[str], answers: Sequence[Sequence[Answer]]) -> list[dict]:
    """A document per query: {"query", "results"}."""
    return [
        {"query": query, "results": [{k: v for k, v in asdict(a).items() if k != "query"} for a in found]}
        for query, found in zip(queries, answers, strict=True)
    ]


def to_csv(answers: Sequence[Sequence[Answer]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(answer) for found in answers for answer in found)
    return buffer.getvalue()


def to_text(query: str, found: Sequence[Answer]) -> str:
    lines = [query, *(f"{a.rank:>5}  {a.score:6.3f}  {_say(a)}  {a.path}" for a in found)]
    return "\n".join(lines if found else [query, "       nothing found"])


def build_page(
    title: str,
    facts: dict[str, str],
    queries: Sequence[tuple[str, Picture]],
    answers: Sequence[Sequence[tuple[Answer, Picture]]],
) -> str:
    """queries: name and picture of each; answers: what each found, best first, with its picture."""
    lists = "".join(map(_list_html, queries, answers))
    body = f"""<p class="note">Likeness, not identity: a score says how alike two pictures look to the model. The first
of a list is the nearest of what was searched, whether or not the person is in it.</p>
{lists}
{list_facts("Search", facts)}"""
    return wrap(title, "search", body)


def _list_html(query: tuple[str, Picture], found: Sequence[tuple[Answer, Picture]]) -> str:
    name, picture = query
    figures = "".join(
        _figure_html(image, "", f"{a.rank} · {a.score:.3f}", f"{_say(a)} · {a.path.rpartition('/')[2]}")
        for a, image in found
    )
    gallery = f'<div class="gallery">{figures}</div>' if found else '<p class="absent">Nothing found.</p>'
    asked = _figure_html(picture, "query", "query", "")
    return f'<article><h3>{escape(name)}</h3><div class="ranks">{asked}{gallery}</div></article>'


def _say(answer: Answer) -> str:
    said = [f"identity {answer.identity}" if answer.identity else "identity unknown"]
    said += [f"camera {answer.camera}"] if answer.camera else []
    said += [answer.time] if answer.time else []
    said += [f"{answer.images} images"] if answer.images > 1 else []
    return " · ".join(said)


def _figure_html(picture: Picture, kind: str, head: str, caption: str) -> str:
    shown = '<div class="blank">no image</div>'
    if picture is not None:
        image = Image.fromarray(picture)
        image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        shown = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(f"{head} {caption}")}">'
    return f'<figure class="{kind}">{shown}<figcaption><b>{escape(head)}</b> {escape(caption)}</figcaption></figure>'
