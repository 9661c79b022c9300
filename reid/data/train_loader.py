"""Shards -> uint8 batches: the plan realised, the same for any number of ranks and workers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from reid.data.augmentation import Augmentation, Parameters, concatenate
from reid.data.images import Pixels
from reid.data.manifest import MANIFEST_NAME, Split
from reid.data.plan import Plan, StreamSteps
from reid.data.pool import Pool
from reid.data.shard_reader import DamagedData, Dropped, Identity, OnDamage
from reid.data.storage import file_version
from reid.data.workers import WorkerError, begin_worker, receive, start_workers

STEPS_PER_DRAW = 64  # steps whose augmentation is drawn at once


@dataclass(frozen=True)
class Batch:
    """B training images of one rank and step.

    images (B, 3, H, W) uint8; labels (B,) int64 in [0, identities of the split); camids (B,) int64; ids (B, 2) int64:
    row of the identity in the manifest and index of its image; parameters of the augmentation; dropped: what was found
    damaged, and left out, since the step before.
    """

    images: Tensor
    labels: Tensor
    camids: Tensor
    ids: Tensor
    parameters: Parameters
    dropped: tuple[Dropped, ...] = ()


class _Streams(IterableDataset):
    """The streams of one rank, shared among its workers in consecutive blocks; one Batch per worker and step."""

    def __init__(
        self, loader: TrainLoader, streams: Sequence[int], start: tuple[int, int], epochs: int, dropped: Collection[int]
    ) -> None:
        self.loader, self.streams, self.start, self.epochs, self.dropped = loader, streams, start, epochs, dropped
        self.stamp = file_version(loader.root, MANIFEST_NAME)

    def __iter__(self) -> Iterator[Batch | WorkerError]:
        worker = get_worker_info()
        streams = self.streams
        if worker is not None:
            begin_worker()
            streams = np.array_split(np.array(streams), worker.num_workers)[worker.id].tolist()
        try:
            first_epoch, first_step = self.start
            for epoch in range(first_epoch, self.epochs):
                self._check_manifest()
                resumed = (first_step, self.dropped) if epoch == first_epoch else (0, ())
                yield from self.loader.read_streams(epoch, streams, *resumed)
        except (ValueError, OSError) as error:
            yield WorkerError(str(error))

    def _check_manifest(self) -> None:
        if file_version(self.loader.root, MANIFEST_NAME) != self.stamp:
            raise ValueError(
                f"{self.loader.root}: {MANIFEST_NAME} was replaced while this run read the shards; start a new run on "
                "the new data, or put the old data back and resume"
            )


@dataclass(frozen=True)
class TrainLoader:
    """Batches of one rank, step after step and epoch after epoch.

    The global batch of (epoch, step) is a pure function of the manifest and the plan; this rank gets the part of its
    streams. Workers run ahead across the end of an epoch. on_damage `stop` raises at the first damage; `skip` leaves
    the identity out for the rest of the epoch, so that steps get smaller but not fewer, and tells by Batch.dropped.
    """

    root: str | Path
    split: Split
    plan: Plan
    pixels: Pixels
    augmentation: Augmentation
    rank: int = 0
    world_size: int = 1
    workers: int = 0
    on_damage: OnDamage = "stop"

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) class of each identity: its place among the sorted pids that are trained on; -1 for the others."""
        return classes_of(self.split.pids, self.plan.image_counts > 0)

    def batches(
        self, epochs: int, start: tuple[int, int] = (0, 0), dropped: Collection[int] = ()
    ) -> Iterator[tuple[int, int, Batch]]:
        """(epoch, step, batch) from `start` up to the last step of epoch `epochs` - 1.

        dropped: rows that were dropped in the epoch of `start` before it. DamagedData on damage, or where `skip` leaves
        nothing of a step.
        """
        streams = self.plan.streams_of_rank(self.rank, self.world_size)
        workers = min(self.workers, len(streams))
        parts = start_workers(_Streams(self, streams, start, epochs, dropped), workers)
        first_epoch, first_step = start
        for epoch in range(first_epoch, epochs):
            for step in range(first_step if epoch == first_epoch else 0, self.plan.steps_per_epoch):
                batch = join([receive(parts) for _ in range(max(1, workers))])
                if not len(batch.ids):
                    raise DamagedData(
                        f"{self.root}: epoch {epoch}, step {step}: every identity of rank {self.rank} is damaged; "
                        "repair the shards, or lower batch.streams so that a rank reads more of them"
                    )
                yield epoch, step, batch

    def read_streams(
        self, epoch: int, streams: Sequence[int], start: int = 0, dropped: Collection[int] = ()
    ) -> Iterator[Batch]:
        """These streams' part of each step of an epoch from step `start`; what comes before is not decoded."""
        plans = [self.plan.stream_steps(epoch, stream) for stream in streams]
        pools = [Pool(self.root, self.split, steps, start, self.on_damage, dropped) for steps in plans]
        for step in range(start, self.plan.steps_per_epoch):
            if step == start or step % STEPS_PER_DRAW == 0:
                parameters = [self._draw_parameters(epoch, stream, step) for stream in streams]
                drawn = concatenate(parameters)
            yield self._read_step(plans, pools, step, drawn)
            for pool in pools:
                pool.release(step)

    @property
    def _slots(self) -> int:
        """Images that a stream gives to a step, if no group is short."""
        return self.plan.groups_per_step * self.plan.images

    def _draw_parameters(self, epoch: int, stream: int, step: int) -> Parameters:
        """For all slots of the STEPS_PER_DRAW steps around `step`: drawing step by step costs a tenth of the time."""
        rng = self.plan.rng(epoch, stream, step // STEPS_PER_DRAW, 1)
        return self.augmentation.draw(rng, STEPS_PER_DRAW * self._slots, self.pixels.height, self.pixels.width)

    def _read_step(self, plans: Sequence[StreamSteps], pools: Sequence[Pool], step: int, drawn: Parameters) -> Batch:
        images = _allocate(len(plans) * self._slots, self.pixels)
        places = images.unbind()  # at once: half the time of one by one
        ids: list[tuple[int, int]] = []
        camids: list[int] = []
        slots: list[int] = []
        for number, (steps, pool) in enumerate(zip(plans, pools, strict=True)):
            slot = (number * STEPS_PER_DRAW + step % STEPS_PER_DRAW) * self._slots
            for reading, row, indices in zip(
                steps.readings[step].tolist(), steps.identities[step].tolist(), steps.images[step].tolist(), strict=True
            ):
                group = [i for i in indices if i >= 0]  # a short group's blanks stand at its end
                identity = pool.get(reading, row)
                if identity is not None and self._decode_group(identity, group, places[len(ids) :], pool):
                    ids += [(row, i) for i in group]
                    camids += [identity.camids[i] for i in group]
                    slots += range(slot, slot + len(group))
                slot += len(indices)
        rows = np.array([row for row, _ in ids], dtype=np.int64)
        return Batch(
            images=images[: len(ids)],
            labels=torch.from_numpy(self.labels[rows]),
            camids=torch.tensor(camids, dtype=torch.int64),
            ids=torch.tensor(ids, dtype=torch.int64).reshape(-1, 2),
            parameters=drawn.select(torch.tensor(slots, dtype=torch.int64)),
            dropped=tuple(dropped for pool in pools for dropped in pool.take_news()),
        )

    def _decode_group(self, identity: Identity, group: list[int], into: Sequence[Tensor], pool: Pool) -> bool:
        """Images `group` of an identity to the front of `into`; False if one is damaged and the identity is dropped."""
        try:
            for i, place in zip(group, into, strict=False):
                place.copy_(self.pixels.decode(identity.image(i), identity.place(i)))
        except ValueError as error:
            pool.drop(Dropped((identity.row,), str(error)))
            return False
        return True


def classes_of(pids: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """(N,) place of each of the pids among the sorted pids of those `trained` (N,) bool; -1 for the others."""
    classes = np.full(len(pids), -1)
    classes[trained] = np.unique(pids[trained], return_inverse=True)[1]
    return classes


def _allocate(count: int, pixels: Pixels) -> Tensor:
    """(count, 3, H, W) uint8, channels last, as decoders write; a worker's in memory that the training process sees."""
    shape = count, pixels.height, pixels.width, 3
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8).permute(0, 3, 1, 2)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape).permute(0, 3, 1, 2)  # type: ignore[call-overload]


def join(parts: Sequence[Batch]) -> Batch:
    """Concatenate the parts of one step."""
    if len(parts) == 1:
        return parts[0]
    return Batch(
        images=torch.cat([part.images for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        camids=torch.cat([part.camids for part in parts]),
        ids=torch.cat([part.ids for part in parts]),
        parameters=concatenate([part.parameters for part in parts]),
        dropped=tuple(dropped for part in parts for dropped in part.dropped),
    )
