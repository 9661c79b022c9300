"""Thresholds of an evaluation: verification of pairs and open-set identification, over all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from reid.distributed import gather_objects, rank, sum_over_ranks, world_size
from reid.metrics import open_set, verification
from reid.metrics.features import JUNK, Features
from reid.metrics.open_set import Answers
from reid.metrics.verification import Counts, OperatingPoint, count_accepted, count_scores, rate_interval

CAMERA_RATE = 1e-3  # false positive rate of the threshold that pairs of cameras are compared at
POINTS = 200  # of the ROC curve in the report


def verify(query: Features, gallery: Features) -> dict[str, Any]:
    """Measure how well thresholds on the cosine tell whether two images are of one person. Ranks share the queries.

    Returns:
        pairs: numbers of pairs of one person (`genuine`) and of two (`impostor`). thresholds: by false positive rate,
        the operating point with 95% intervals over identities. equal_error: its threshold and rate. roc: false and true
        positive rates of the curve. cameras: rates of each pair of cameras at one threshold. All plain values for JSON.

    Raises:
        ValueError: there is no pair of one person, or of two, from different cameras.
    """
    part = query.take(torch.arange(len(query)).tensor_split(world_size())[rank()])
    local = count_scores(part, gallery, partial=True)
    counts = Counts(sum_over_ranks(local.genuine), sum_over_ranks(local.impostor))
    genuine, impostor = int(counts.genuine.sum()), int(counts.impostor.sum())
    if not genuine or not impostor:
        raise ValueError(
            f"--verification: {genuine} pairs of one person and {impostor} of two, from different cameras; both are "
            "needed"
        )
    points = verification.choose_thresholds(counts)
    equal = verification.equal_error_point(counts)
    cameras = gallery.camids[gallery.pids != JUNK].unique()
    thresholds = [point.threshold for point in (*points.values(), equal)]
    accepted = torch.cat(gather_objects(count_accepted(part, gallery, cameras, thresholds, partial=True))).numpy()
    return {
        "pairs": {"genuine": genuine, "impostor": impostor},
        "thresholds": {
            f"{rate:g}": _describe_point(point, accepted[..., (0, i)], query.pids.cpu().numpy())
            for i, (rate, point) in enumerate(points.items(), start=1)
        },
        "equal_error": {
            "threshold": equal.threshold,
            "rate": (equal.false_positive_rate + 1 - equal.true_positive_rate) / 2,
        },
        "roc": _thin_out(counts),
        "cameras": _compare_cameras(points, accepted, query.camids.cpu().numpy(), cameras.tolist()),
    }


def _describe_point(point: OperatingPoint, accepted: np.ndarray, pids: np.ndarray) -> dict[str, Any]:
    """accepted: (Q, C, 2, 2) pairs of two persons and of one: all, and those that the threshold accepts."""
    of_query = accepted.sum(axis=1)
    intervals = [list(rate_interval(of_query[:, person, 1], of_query[:, person, 0], pids)) for person in (0, 1)]
    return {
        **asdict(point),
        "false_positive_rate_interval": intervals[0],
        "true_positive_rate_interval": intervals[1],
    }


def _thin_out(counts: Counts) -> dict[str, list[float]]:
    """Return POINTS of the ROC curve, evenly spaced in the logarithm of the false positive rate."""
    false, true = counts.rates()
    wanted = np.geomspace(1 / int(counts.impostor.sum()), 1, POINTS)
    places = np.unique(np.searchsorted(false, wanted, side="right") - 1)
    return {"false_positive_rate": false[places].tolist(), "true_positive_rate": true[places].tolist()}


def _compare_cameras(
    points: Mapping[float, OperatingPoint], accepted: np.ndarray, camids: np.ndarray, cameras: list[int]
) -> list[dict[str, Any]]:
    """Return the rates of each pair of cameras that has pairs, at the threshold nearest to CAMERA_RATE."""
    if not points:
        return []
    nearest = min(range(len(points)), key=lambda i: abs(np.log(list(points)[i] / CAMERA_RATE)))
    rows = []
    for one in np.unique(camids).tolist():
        counts = accepted[camids == one].sum(axis=0)  # (C, 2, 1 + T)
        for other, of_pair in zip(cameras, counts.tolist(), strict=True):
            (impostor, *false), (genuine, *true) = of_pair
            if impostor or genuine:
                rates = {
                    "false_positive_rate": false[nearest] / impostor if impostor else None,
                    "true_positive_rate": true[nearest] / genuine if genuine else None,
                }
                pair = {"query_camera": one, "gallery_camera": other, "genuine": genuine, "impostor": impostor}
                rows.append(pair | rates)
    return rows


def identify(query: Features, gallery: Features, share: float, seed: int = 0) -> dict[str, Any]:
    """Measure open-set identification. Ranks share the queries.

    Args:
        share: of the queries' identities that is left out of the gallery; 0 if some are not in it already.

    Returns:
        queries: numbers of those whose identity is in the gallery by another camera (`mated`) or absent (`unmated`).
        thresholds: by false alarm rate. All plain values for JSON.

    Raises:
        ValueError: the share leaves nothing out, or nothing in.
    """
    reduced = open_set.leave_out(query, gallery, share, seed) if share else gallery
    part = query.take(torch.arange(len(query)).tensor_split(world_size())[rank()])
    parts = gather_objects(open_set.answer(part, reduced, partial=True))
    answers = Answers(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in ("score", "right", "mated", "unmated"))
    )
    points = open_set.choose_thresholds(answers)
    return {
        "left_out": share,
        "queries": {"mated": int(answers.mated.sum()), "unmated": int(answers.unmated.sum())},
        "thresholds": {f"{rate:g}": asdict(point) for rate, point in points.items()},
    }
