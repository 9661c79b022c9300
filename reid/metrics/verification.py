"""Verification: are two images of one person? False and true positive rates of a threshold on the cosine.

The pairs are those of a query and a gallery image from different cameras; an image without a camera counts as from
another one. Junk is left out, and a distractor is of another person than every query. Scores are counted in steps,
without a query-by-gallery matrix, so the counts of slices of the queries add up exactly, on any number of processes.
A pair is accepted if its score is the threshold or above.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reid.metrics.features import JUNK, UNKNOWN, Features
from reid.metrics.ranking import QUERY_BLOCK, Search
from reid.precision import exact_products

STEPS = 1 << 20  # of the cosine from -1 to 1, so of 2e-6; their ends are exact in float32
RATES = (1e-2, 1e-3, 1e-4, 1e-5)  # false positive rates for which thresholds are chosen
COUNTED = 1 << 22  # scores counted at a time: 32 MiB as float64
RESAMPLES = 1000


@dataclass(frozen=True)
class Counts:
    """Pairs by score: of one person, `genuine` (STEPS,), and of two persons, `impostor` (STEPS,), int64.

    Those of slices of the queries add up.
    """

    genuine: Tensor
    impostor: Tensor

    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the false and the true positive rates (STEPS + 1,) of all thresholds, the highest first.

        `threshold_at` gives the threshold of a place.
        """
        accepted = (np.append(0, counts.cpu().numpy()[::-1].cumsum()) for counts in (self.impostor, self.genuine))
        false, true = (counts / max(counts[-1], 1) for counts in accepted)
        return false, true


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, and its rates on the pairs that it was chosen on."""

    threshold: float
    false_positive_rate: float
    true_positive_rate: float


def threshold_at(place: int) -> float:
    """Return the threshold at a place of `Counts.rates`; that of place 0 is above every cosine."""
    return (STEPS - place) * 2 / STEPS - 1 if place else 2.0


@torch.no_grad()
def count_scores(query: Features, gallery: Features, partial: bool = False) -> Counts:
    """Count the scores of all pairs of Q queries and N gallery images. partial: the queries are a slice (see `take`).

    Raises:
        ValueError: on features that cannot be compared.
    """
    found = torch.zeros(2, STEPS, dtype=torch.int64, device=query.embeddings.device)
    for _, _, scores, across, same in _blocks(query, gallery, partial):
        rows = max(1, COUNTED // max(1, scores.shape[1]))
        for some, pairs, person in zip(scores.split(rows), across.split(rows), same.split(rows), strict=True):
            step = ((some.double() + 1) * (STEPS / 2)).long().clamp_(0, STEPS - 1)
            found[0] += torch.bincount(step[pairs & person], minlength=STEPS)
            found[1] += torch.bincount(step[pairs & ~person], minlength=STEPS)
    return Counts(found[0], found[1])


def choose_thresholds(counts: Counts, rates: Sequence[float] = RATES) -> dict[float, OperatingPoint]:
    """Return for each false positive rate the lowest threshold that stays within it.

    Rates that would need more pairs of two persons than there are, at least one divided by the rate, are left out.
    """
    false, true = counts.rates()
    pairs = int(counts.impostor.sum())
    possible = [rate for rate in rates if pairs * rate >= 1]
    places = [int(np.searchsorted(false, rate, side="right")) - 1 for rate in possible]
    return {
        rate: OperatingPoint(threshold_at(place), float(false[place]), float(true[place]))
        for rate, place in zip(possible, places, strict=True)
    }


def equal_error_point(counts: Counts) -> OperatingPoint:
    """Return the threshold at which false positives and false negatives are equally frequent, or nearest to it."""
    false, true = counts.rates()
    place = int(np.abs(false - (1 - true)).argmin())
    return OperatingPoint(threshold_at(place), float(false[place]), float(true[place]))


@torch.no_grad()
def count_accepted(
    query: Features, gallery: Features, cameras: Tensor, thresholds: Sequence[float], partial: bool = False
) -> Tensor:
    """Count the pairs of each query with each camera that thresholds accept.

    Args:
        query: Q queries.
        gallery: N images.
        cameras: (C,) int64 ascending, the cameras of the gallery.
        thresholds: T of them.
        partial: the queries are a slice (see `take`).

    Returns:
        (Q, C, 2, 1 + T) int64 on the CPU: of pairs of two persons, then of one person, the number of all and of those
        accepted by each threshold.
    """
    found = torch.zeros(len(query), len(cameras), 2, 1 + len(thresholds), dtype=torch.int64)
    for rows, camids, scores, across, same in _blocks(query, gallery, partial):
        of_camera = (camids[:, None] == cameras).float()  # sums of ones are exact in float32 up to 2**24
        for person, pairs in enumerate((across & ~same, across & same)):
            accepted = [pairs, *(pairs & (scores >= threshold) for threshold in thresholds)]
            counts = torch.stack([table.float() @ of_camera for table in accepted], dim=-1)
            found[rows, :, person] += counts.long().cpu()
    return found


def _blocks(
    query: Features, gallery: Features, partial: bool
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
    """Yield, block by block: rows of queries, cameras (E,) of entries, cosines (B, E), and which of them (B, E) are of
    different cameras, without junk, and which of one person."""
    search = Search(query, gallery, "image", "cosine", partial)
    listed = search.gallery
    with exact_products(search.device):
        for start in range(0, len(query), QUERY_BLOCK):
            for rows in search.products(start):
                camids, pids = query.camids[rows, None], query.pids[rows, None]
                for part in search.slices:
                    across = (pids != JUNK) & ((camids == UNKNOWN) | (listed.camids[part] != camids))
                    same = (listed.pids[part] == pids) & ~listed.distractors[part]
                    same &= ~query.is_distractor()[rows, None]
                    yield rows, listed.camids[part], search.scores(rows, part), across, same


def rate_interval(
    accepted: np.ndarray, number: np.ndarray, pids: np.ndarray, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the ends of a bootstrap interval of the share accepted / number, over the identities of the queries.

    Queries of one person are not independent, so persons are drawn with replacement, each with all queries. The
    threshold stays as it is.

    Args:
        accepted, number: (Q,) pairs of each query.
        pids: (Q,) identities of the queries.
    """
    _, member = np.unique(pids, return_inverse=True)
    sums = [np.bincount(member, weights=values) for values in (accepted, number)]
    generator, size = np.random.default_rng(seed), len(sums[0])
    draws = np.stack([np.bincount(generator.integers(size, size=size), minlength=size) for _ in range(RESAMPLES)])
    above, of = (draws @ values for values in sums)
    low, high = np.quantile(above / np.maximum(of, 1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
