"""Read the batches of the plan from the shards: the same for any number of ranks and workers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from reid.config import DataConfig
from reid.data.augmentation import Augmentation, Changes, Parameters, concatenate
from reid.data.images import Pixels
from reid.data.joined import Joined
from reid.data.layout import Layout, build_layout
from reid.data.plan import Plan, StreamSteps
from reid.data.pool import Pool
from reid.data.shard_reader import DamagedData, Dropped, Identity
from reid.data.transfer import copy_to, move
from reid.data.workers import AHEAD, count_workers, describe_full_memory, receive, start_workers

STEPS_PER_BLOCK = 64  # steps whose augmentation is drawn at once


@dataclass(frozen=True)
class Batch:
    """B training images of one rank and step."""

    images: Tensor
    """(B, 3, H, W) uint8."""
    labels: Tensor
    """(B,) int64, classes from 0 to the number of trained identities - 1."""
    ids: Tensor
    """(B, 2) int64: row of the identity in the (joined) train split, index of its image."""
    camids: Tensor
    """(B,) int64: cameras; -1 is unknown."""
    changes: Changes
    """Of the augmentation."""
    sizes: tuple[int, ...] = ()
    """Images of each stream of the rank, which lie one stream after another."""
    layout: Layout | None = None
    """Of the global batch; None with data.on_damage = skip, when only the ranks together know what is left of it."""
    dropped: tuple[Dropped, ...] = ()
    """Damage that was found, and left out, since the step before."""

    def to(self, device: torch.device, pin: bool) -> Batch:
        """Return the batch on the device, but for its ids and camids. pin: from page-locked memory (see `copy_to`)."""
        labels, changes, layout = move((self.labels, self.changes, self.layout), device, pin)
        images = copy_to(self.images, device, pin)
        return replace(self, images=images, labels=labels, changes=changes, layout=layout)


class TrainLoader:
    """The batches of one rank, step after step and epoch after epoch.

    The global batch of (epoch, step) is a pure function of the manifests and the plan; this rank reads the part of its
    streams. Workers read ahead across the end of an epoch. With data.on_damage = skip a damaged identity is left out
    for the rest of the epoch, so that steps become smaller but not fewer.

    Args:
        rank: this process.
        world_size: W, the number of processes.
        ranks: V, the number of virtual ranks; default: W.
    """

    def __init__(
        self, data: DataConfig, joined: Joined, plan: Plan, augmentation: Augmentation, rank: int = 0,
        world_size: int = 1, ranks: int = 0,
    ) -> None:  # fmt: skip
        self.data, self.joined, self.plan, self.augmentation = data, joined, plan, augmentation
        self.rank, self.world_size, self.ranks = rank, world_size, ranks or world_size
        self.streams = plan.streams_of_rank(rank, world_size)
        self.pixels = Pixels.from_config(data)
        trained = plan.image_counts > 0
        pids = joined.split.pids
        self.labels = np.full(len(pids), -1)  # (N,) place of each trained pid among the sorted, -1 for others
        self.labels[trained] = np.unique(pids[trained], return_inverse=True)[1]
        self.slots = plan.groups_per_step * plan.images  # images of a stream in a step without short groups

    def batches(
        self, epochs: int, start: tuple[int, int] = (0, 0), dropped: Collection[int] = ()
    ) -> Iterator[tuple[int, int, Batch]]:
        """Yield (epoch, step, batch) from `start` up to the last step of epoch `epochs` - 1.

        Args:
            epochs: number of epochs of the training.
            start: first epoch and step.
            dropped: rows that were dropped earlier in the epoch of `start`.

        Raises:
            DamagedData: at the first damage; with on_damage = skip, if nothing of a step is left.
        """
        workers = count_workers(self.data.workers, len(self.streams))
        versions = self.joined.versions()
        shared = SharedImages(workers, -(-len(self.streams) // workers) * self.slots, self.pixels) if workers else None
        parts = start_workers(partial(self._read, start, epochs, dropped, versions, shared), workers)
        number = itertools.count()
        for epoch in range(start[0], epochs):
            for step in range(start[1] if epoch == start[0] else 0, self.plan.steps_per_epoch):
                received: list[Batch] = [receive(parts) for _ in range(max(1, workers))]
                if shared is not None:
                    received = shared.fill(received, next(number))
                batch = join(received)
                self._check_sizes(batch.sizes, f"{self.joined.where}: epoch {epoch + 1}, step {step + 1}")
                yield epoch, step, batch

    def _check_sizes(self, sizes: Sequence[int], where: str) -> None:
        """Raise DamagedData if a virtual rank has too few images for its BatchNorm. sizes: of this rank's streams."""
        share = self.ranks // self.world_size
        for number, left in enumerate(np.reshape(sizes, (share, -1)).sum(axis=1).tolist(), self.rank * share):
            if left < 2:
                lost = f"every identity of rank {number} is" if not left else f"all but one image of rank {number} are"
                raise DamagedData(
                    f"{where}: {lost} damaged; repair the shards, or lower batch.streams or batch.ranks so that a rank "
                    "reads more of them"
                )

    def _read(
        self, start: tuple[int, int], epochs: int, dropped: Collection[int], versions: Sequence[object],
        shared: SharedImages | None, worker: int, workers: int,
    ) -> Iterator[Batch]:  # fmt: skip
        """Yield the part of one worker, a block of consecutive streams, while the manifests have these versions.

        shared: takes the images, which are then left out of what is yielded.
        """
        streams = np.array_split(self.streams, workers)[worker].tolist()
        number = itertools.count()
        memory = None if shared is None else lambda: shared.place(worker, next(number))
        for epoch in range(start[0], epochs):
            self.joined.check_versions(versions)
            first, lost = (start[1], dropped) if epoch == start[0] else (0, ())
            knows_layout = worker == 0 and self.data.on_damage == "stop"
            planned = range(self.plan.streams) if knows_layout else streams
            plans = {stream: self.plan.stream_steps(epoch, stream) for stream in planned}
            layouts = self.layouts(list(plans.values()), first) if knows_layout else itertools.repeat(None)
            batches = self.read_streams(epoch, {stream: plans[stream] for stream in streams}, first, lost, memory)
            for batch, layout in zip(batches, layouts, strict=False):
                yield replace(batch, images=batch.images if shared is None else torch.empty(0), layout=layout)

    def layouts(self, plans: Sequence[StreamSteps], start: int = 0) -> Iterator[Layout]:
        """Yield the layout of each step's global batch from step `start`, from the plans of all streams of an epoch."""
        labels = self.labels[np.concatenate([steps.identities[start:] for steps in plans], axis=1)]  # (T, P)
        counts = np.concatenate([(steps.images[start:] >= 0).sum(axis=2) for steps in plans], axis=1)  # (T, P)
        for step in zip(labels, counts, strict=True):
            parts = zip(*(np.split(groups, self.ranks) for groups in step), strict=True)
            rows = [np.repeat(*part) for part in parts]
            slots, share = self.plan.identities // self.world_size, self.ranks // self.world_size
            yield build_layout(rows, self.rank, slots=slots, share=share)

    def read_streams(
        self, epoch: int, plans: Mapping[int, StreamSteps], start: int = 0, dropped: Collection[int] = (),
        memory: Callable[[], Tensor] | None = None,
    ) -> Iterator[Batch]:  # fmt: skip
        """Yield the part of some streams in each step of an epoch from `start`, without decoding earlier steps.

        plans: of the streams, by stream.
        memory: returns where the images of the next step are to be written; default: new memory.
        """
        size = len(plans) * self.slots
        pools = [Pool(self.joined, self.data.on_damage, steps, start, dropped) for steps in plans.values()]
        for step in range(start, self.plan.steps_per_epoch):
            if step == start or step % STEPS_PER_BLOCK == 0:
                parts = [self._draw_parameters(epoch, stream, step) for stream in plans]
                drawn = Parameters(*map(np.concatenate, zip(*parts, strict=True)))
            images = allocate_images((size,), self.pixels) if memory is None else memory()
            yield self._read_step(list(plans.values()), pools, step, drawn, images)
            for pool in pools:
                pool.release(step)

    def _draw_parameters(self, epoch: int, stream: int, step: int) -> Parameters:
        """Draw for all slots of STEPS_PER_BLOCK steps, `step` among them: drawing step by step would be much slower."""
        rng = self.plan.rng(epoch, stream, step // STEPS_PER_BLOCK, 1)
        return self.augmentation.draw(rng, STEPS_PER_BLOCK * self.slots, self.pixels.height, self.pixels.width)

    def _read_step(
        self, plans: Sequence[StreamSteps], pools: Sequence[Pool], step: int, drawn: Parameters, images: Tensor
    ) -> Batch:
        places = images.permute(0, 2, 3, 1).numpy()
        ids: list[tuple[int, int]] = []
        camids: list[int] = []
        slots: list[int] = []
        sizes: list[int] = []
        for number, (steps, pool) in enumerate(zip(plans, pools, strict=True)):
            slot = (number * STEPS_PER_BLOCK + step % STEPS_PER_BLOCK) * self.slots
            for reading, row, indices in zip(
                steps.readings[step].tolist(), steps.identities[step].tolist(), steps.images[step].tolist(), strict=True
            ):
                group = [i for i in indices if i >= 0]  # a short group has -1 at its end
                identity = pool.get(reading, row)
                if identity is not None and self._decode_group(identity, group, places[len(ids) :], pool):
                    ids += [(row, i) for i in group]
                    camids += [identity.camids[i] for i in group]
                    slots += range(slot, slot + len(group))
                slot += len(indices)
            sizes.append(len(ids) - sum(sizes))
        table = np.array(ids, dtype=np.int64).reshape(-1, 2)
        chosen = np.array(slots, dtype=np.int64)
        return Batch(
            images=images[: len(ids)],
            labels=torch.from_numpy(self.labels[table[:, 0]]),
            ids=torch.from_numpy(table),
            camids=torch.tensor(camids, dtype=torch.int64),
            changes=self.augmentation.expand(
                Parameters(*(column[chosen] for column in drawn)), self.pixels.height, self.pixels.width
            ),
            sizes=tuple(sizes),
            dropped=tuple(dropped for pool in pools for dropped in pool.take_unreported()),
        )

    def _decode_group(self, identity: Identity, group: list[int], places: np.ndarray, pool: Pool) -> bool:
        """Decode images `group` into the first of `places`. If one is damaged, drop the identity and return False."""
        try:
            for i, place in zip(group, places, strict=False):
                self.pixels.decode_into(place, identity.image(i), partial(identity.place, i))
        except ValueError as error:
            pool.drop(Dropped((identity.row,), str(error)))
            return False
        return True


def allocate_images(leading: tuple[int, ...], pixels: Pixels) -> Tensor:
    """Return (*leading, 3, H, W) uint8, channels last, as decoders write."""
    return torch.empty((*leading, pixels.height, pixels.width, 3), dtype=torch.uint8).movedim(-1, -3)


class SharedImages:
    """Shared memory through which decoding processes hand over the images of their batches.

    A process writes its batches to its own few places in turn. Sent through the queue, each batch would cost a new
    file in shared memory, and 1.5 ms of the training process to open it.

    Args:
        workers: decoding processes.
        rows: images of a process's part of a batch, at most.
        pixels: size of an image.
    """

    def __init__(self, workers: int, rows: int, pixels: Pixels) -> None:
        memory = allocate_images((workers, AHEAD + 2, rows), pixels)
        try:
            self.memory = memory.share_memory_()
        except RuntimeError as error:
            raise ValueError(describe_full_memory(memory.nbytes)) from error

    def place(self, worker: int, number: int) -> Tensor:
        """Return the memory (rows, 3, H, W) for the images of a worker's batch by its number, from 0."""
        return self.memory[worker, number % self.memory.shape[1]]

    def fill(self, parts: Sequence[Batch], number: int) -> list[Batch]:
        """Return the parts of all workers with their images. Workers soon overwrite these: `join` copies several."""
        images = [self.place(worker, number)[: len(part.ids)] for worker, part in enumerate(parts)]
        if len(images) == 1:
            images = [images[0].clone()]
        return [replace(part, images=own) for part, own in zip(parts, images, strict=True)]


def join(parts: Sequence[Batch]) -> Batch:
    """Concatenate the parts of one step. The layout is that of the first part."""
    if len(parts) == 1:
        return parts[0]
    names = ("images", "labels", "ids", "camids")
    images, labels, ids, camids = (torch.cat([getattr(part, name) for part in parts]) for name in names)
    changes = concatenate([part.changes for part in parts])
    sizes = tuple(size for part in parts for size in part.sizes)
    dropped = tuple(dropped for part in parts for dropped in part.dropped)
    return Batch(images, labels, ids, camids, changes, sizes, parts[0].layout, dropped)
