"""The plan of an epoch: (seed, epoch, stream) -> which identities and which of their images each step takes.

A pure function of counts, which opens no shard. An epoch is cut into S streams. S does not depend on the number of
ranks and workers, so the global batch of a step is the same on 1, 2, 4 or 8 GPUs. Each epoch the shards are permuted
and dealt to the streams, of which each reads one dataset. A stream cuts its identities' images into groups of K, and
each of its steps takes P / S groups of distinct identities. A stream that has used up its groups wraps into a new pass
with a new shuffle. The plan is made in arrays, without Python objects: an epoch of a million identities takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from reid.data.distinct import take_distinct
from reid.data.streams import Stock


@dataclass(frozen=True)
class StreamSteps:
    """What one stream reads in one epoch: T steps, p = P / S groups a step."""

    shards: np.ndarray
    """Shard indices in reading order."""
    identities: np.ndarray
    """(T, p): rows of the manifest."""
    images: np.ndarray
    """(T, p, K): indices within the identity, -1 if a short identity has no more."""
    passes: np.ndarray
    """(T, p): 0 before the stream wraps, then 1, 2, ..."""
    readings: np.ndarray
    """(T, p): the reading of the shards that each group comes from: its pass with a bounded pool, otherwise 0."""


@dataclass(frozen=True)
class Plan:
    """The counts and knobs that determine every batch of a training run."""

    image_counts: np.ndarray
    """(N,): images of each identity, 0 for one that is not trained on."""
    shard_of: np.ndarray
    """(N,): shard of each identity, non-decreasing (storage order)."""
    num_shards: int
    identities: int
    """P, of the global batch."""
    images: int
    """K, images of a group."""
    streams: int
    """S."""
    seed: int = 0
    repeat_short: bool = False
    """Fill the groups of identities with fewer than K images by repeating images; otherwise they are short."""
    steps: int = 0
    """Steps per epoch, 0 for one pass."""
    pool_images: int = 0
    """About how many encoded images a stream keeps in memory. It shuffles its groups within a window of that width and
    reads on as it goes. With 0, or at least as many as the stream has, the entire stream is shuffled."""
    ranks: int = 1
    """Virtual ranks that share the streams: for messages only, they change no batch."""
    datasets: np.ndarray | None = None
    """(shards,): dataset of each shard, from 0; default: all are of one."""
    given_shares: tuple[int, ...] = ()
    """Identities of each dataset in a step; default: in proportion to the identities that it has."""
    labels: tuple[str, ...] = ("",)
    """Names of the datasets, for messages."""

    def __post_init__(self) -> None:
        if self.identities % self.streams:
            raise ValueError(
                f"batch.identities = {self.identities} does not divide among batch.streams = {self.streams}"
            )
        if self.streams < len(self.labels):
            raise ValueError(
                f"batch.streams = {self.streams} is less than the {len(self.labels)} datasets, and a stream reads one; "
                f"{self._describe_fit()}"
            )
        for number, (label, share) in enumerate(zip(self.labels, self.shares, strict=True)):
            self._check_share(number, f"{label}: " if label else "", share)
        least = self.groups_per_step * self.images
        if 0 < self.pool_images < least:
            raise ValueError(
                f"data.pool_images = {self.pool_images} is less than the {least} images that a stream gives to a step; "
                f"use {16 * least} or more, or 0 for no bound"
            )

    def _check_share(self, number: int, who: str, share: int) -> None:
        """Raise ValueError if a step cannot take `share` identities of a dataset."""
        of_stream = self.groups_per_step
        if share % of_stream:
            raise ValueError(
                f"{who}its share of {share} in batch.shares is not a multiple of batch.identities / batch.streams = "
                f"{of_stream}, as a stream reads one dataset; {self._describe_fit()}"
            )
        streams, total, shards = share // of_stream, self.stock.identities[number], self.stock.shards[number]
        if total < share:
            what = "a share" if who else "batch.identities"
            raise ValueError(
                f"{who}{what} = {share}, and only {total} identities are trained on; {self._describe_fit()}"
            )
        if shards < streams:
            whole = f" ({streams} of them for this dataset)" if who else ""
            raise ValueError(
                f"{who}{shards} training shards are too few for batch.streams = {self.streams}{whole}; rebuild with "
                f"--shards {streams} or more, or {self._describe_fit()}"
            )
        if (most := self.stock.most_identities(number, streams)) < share:
            raise ValueError(
                f"{who}a stream may hold only {most // streams} identities but batch.identities / batch.streams = "
                f"{of_stream} distinct ones are taken a step; {self._describe_fit()}"
            )

    @cached_property
    def stock(self) -> Stock:
        return Stock.count(self.image_counts, self.shard_of, self._dataset_of_shard)

    @cached_property
    def _dataset_of_shard(self) -> np.ndarray:
        return np.zeros(self.num_shards, dtype=np.int64) if self.datasets is None else self.datasets

    @cached_property
    def shares(self) -> tuple[int, ...]:
        """Identities of each dataset in a step."""
        return self.given_shares or self.stock.share_out(self.identities, self.streams)

    def _describe_fit(self) -> str:
        """Return the most streams that fit these identities, shards and ranks, or the most identities that fit."""
        if fitting := self.stock.list_fitting(self.identities, self.given_shares, self.ranks):
            return f"set batch.streams to {fitting[-1]}, the most that fits, or to auto"
        if len(self.labels) > 1:
            return "lower batch.identities, or give other batch.shares"
        possible = range(self.ranks, self.num_shards + 1, self.ranks)
        best = [self.streams] if self.streams in possible else []
        best += [max(possible, key=lambda s: (self.stock.most_identities(0, s), s))] if possible else []
        found = {s: most for s in best if (most := self.stock.most_identities(0, s))}
        if not found:
            return f"use at most {self.num_shards} ranks (batch.ranks, or processes)"
        return "set batch.identities to at most " + " or ".join(
            f"{most} with batch.streams = {streams}" for streams, most in found.items()
        )

    @property
    def images_per_step(self) -> float:
        """Images of the global batch, averaged over a pass: short groups have fewer than K."""
        short = self.images if self.repeat_short else np.minimum(self.image_counts, self.images)
        images, of = self.groups * short, self._dataset_of_shard[self.shard_of]
        return sum(
            float(share * images[of == number].sum() / self.groups[of == number].sum())
            for number, share in enumerate(self.shares)
        )

    @property
    def groups_per_step(self) -> int:
        """p, the number of identities that one stream contributes to a step."""
        return self.identities // self.streams

    @cached_property
    def groups(self) -> np.ndarray:
        """(N,) number of groups of each identity in one pass; a remainder below K is left out."""
        return np.where(self.image_counts > 0, np.maximum(1, self.image_counts // self.images), 0)

    @property
    def steps_per_epoch(self) -> int:
        return self.steps or max(1, int(self.groups.sum()) // self.identities)

    def streams_of_rank(self, rank: int, world_size: int) -> range:
        """Return consecutive streams: batches concatenated in rank order are then the same for every world size."""
        if self.streams % world_size:
            raise ValueError(f"batch.streams = {self.streams} does not divide among {world_size} ranks")
        share = self.streams // world_size
        return range(rank * share, (rank + 1) * share)

    def deal(self, epoch: int) -> list[np.ndarray]:
        """Return the shards of each stream in this epoch, in reading order: a new permutation, dealt in turn."""
        order = self.rng(epoch).permutation(self.num_shards)
        dealt: dict[int, np.ndarray] = {}
        for number in range(len(self.labels)):
            shards = order[self._dataset_of_shard[order] == number]
            streams = np.flatnonzero(self.dataset_of_stream == number).tolist()
            dealt |= {stream: shards[place :: len(streams)] for place, stream in enumerate(streams)}
        return [dealt[stream] for stream in range(self.streams)]

    @cached_property
    def dataset_of_stream(self) -> np.ndarray:
        """(S,): the dataset that each stream reads. Those of a dataset are spread, so that a rank reads from several.

        Otherwise the BatchNorm statistics and local triplets of a rank would be those of a single dataset.
        """
        streams = np.array(self.shares) // self.groups_per_step
        dataset = np.repeat(np.arange(len(streams)), streams)
        place = np.concatenate([(np.arange(count) + 0.5) / count for count in streams])
        return dataset[np.argsort(place, kind="stable")]

    def rng(self, *key: int) -> np.random.Generator:
        """Return a generator that depends only on the seed and `key` (epoch, stream, pass or step)."""
        return np.random.default_rng([self.seed, *key])

    def stream_steps(self, epoch: int, stream: int) -> StreamSteps:
        """Return all steps of one stream in one epoch."""
        shards = self.deal(epoch)[stream]
        rows = np.concatenate([np.arange(self._first_row[s], self._first_row[s + 1]) for s in shards])
        bounded = 0 < self.pool_images < self.image_counts[rows].sum()
        drawn: list[tuple[np.ndarray, np.ndarray]] = []

        def draw_owners(number: int) -> np.ndarray:
            drawn.append(self._draw_pass(self.rng(epoch, stream, number), rows, bounded))
            return drawn[-1][0]

        chosen = take_distinct(draw_owners, self.groups_per_step, self.steps_per_epoch)
        owners, images = zip(*drawn, strict=True)
        passes = np.repeat(np.arange(len(drawn), dtype=np.int32), [len(owner) for owner in owners])[chosen]
        return StreamSteps(
            shards=shards,
            identities=rows[np.concatenate(owners)[chosen]],
            images=np.concatenate(images)[chosen],
            passes=passes,
            readings=passes if bounded else np.zeros_like(passes),
        )

    @cached_property
    def _first_row(self) -> np.ndarray:
        return np.searchsorted(self.shard_of, np.arange(self.num_shards + 1))

    def _draw_pass(self, rng: np.random.Generator, rows: np.ndarray, bounded: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the G groups of the identities `rows` in random order, with those of an identity spread evenly.

        They are given by owner (G,), indices into `rows`, and images (G, K), see StreamSteps.

        Group j of an identity with g groups is placed at (j + u_j) / g: the order is random, but large identities do
        not collect at the end of the pass, where too few distinct ones would remain to fill a step. With a bounded
        pool the unit is a window of pool_images, which begins at the identity's images in reading order: at every
        position, the identities whose window is open have about pool_images images.
        """
        counts, k = self.image_counts[rows], self.images
        groups = self.groups[rows]
        owner = np.repeat(np.arange(len(rows)), groups)
        ordinal = np.arange(len(owner)) - np.repeat(np.cumsum(groups) - groups, groups)
        first = np.cumsum(counts) - counts
        place = (ordinal + rng.random(len(owner))) / groups[owner]
        if bounded:
            place = first[owner] + place * self.pool_images
        order = np.argsort(place, kind="stable")
        owner, ordinal = owner[order], ordinal[order]
        nth = ordinal[:, None] * k + np.arange(k)
        size = counts[owner][:, None]
        shuffled = _shuffle_each(rng, counts)
        images = shuffled[first[owner][:, None] + nth % size]
        return owner, images if self.repeat_short else np.where(nth < size, images, -1)


def _shuffle_each(rng: np.random.Generator, counts: np.ndarray) -> np.ndarray:
    """Return (sum of counts,) int32: for each identity in turn its image indices, 0 to count - 1, shuffled."""
    owner = np.repeat(np.arange(len(counts)), counts)
    order = np.argsort(owner + rng.random(len(owner)), kind="stable")
    return (order - (np.cumsum(counts) - counts)[owner]).astype(np.int32)
