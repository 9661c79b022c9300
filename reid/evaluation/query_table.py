"""A table of queries with pictures, for W&B: the worst, and some of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageColor

from reid.evaluation.dataset_report import Evaluation
from reid.reports.figures import FRAMES
from reid.reports.rank_lists import RankedImage, ReadNamed, list_ranked, load_images

WORST, SAMPLE, RESULTS = 50, 50, 5
HEIGHT, FRAME = 128, 4  # of a picture and of its frame, in pixels
COLUMNS = (
    "chosen as", "query", f"first {RESULTS} results", "AP", "rank of first match", "identity", "camera", "query file",
    "results",
)  # fmt: skip


def list_queries(evaluation: Evaluation, read: ReadNamed, metric: str) -> list[list[Any]]:
    """Return rows of COLUMNS under the image protocol; without that protocol an empty list.

    The WORST queries, of lowest AP, come first; then SAMPLE of the others, drawn by a fixed seed, by ascending AP.
    """
    result = evaluation.results.get("image")
    if result is None:
        return []
    query = evaluation.query
    order = np.argsort(result.ap, kind="stable")
    sample = np.random.default_rng(0).permutation(np.arange(WORST, len(order)))[:SAMPLE]
    titles = {int(index): "worst" for index in order[:WORST]} | {
        int(index): "sample" for index in order[np.sort(sample)]
    }
    lists = list_ranked(query, evaluation.gallery, result, titles, metric, RESULTS)
    load_images([entry for ranks in lists for entry in ranks.entries], read)
    return [
        [
            ranks.title,
            None if ranks.query.image is None else _resize(ranks.query.image),
            _join(ranks.gallery),
            ranks.ap,
            int(result.first_ranks[index]),
            int(query.pids[ranks.query.row]),
            int(query.camids[ranks.query.row]),
            ranks.query.name,
            "\n".join(f"{entry.symbol} {entry.caption} {entry.name}".rstrip() for entry in ranks.gallery),
        ]
        for index, ranks in zip(titles, lists, strict=True)
    ]


def _join(entries: list[RankedImage]) -> np.ndarray | None:
    """Return pictures side by side, in the frames of the report's rank lists; None if none can be shown."""
    framed = []
    for entry in entries:
        if entry.image is not None:
            small = _resize(entry.image)
            canvas = np.empty((HEIGHT + 2 * FRAME, small.shape[1] + 2 * FRAME, 3), dtype=np.uint8)
            canvas[:] = ImageColor.getrgb(FRAMES[entry.kind])
            canvas[FRAME:-FRAME, FRAME:-FRAME] = small
            framed.append(canvas)
    return np.concatenate(framed, axis=1) if framed else None


def _resize(picture: np.ndarray) -> np.ndarray:
    """Return a picture (H, W, 3) uint8 at HEIGHT, at most four times as wide."""
    width = min(max(1, round(HEIGHT * picture.shape[1] / picture.shape[0])), 4 * HEIGHT)
    return np.asarray(Image.fromarray(picture).resize((width, HEIGHT)))
