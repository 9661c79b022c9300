"""A table of queries with pictures, for W&B: the worst, and some of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from reid import metrics
from reid.evaluation.dataset_report import Evaluation
from reid.reports.rank_lists import ReadNamed

WORST, SAMPLE, RESULTS = 50, 50, 5
HEIGHT, FRAME = 128, 4  # of a picture and of its frame, in pixels
RIGHT, WRONG = (26, 152, 80), (215, 48, 39)  # RGB of the frames
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
    query, gallery = evaluation.query, evaluation.gallery
    order = np.argsort(result.ap, kind="stable")
    sample = np.random.default_rng(0).permutation(np.arange(WORST, len(order)))[:SAMPLE]
    order = np.concatenate([order[:WORST], order[np.sort(sample)]])
    rows = np.flatnonzero(result.valid)[order]
    indices, scores = metrics.top_k(query.take(torch.from_numpy(rows)), gallery, RESULTS, "image", metric)
    pids, is_distractor = gallery.pids.cpu().numpy(), gallery.is_distractor().cpu().numpy()
    shown = sorted({row for found in indices.tolist() for row in found if row >= 0})
    results = dict(zip(shown, read("gallery", shown), strict=True))
    asked = read("query", rows.tolist())
    table: list[list[Any]] = []
    for number, (at, row, (picture, name)) in enumerate(zip(order, rows, asked, strict=True)):
        pid = int(query.pids[row])
        places = [(int(j), score) for j, score in zip(indices[number], scores[number].tolist(), strict=True) if j >= 0]
        right = [bool(pids[j] == pid and not is_distractor[j]) for j, _ in places]
        lines = [
            f"{'✓' if is_right else '✗'} {score:.2f} {results[j][1] or f'identity {pids[j]}'}"
            for is_right, (j, score) in zip(right, places, strict=True)
        ]
        table.append(
            [
                "worst" if number < WORST else "sample",
                None if picture is None else _resize(picture),
                _join([results[j][0] for j, _ in places], right),
                float(result.ap[at]),
                int(result.first_ranks[at]),
                pid,
                int(query.camids[row]),
                name,
                "\n".join(lines),
            ]
        )
    return table


def _join(pictures: list[np.ndarray | None], right: list[bool]) -> np.ndarray | None:
    """Return pictures side by side in green or red frames; None if none can be shown."""
    framed = []
    for picture, is_right in zip(pictures, right, strict=True):
        if picture is not None:
            small = _resize(picture)
            canvas = np.empty((HEIGHT + 2 * FRAME, small.shape[1] + 2 * FRAME, 3), dtype=np.uint8)
            canvas[:] = RIGHT if is_right else WRONG
            canvas[FRAME:-FRAME, FRAME:-FRAME] = small
            framed.append(canvas)
    return np.concatenate(framed, axis=1) if framed else None


def _resize(picture: np.ndarray) -> np.ndarray:
    """Return a picture (H, W, 3) uint8 at HEIGHT, at most four times as wide."""
    width = min(max(1, round(HEIGHT * picture.shape[1] / picture.shape[0])), 4 * HEIGHT)
    return np.asarray(Image.fromarray(picture).resize((width, HEIGHT)))
