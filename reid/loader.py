"""Shards -> uint8 batches: the plan realised, the same for any number of ranks and workers."""

from __future__ import annotations

import atexit
import contextlib
import math
import multiprocessing
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from reid.augment import Augmentation, Parameters, concatenate
from reid.manifest import MANIFEST_NAME, Split
from reid.plan import Plan, StreamSteps
from reid.pool import Pool
from reid.samples import DamagedData, Dropped, Identity, OnDamage, read_identities
from reid.storage import stamp_of

if TYPE_CHECKING:
    from reid.pixels import Pixels

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


@dataclass(frozen=True)
class _Damage:
    """An error on its way from a worker to the training process, without a worker's stack trace around it."""

    message: str


class _Streams(IterableDataset):
    """The streams of one rank, shared among its workers in consecutive blocks; one Batch per worker and step."""

    def __init__(
        self, loader: TrainLoader, streams: Sequence[int], start: tuple[int, int], epochs: int, dropped: Collection[int]
    ) -> None:
        self.loader, self.streams, self.start, self.epochs, self.dropped = loader, streams, start, epochs, dropped
        self.stamp = stamp_of(loader.root, MANIFEST_NAME)

    def __iter__(self) -> Iterator[Batch | _Damage]:
        worker = get_worker_info()
        streams = self.streams
        if worker is not None:
            _begin_worker()
            streams = np.array_split(np.array(streams), worker.num_workers)[worker.id].tolist()
        try:
            first_epoch, first_step = self.start
            for epoch in range(first_epoch, self.epochs):
                self._check_manifest()
                resumed = (first_step, self.dropped) if epoch == first_epoch else (0, ())
                yield from self.loader.read_streams(epoch, streams, *resumed)
        except (ValueError, OSError) as error:
            yield _Damage(str(error))

    def _check_manifest(self) -> None:
        if stamp_of(self.loader.root, MANIFEST_NAME) != self.stamp:
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
        parts = _start(_Streams(self, streams, start, epochs, dropped), workers)
        first_epoch, first_step = start
        for epoch in range(first_epoch, epochs):
            for step in range(first_step if epoch == first_epoch else 0, self.plan.steps_per_epoch):
                batch = join([_receive(parts) for _ in range(max(1, workers))])
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


def _start(dataset: IterableDataset, workers: int) -> Iterator[Any]:
    """The dataset's items, made by so many decoding processes, which end with the iterator or with the program."""
    others = multiprocessing.active_children()
    parts = iter(
        DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),  # or it would take a number from the global one
        )
    )
    _started.update(process for process in multiprocessing.active_children() if process not in others)
    _kill_at_exit()
    return parts


_started: WeakSet[BaseProcess] = WeakSet()


@cache
def _kill_at_exit() -> None:
    """An error that ends the program keeps iterators alive, and so their processes. multiprocessing then sends SIGTERM,
    which they ignore, and waits for them for ever; what is registered last comes first."""

    def kill() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report their death
        for process in _started:
            process.kill()

    atexit.register(kill)


def _begin_worker() -> None:
    """A decoding process uses one thread and leaves signals to the process that it serves: launchers and terminals send
    them to all, and the training could not end its step without data."""
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


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


def _receive(parts: Iterator[Any]) -> Any:
    """The next item of a DataLoader. DamagedData for damage that a worker met."""
    try:
        item = next(parts)
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        # A batch lies in memory that its worker hands over by a socket, if it is still there to do so.
        time.sleep(1)  # torch's own error, by the signal of a child's death, follows at once: here, and not later
        raise RuntimeError(f"DataLoader worker is gone: {error or type(error).__name__}") from error
    if isinstance(item, _Damage):
        raise DamagedData(item.message)
    return item


def explain_killed_worker(error: RuntimeError) -> str | None:
    """What to say about an error with which torch reports that a decoding process died; None for any other error.

    torch raises it from a signal handler, at whatever line the program is: only the program's outermost lines can
    catch it.
    """
    if "DataLoader worker" not in str(error):
        return None
    return (
        f"a decoding process was killed ({error}); if the machine ran out of memory, lower data.workers or "
        "data.pool_images"
    )


@dataclass(frozen=True)
class EvalBatch:
    """B images of an evaluation split: images (B, 3, H, W) uint8; index, pids, camids (B,) int64.

    index counts the split's images in storage order: each image of the split has one, on any rank and worker.
    """

    images: Tensor
    index: Tensor
    pids: Tensor
    camids: Tensor


class EvalLoader(IterableDataset):
    """Every image of some shards of a split once; junk (pid -1), which no protocol looks at, is left out.

    rows: only these identities, if given.

    A batch holds images of one shard, so an image's batch, and with it the last digit of its features, does not depend
    on the number of ranks and workers. Damage always stops: figures over a part of the images would be no figures.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split,
        shards: Sequence[int],
        pixels: Pixels,
        batch_size: int,
        rows: np.ndarray | None = None,
    ) -> None:
        self.root, self.split, self.shards, self.pixels, self.batch_size = root, split, shards, pixels, batch_size
        self.wanted = split.pids != -1
        if rows is not None:
            self.wanted &= np.isin(np.arange(len(split.pids)), rows)

    def batches(self, workers: int = 0) -> Iterator[EvalBatch]:
        workers = min(workers, len(self.shards))
        parts = _start(self, workers)
        with contextlib.suppress(StopIteration):
            while True:
                yield _receive(parts)

    def __iter__(self) -> Iterator[EvalBatch | _Damage]:
        worker = get_worker_info()
        shards = self.shards
        if worker is not None:
            _begin_worker()
            shards = self.shards[worker.id :: worker.num_workers]
        try:
            for shard in shards:
                images = self._images(shard)
                while entries := list(islice(images, self.batch_size)):
                    yield _stack(entries)
        except ValueError as error:
            yield _Damage(str(error))

    def _images(self, shard: int) -> Iterator[tuple[Tensor, int, int, int]]:
        first_image = np.cumsum(self.split.images) - self.split.images
        for identity in read_identities(self.root, self.split, [shard]):
            if not self.wanted[identity.row]:
                continue
            for i, camid in enumerate(identity.camids):
                pixels = self.pixels.decode(identity.image(i), identity.place(i))
                yield pixels, int(first_image[identity.row]) + i, identity.pid, camid


def _stack(entries: Sequence[tuple[Tensor, int, int, int]]) -> EvalBatch:
    images, index, pids, camids = zip(*entries, strict=True)
    return EvalBatch(torch.stack(images), torch.tensor(index), torch.tensor(pids), torch.tensor(camids))
