"""The plan of an epoch: (seed, epoch, stream) -> which identities and which of their images each step takes.

A pure function of counts, which opens no shard. An epoch is cut into S streams. S does not depend on the number of
ranks and workers, so the global batch of a step is the same on 1, 2, 4 or 8 GPUs. Each epoch the shards are permuted
and dealt to the streams. A stream cuts its identities' images into groups of K, and each of its steps takes P / S
groups of distinct identities. A stream that has used up its groups wraps into a new pass with a new shuffle. The plan
is made in arrays, without Python objects: an epoch of a million identities takes seconds.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush

import numpy as np

WINDOW = 512  # steps checked at once for a repeated identity


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

    def __post_init__(self) -> None:
        if self.identities % self.streams:
            raise ValueError(
                f"batch.identities = {self.identities} does not divide among batch.streams = {self.streams}"
            )
        total = int((self.image_counts > 0).sum())
        if total < self.identities:
            raise ValueError(
                f"batch.identities = {self.identities}, and only {total} identities are trained on; "
                f"{self._describe_fit()}"
            )
        if self.num_shards < self.streams:
            raise ValueError(
                f"{self.num_shards} training shards are too few for batch.streams = {self.streams}; rebuild with "
                f"--shards {self.streams} or more, or {self._describe_fit()}"
            )
        if self._most_identities(self.streams) < self.identities:
            raise ValueError(
                f"a stream may hold only {self._most_identities(self.streams) // self.streams} identities but "
                f"batch.identities / batch.streams = {self.groups_per_step} distinct ones are taken a step; "
                f"{self._describe_fit()}"
            )
        least = self.groups_per_step * self.images
        if 0 < self.pool_images < least:
            raise ValueError(
                f"data.pool_images = {self.pool_images} is less than the {least} images that a stream gives to a step; "
                f"use {16 * least} or more, or 0 for no bound"
            )

    @cached_property
    def _fewest(self) -> np.ndarray:
        """(shards + 1,): identities in the smallest 0, 1, 2, ... shards."""
        sizes = np.bincount(self.shard_of, self.image_counts > 0, minlength=self.num_shards).astype(np.int64)
        return np.cumsum([0, *np.sort(sizes)])

    def _most_identities(self, streams: int) -> int:
        """Return how many identities a step can take from so many streams, even if one has the smallest shards."""
        return streams * int(self._fewest[self.num_shards // streams])

    def _describe_fit(self) -> str:
        """Return the most streams that fit these identities, shards and ranks, or the most identities that fit."""
        possible = range(self.ranks, self.num_shards + 1, self.ranks)
        fitting = [s for s in possible if not self.identities % s and self.identities <= self._most_identities(s)]
        if fitting:
            return f"set batch.streams to {fitting[-1]}, the most that fits"
        best = [self.streams] if self.streams in possible else []
        best += [max(possible, key=lambda s: (self._most_identities(s), s))] if possible else []
        found = {s: self._most_identities(s) for s in best if self._most_identities(s)}
        if not found:
            return f"use at most {self.num_shards} ranks (batch.ranks, or processes)"
        return "set batch.identities to at most " + " or ".join(
            f"{most} with batch.streams = {streams}" for streams, most in found.items()
        )

    @property
    def images_per_step(self) -> float:
        """Images of the global batch, averaged over a pass: short groups have fewer than K."""
        short = self.images if self.repeat_short else np.minimum(self.image_counts, self.images)
        return float(self.identities * (self.groups * short).sum() / self.groups.sum())

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
        return [order[stream :: self.streams] for stream in range(self.streams)]

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

        chosen = _take_distinct(draw_owners, self.groups_per_step, self.steps_per_epoch)
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


def _take_distinct(draw_owners: Callable[[int], np.ndarray], per_step: int, steps: int) -> np.ndarray:
    """Return (steps, per_step) indices into the groups of all passes, one pass after the other.

    A step takes groups in order; a group whose identity it already has waits for the next step. If no group waits and
    no step repeats an identity, which is the usual case, a window of steps is taken at once.
    """
    queue = _Queue(draw_owners)
    chosen = np.empty((steps, per_step), dtype=np.int64)
    step = 0
    while step < steps:
        ahead = min(WINDOW, steps - step)
        clean = 0
        if not queue.first_waiting:
            clean = _count_distinct(queue.peek(ahead * per_step).reshape(ahead, per_step))
            chosen[step : step + clean] = queue.skip(clean * per_step).reshape(clean, per_step)
        if clean < ahead:
            chosen[step + clean] = queue.take_distinct(per_step)
            clean += 1
        step += clean
    return chosen


def _count_distinct(owners: np.ndarray) -> int:
    """Return how many of the steps (T, p), counted from the first, hold distinct owners."""
    ordered = np.sort(owners, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    return int(repeated.argmax()) if repeated.any() else len(owners)


class _Queue:
    """The groups of a stream by index, pass after pass, and those that wait; owners[i] is the owner of group i."""

    def __init__(self, draw_owners: Callable[[int], np.ndarray]) -> None:
        self.draw_owners, self.passes = draw_owners, 0
        self.owners = np.empty(0, dtype=np.int64)
        self.at = 0
        self.waiting: defaultdict[int, deque[int]] = defaultdict(deque)  # owner -> its groups that wait, in order
        self.first_waiting: list[tuple[int, int]] = []  # a heap: for each owner with such groups the first, and owner

    def peek(self, number: int) -> np.ndarray:
        """Return the owners of the next groups; passes are drawn as needed."""
        while len(self.owners) < self.at + number:
            self.owners = np.concatenate([self.owners, self.draw_owners(self.passes)])
            self.passes += 1
        return self.owners[self.at : self.at + number]

    def skip(self, number: int) -> np.ndarray:
        self.at += number
        return np.arange(self.at - number, self.at)

    def take_distinct(self, number: int) -> list[int]:
        """Return the next groups of distinct owners in order, those that wait before all others.

        Groups wait by owner: an owner with more groups than all others together makes most of them wait for most of
        the epoch, and searching them all at each step would be slow.
        """
        taken: dict[int, int] = {}  # owner -> group
        while self.first_waiting and len(taken) < number:
            _, owner = heappop(self.first_waiting)
            taken[owner] = self.waiting[owner].popleft()
        while len(taken) < number:
            owner, group = int(self.peek(1)[0]), self.at
            self.at += 1
            if taken.setdefault(owner, group) != group:
                self.waiting[owner].append(group)
        for owner in taken:
            if self.waiting[owner]:
                heappush(self.first_waiting, (self.waiting[owner][0], owner))
        return list(taken.values())
