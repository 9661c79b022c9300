"""Open-set identification: queries of people who are not in the gallery should be answered "unknown".

A query is answered with its best gallery image if the score reaches a threshold, otherwise with "unknown". The false
alarm rate is the share of answered queries among those whose identity is not in the gallery. The detection and
identification rate is the share of queries that are answered with the right identity, among those that the gallery has
by another camera (Phillips, Grother & Micheals, "Evaluation methods in face recognition", Handbook of Face
Recognition, 2011).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from reid.metrics.features import JUNK, Features
from reid.metrics.ranking import QUERY_BLOCK, Search, best_of_search

NO_PID = -2  # a pid that no image has
RATES = (0.1, 0.01)  # false alarm rates for which thresholds are chosen


@dataclass(frozen=True)
class Answers:
    """The best gallery image of each query: score (Q,), -inf if the gallery has none for it; right (Q,) bool; mated
    (Q,) bool, whether the gallery has an image of the identity by another camera; unmated (Q,), whether it has none.
    A query that is junk is neither."""

    score: np.ndarray
    right: np.ndarray
    mated: np.ndarray
    unmated: np.ndarray


@dataclass(frozen=True)
class OpenSetPoint:
    """A threshold, and its rates on the queries that it was chosen on."""

    threshold: float
    false_alarm_rate: float
    identification_rate: float


def leave_out(query: Features, gallery: Features, share: float, seed: int = 0) -> Features:
    """Return the gallery without a share of the queries' identities, whose images become junk.

    Raises:
        ValueError: the share leaves no identity in the gallery, or takes none out.
    """
    pids = query.pids[(query.pids != JUNK) & ~query.is_distractor()].unique().cpu()
    number = round(share * len(pids))
    if not 0 < number < len(pids):
        raise ValueError(
            f"--open_set {share} leaves {number} of {len(pids)} identities out of the gallery; give a share that "
            "leaves some out and keeps some"
        )
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(pids)))
    absent = torch.isin(gallery.pids, pids[order[:number]].to(gallery.pids.device)) & ~gallery.is_distractor()
    return replace(gallery, pids=gallery.pids.masked_fill(absent, JUNK))


@torch.no_grad()
def answer(query: Features, gallery: Features, metric: str = "cosine", partial: bool = False) -> Answers:
    """Find the best gallery image of each query. partial: the queries are a slice (see `Features.take`)."""
    search = Search(query, gallery, "image", metric, partial)
    rows, scores = (column.squeeze(1) for column in best_of_search(search, 1))
    identities = gallery.pids.masked_fill(gallery.is_distractor(), JUNK)
    pids = query.pids.masked_fill(query.is_distractor(), NO_PID)
    found = identities.cpu()[rows.clamp(min=0)].masked_fill(rows < 0, JUNK)
    matches = torch.cat([pids.new_empty(0), *(_count_matches(search, part) for part in _products(search))])
    return Answers(
        scores.numpy(),
        (found == pids.cpu()).numpy(),
        (matches > 0).cpu().numpy(),
        ((pids != JUNK) & ~torch.isin(pids, identities)).cpu().numpy(),
    )


def _products(search: Search) -> list[slice]:
    return [rows for start in range(0, len(search.query), QUERY_BLOCK) for rows in search.products(start)]


def _count_matches(search: Search, rows: slice) -> torch.Tensor:
    """Return (B,) the entries of each query's identity that no rule removes."""
    pairs = search.same_identity_pairs(rows)
    return torch.bincount(pairs.row[~pairs.removed], minlength=rows.stop - rows.start)


def choose_thresholds(answers: Answers, rates: Sequence[float] = RATES) -> dict[float, OpenSetPoint]:
    """Return for each false alarm rate the lowest threshold that stays within it.

    Rates that would need more unmated queries than there are, at least one divided by the rate, are left out.

    Raises:
        ValueError: every query's identity is in the gallery, or none is by another camera.
    """
    if not answers.unmated.any():
        raise ValueError(
            "--open_set: the gallery has the identity of every query; give a share of identities to leave out, as "
            "--open_set 0.5"
        )
    if not answers.mated.any():
        raise ValueError("--open_set: the gallery has no query's identity by another camera; lower the share")
    alarms = np.sort(answers.score[answers.unmated])[::-1]
    points = {}
    for rate in rates:
        allowed = int(rate * len(alarms))
        if allowed < 1:
            continue
        threshold = float(np.nextafter(alarms[allowed], np.float32(np.inf))) if allowed < len(alarms) else -np.inf
        points[rate] = OpenSetPoint(
            threshold,
            float((alarms >= threshold).mean()),
            float((answers.right & (answers.score >= threshold))[answers.mated].mean()),
        )
    return points
