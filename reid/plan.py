"""The plan of an epoch: (seed, epoch, stream) -> which identities and which of their images each step takes.

Pure: from counts alone, without opening a shard. An epoch is cut into S streams, S independent of the number of ranks
and workers, so the global batch of a step is the same on 1, 2, 4 or 8 GPUs. Each epoch the shards are permuted and
dealt to the streams; a stream cuts its identities' images into groups of K and each of its steps takes P / S groups
of distinct identities. A stream that has used up its groups wraps into a new pass with a new shuffle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StreamSteps:
    """What one stream reads in one epoch; T steps, p = P / S groups a step.

    shards: shard indices in reading order; identities (T, p): rows of the manifest; images (T, p, K): indices within
    the identity, -1 where a short identity has no more; passes (T, p): 0 before the stream wraps, then 1, 2, ...
    """

    shards: np.ndarray
    identities: np.ndarray
    images: np.ndarray
    passes: np.ndarray


@dataclass(frozen=True)
class Plan:
    """The counts and knobs that determine every batch of a training run.

    image_counts (N,): images of each identity; shard_of (N,): its shard, non-decreasing (storage order). `identities`
    is P, of the global batch; `images` is K; `streams` is S. `repeat_short` fills the groups of identities with fewer
    than K images by repeating images; otherwise such groups are short. `steps` per epoch, 0 for one pass.
    """

    image_counts: np.ndarray
    shard_of: np.ndarray
    num_shards: int
    identities: int
    images: int
    streams: int
    seed: int = 0
    repeat_short: bool = False
    steps: int = 0

    def __post_init__(self) -> None:
        if self.identities % self.streams:
            raise ValueError(
                f"batch.identities = {self.identities} does not divide among batch.streams = {self.streams}"
            )
        if self.num_shards < self.streams:
            raise ValueError(
                f"{self.num_shards} training shards are too few for batch.streams = {self.streams}; rebuild with "
                f"--shards {self.streams} or more, or set batch.streams to at most {self.num_shards}"
            )
        fewest = self._fewest_identities()
        if fewest < self.groups_per_step:
            raise ValueError(
                f"a stream may hold only {fewest} identities but batch.identities / batch.streams = "
                f"{self.groups_per_step} distinct ones are taken a step; lower batch.identities or batch.streams"
            )

    def _fewest_identities(self) -> int:
        """Identities of the poorest possible deal: a stream that gets the smallest shards."""
        sizes = np.sort(np.bincount(self.shard_of, minlength=self.num_shards))
        return int(sizes[: self.num_shards // self.streams].sum())

    @property
    def groups_per_step(self) -> int:
        """p: identities that one stream contributes to a step."""
        return self.identities // self.streams

    @property
    def groups(self) -> np.ndarray:
        """(N,) groups that each identity gives in one pass; a remainder below K waits for another epoch's shuffle."""
        return np.maximum(1, self.image_counts // self.images)

    @property
    def steps_per_epoch(self) -> int:
        return self.steps or max(1, int(self.groups.sum()) // self.identities)

    def streams_of_rank(self, rank: int, world_size: int) -> range:
        """Consecutive streams, so that batches concatenated in rank order are the same for every world size."""
        if self.streams % world_size:
            raise ValueError(f"batch.streams = {self.streams} does not divide among {world_size} ranks")
        share = self.streams // world_size
        return range(rank * share, (rank + 1) * share)

    def deal(self, epoch: int) -> list[np.ndarray]:
        """The shards of each stream in this epoch, in reading order: a fresh permutation dealt round."""
        order = self.rng(epoch).permutation(self.num_shards)
        return [order[stream :: self.streams] for stream in range(self.streams)]

    def rng(self, *key: int) -> np.random.Generator:
        """A generator that depends on the seed and `key` (epoch, stream, pass or step) alone."""
        return np.random.default_rng([self.seed, *key])

    def stream_steps(self, epoch: int, stream: int) -> StreamSteps:
        """All steps of one stream in one epoch."""
        steps, per_step = self.steps_per_epoch, self.groups_per_step
        shards = self.deal(epoch)[stream]
        rows = np.concatenate([np.flatnonzero(self.shard_of == shard) for shard in shards])
        chosen = list(_distinct_per_step(self._groups_forever(epoch, stream, rows), per_step, steps))
        passes, identities, images = zip(*chosen, strict=True)
        return StreamSteps(
            shards=shards,
            identities=np.array(identities, dtype=np.int64).reshape(steps, per_step),
            images=np.stack(images).reshape(steps, per_step, self.images),
            passes=np.array(passes, dtype=np.int64).reshape(steps, per_step),
        )

    def _groups_forever(self, epoch: int, stream: int, rows: np.ndarray) -> Iterator[_Group]:
        """The stream's groups, pass after pass; within a pass an identity's groups are spread evenly.

        An identity with g groups is placed at (j + u_j) / g, j < g: the order is random, yet large identities do not
        pile up at the end of the pass, where too few distinct ones would be left to fill a step.
        """
        groups = self.groups[rows]
        owner = np.repeat(np.arange(len(rows)), groups)
        ordinal = np.arange(len(owner)) - np.repeat(np.cumsum(groups) - groups, groups)
        number = 0
        while True:
            rng = self.rng(epoch, stream, number)
            order = np.argsort((ordinal + rng.random(len(owner))) / groups[owner], kind="stable")
            shuffles = [rng.permutation(self.image_counts[row]) for row in rows]
            for index in order:
                row = owner[index]
                yield number, int(rows[row]), self._group_images(shuffles[row], int(ordinal[index]))
            number += 1

    def _group_images(self, shuffle: np.ndarray, ordinal: int) -> np.ndarray:
        k = self.images
        if len(shuffle) >= k:
            return shuffle[ordinal * k : (ordinal + 1) * k]
        if self.repeat_short:
            return np.resize(shuffle, k)
        return np.concatenate([shuffle, np.full(k - len(shuffle), -1)])


_Group = tuple[int, int, np.ndarray]  # pass, identity row, images (K,)


def _distinct_per_step(groups: Iterator[_Group], per_step: int, steps: int) -> Iterator[_Group]:
    """Take `per_step` groups of distinct identities a step; one that would meet itself waits for the next step."""
    waiting: list[_Group] = []
    for _ in range(steps):
        used: set[int] = set()
        still_waiting: list[_Group] = []
        queue, waiting = iter(waiting), still_waiting
        while len(used) < per_step:
            group = next(queue, None) or next(groups)
            if group[1] in used:
                still_waiting.append(group)
            else:
                used.add(group[1])
                yield group
