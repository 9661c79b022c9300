"""How many streams an epoch can be cut into, and how they are shared by datasets. A stream reads one dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Stock:
    """What the shards of each dataset offer to the streams of an epoch."""

    fewest: tuple[np.ndarray, ...]
    """Of each dataset (shards + 1,): identities in its smallest 0, 1, 2, ... shards."""

    @classmethod
    def count(cls, image_counts: np.ndarray, shard_of: np.ndarray, datasets: np.ndarray) -> Stock:
        """Count the identities with images.

        Args:
            image_counts: (N,) images of each identity.
            shard_of: (N,) its shard.
            datasets: (shards,) dataset of each shard, from 0.
        """
        sizes = np.bincount(shard_of, image_counts > 0, minlength=len(datasets)).astype(np.int64)
        parts = (np.sort(sizes[datasets == number]) for number in range(datasets.max(initial=0) + 1))
        return cls(tuple(np.cumsum([0, *part]) for part in parts))

    @property
    def identities(self) -> list[int]:
        """Identities of each dataset."""
        return [int(fewest[-1]) for fewest in self.fewest]

    @property
    def shards(self) -> list[int]:
        """Shards of each dataset."""
        return [len(fewest) - 1 for fewest in self.fewest]

    def most_identities(self, dataset: int, streams: int) -> int:
        """Return how many identities a step can take from so many streams, even if one has the smallest shards."""
        return streams * int(self.fewest[dataset][self.shards[dataset] // streams])

    def share_out(self, identities: int, streams: int) -> tuple[int, ...]:
        """Return the identities of each dataset in a step, in proportion to those it has: complete streams of each."""
        of_stream = identities // streams
        return tuple(of_stream * part for part in apportion(streams, self.identities))

    def fits(self, identities: int, streams: int, shares: Sequence[int] = ()) -> bool:
        """Return whether each step of each epoch can take `shares` identities of the datasets.

        shares: default: `share_out`.
        """
        of_stream = identities // streams
        return self._can_divide(identities, streams, shares) and all(
            share // of_stream <= self.shards[number] and share <= self.most_identities(number, share // of_stream)
            for number, share in enumerate(shares or self.share_out(identities, streams))
        )

    def _can_divide(self, identities: int, streams: int, shares: Sequence[int]) -> bool:
        """Return whether each dataset gets entire streams, at least one."""
        return streams >= len(self.fewest) and not any(share % (identities // streams) for share in shares)

    def list_fitting(self, identities: int, shares: Sequence[int] = (), ranks: int = 1) -> list[int]:
        """Return the numbers of streams that divide `identities`, are multiples of `ranks` and fit, ascending."""
        possible = self._list_possible(identities, ranks)
        return [streams for streams in possible if self.fits(identities, streams, shares)]

    def _list_possible(self, identities: int, ranks: int) -> list[int]:
        most = min(identities, sum(self.shards))
        return [streams for streams in range(ranks, most + 1, ranks) if not identities % streams]

    def choose(self, identities: int, shares: Sequence[int] = (), ranks: int = 1) -> int:
        """Return the number of streams of `batch.streams` = auto; if none fits, one for which the plan raises an error.

        It is the largest of which a step takes two identities: with one, two identities of a shard, which are always in
        the same stream, would never meet in a step. If only streams of one fit, it is the largest.
        """
        fitting = self.list_fitting(identities, shares, ranks)
        if fitting:
            return max([streams for streams in fitting if identities >= 2 * streams] or fitting)
        possible = self._list_possible(identities, ranks)
        return next((streams for streams in possible if self._can_divide(identities, streams, shares)), ranks)


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Divide `total` in proportion to the weights (Sainte-Laguë), with at least 1 for each."""
    parts = [1] * len(weights)
    for _ in range(total - len(weights)):
        parts[max(range(len(parts)), key=lambda i: weights[i] / (2 * parts[i] + 1))] += 1
    return parts
