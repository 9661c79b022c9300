"""Shards -> uint8 batches: the plan realised through WebDataset, the same for any number of ranks and workers."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from reid.augment import Augmentation, Parameters, concatenate
from reid.manifest import Split
from reid.plan import Plan


@dataclass(frozen=True)
class Pixels:
    """How an encoded image becomes pixels: size in pixels, and the most pixels that a source may have."""

    height: int
    width: int
    max_pixels: int = 50_000_000

    def decode(self, data: bytes, where: str) -> np.ndarray:
        """Encoded image -> (height, width, 3) uint8 RGB. Errors (ValueError) name `where`."""
        try:
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > self.max_pixels:
                    raise ValueError(f"has {image.width} x {image.height} pixels, more than {self.max_pixels}")
                rgb = image.convert("RGB")
            if rgb.size != (self.width, self.height):
                rgb = rgb.resize((self.width, self.height), Image.Resampling.BILINEAR)
            return np.asarray(rgb)
        except Exception as error:  # Pillow raises many kinds; each means that this image cannot be used
            raise ValueError(f"{where}: image cannot be decoded: {error}") from error


@dataclass(frozen=True)
class Identity:
    """One WebDataset sample: an identity (or a group of distractors) with its encoded images."""

    row: int
    pid: int
    files: tuple[str, ...]
    camids: tuple[int, ...]
    data: tuple[bytes, ...]
    where: str


def read_shards(root: Path, split: Split, shards: Sequence[int]) -> Iterator[Identity]:
    """The identities of `shards` (indices into split.shards), in order, each checked against the manifest.

    A shard that holds other identities, other image counts or fewer identities than the manifest says is damaged:
    ValueError with the shard, the sample and the mend.
    """
    first_row = np.searchsorted(split.shard, np.arange(len(split.shards)))
    for shard in shards:
        name = split.shards[shard].name
        path = Path(root).resolve() / name
        seen, last = 0, "the start"
        try:
            # No splitter of WebDataset's: which rank and worker reads what is the plan's decision.
            for sample in wds.tarfile_to_samples()([{"url": str(path)}]):
                if seen == split.shards[shard].identities:
                    raise ValueError(f"sample {sample['__key__']} is not in the manifest")
                yield _identity(sample, split, int(first_row[shard]) + seen, name)
                seen, last = seen + 1, sample["__key__"]
        except GeneratorExit:
            raise
        except Exception as error:  # tarfile and the file system have many ways to say that a shard is unreadable
            # WebDataset appends the stream and the URL to what the error says.
            said = error.strerror if isinstance(error, OSError) else error.args[0] if error.args else None
            reason = str(said or type(error).__name__).split(" @ ")[0]
            raise ValueError(
                f"{path}: damaged shard, after {last}: {reason}; find out more with `python -m shards verify`"
            ) from error
        if seen != split.shards[shard].identities:
            raise ValueError(
                f"{path}: damaged shard: {seen} identities read, the manifest says {split.shards[shard].identities}; "
                "find out more with `python -m shards verify`"
            )


def _identity(sample: dict[str, Any], split: Split, row: int, shard: str) -> Identity:
    try:
        description = json.loads(sample["json"])
        pid = int(description["pid"])
        files = tuple(str(entry["file"]) for entry in description["images"])
        camids = tuple(int(entry["camid"]) for entry in description["images"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"sample {sample['__key__']}: its JSON is absent or damaged ({error})") from error
    if pid != split.pids[row] or len(files) != split.images[row]:
        raise ValueError(
            f"sample {sample['__key__']} says pid {pid} with {len(files)} images, "
            f"the manifest pid {split.pids[row]} with {split.images[row]}"
        )
    missing = [file for file in files if file not in sample]
    if missing:
        raise ValueError(f"sample {sample['__key__']} lacks the image {missing[0]}")
    return Identity(
        row=row,
        pid=pid,
        files=files,
        camids=camids,
        data=tuple(sample[file] for file in files),
        where=f"{shard}: {sample['__key__']}",
    )


@dataclass(frozen=True)
class Batch:
    """B training images of one rank and step.

    images (B, 3, H, W) uint8; labels (B,) int64 in [0, identities of the split); camids (B,) int64; ids (B, 2) int64:
    row of the identity in the manifest and index of its image; parameters of the augmentation.
    """

    images: Tensor
    labels: Tensor
    camids: Tensor
    ids: Tensor
    parameters: Parameters


@dataclass(frozen=True)
class _Damage:
    """An error on its way from a worker to the training process, without a worker's stack trace around it."""

    message: str


class _Streams(IterableDataset):
    """The streams of one rank, shared among its workers in consecutive blocks; one Batch per worker and step."""

    def __init__(self, loader: TrainLoader, streams: Sequence[int], start: tuple[int, int], epochs: int) -> None:
        self.loader, self.streams, self.start, self.epochs = loader, streams, start, epochs

    def __iter__(self) -> Iterator[Batch | _Damage]:
        worker = get_worker_info()
        streams = self.streams
        if worker is not None:
            torch.set_num_threads(1)
            streams = np.array_split(np.array(streams), worker.num_workers)[worker.id].tolist()
        try:
            first_epoch, first_step = self.start
            for epoch in range(first_epoch, self.epochs):
                skipped = first_step if epoch == first_epoch else 0
                for parts in zip(*(self.loader.read_stream(epoch, s, skipped) for s in streams), strict=True):
                    yield join(parts)
        except ValueError as error:
            yield _Damage(str(error))


@dataclass(frozen=True)
class TrainLoader:
    """Batches of one rank, step after step and epoch after epoch.

    The global batch of (epoch, step) is a pure function of the manifest and the plan; this rank gets the part of its
    streams. Workers run ahead across the end of an epoch.
    """

    root: Path
    split: Split
    plan: Plan
    pixels: Pixels
    augmentation: Augmentation
    rank: int = 0
    world_size: int = 1
    workers: int = 0

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) class of each identity: its place among the split's sorted pids."""
        return np.unique(self.split.pids, return_inverse=True)[1]

    def batches(self, epochs: int, start: tuple[int, int] = (0, 0)) -> Iterator[tuple[int, int, Batch]]:
        """(epoch, step, batch) from `start` up to the last step of epoch `epochs` - 1. Damage raises ValueError."""
        streams = self.plan.streams_of_rank(self.rank, self.world_size)
        workers = min(self.workers, len(streams))
        dataset = _Streams(self, streams, start, epochs)
        parts = iter(DataLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None))
        first_epoch, first_step = start
        for epoch in range(first_epoch, epochs):
            for step in range(first_step if epoch == first_epoch else 0, self.plan.steps_per_epoch):
                yield epoch, step, join([_checked(next(parts)) for _ in range(max(1, workers))])

    def read_stream(self, epoch: int, stream: int, start: int = 0) -> Iterator[Batch]:
        """The stream's part of each step of an epoch from step `start`; what comes before is read but not decoded.

        An identity's encoded images stay in memory from when its shard is read until the last step that uses it.
        """
        steps = self.plan.stream_steps(epoch, stream)
        last_use = {int(row): step for step, rows in enumerate(steps.identities) for row in rows}
        source = read_shards(self.root, self.split, steps.shards.tolist())
        pool: dict[int, Identity] = {}
        for step in range(start, len(steps.identities)):
            rows = [int(row) for row in steps.identities[step]]
            while any(row not in pool for row in rows):
                identity = next(source)
                if last_use.get(identity.row, -1) >= step:
                    pool[identity.row] = identity
            rng = self.plan.rng(epoch, stream, step, 1)
            yield self._decode([(pool[row], images) for row, images in zip(rows, steps.images[step], strict=True)], rng)
            for row in rows:
                if last_use[row] == step:
                    del pool[row]

    def _decode(self, groups: Sequence[tuple[Identity, np.ndarray]], rng: np.random.Generator) -> Batch:
        chosen = [(identity, int(i)) for identity, images in groups for i in images if i >= 0]
        images = np.stack([self.pixels.decode(x.data[i], f"{x.where}.{x.files[i]}") for x, i in chosen])
        rows = np.array([identity.row for identity, _ in chosen])
        return Batch(
            images=torch.from_numpy(images).permute(0, 3, 1, 2),
            labels=torch.from_numpy(self.labels[rows]),
            camids=torch.tensor([identity.camids[i] for identity, i in chosen]),
            ids=torch.tensor([(identity.row, i) for identity, i in chosen]),
            parameters=self.augmentation.draw(rng, len(chosen), self.pixels.height, self.pixels.width),
        )


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
    )


def _checked(item: Any) -> Any:
    if isinstance(item, _Damage):
        raise ValueError(item.message)
    return item


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
    """Every image of some shards of a split once; junk (pid -1), which no protocol looks at, is left out."""

    def __init__(self, root: Path, split: Split, shards: Sequence[int], pixels: Pixels, batch_size: int) -> None:
        self.root, self.split, self.shards, self.pixels, self.batch_size = root, split, shards, pixels, batch_size

    def batches(self, workers: int = 0) -> Iterator[EvalBatch]:
        workers = min(workers, len(self.shards))
        for item in DataLoader(self, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None):
            yield _checked(item)

    def __iter__(self) -> Iterator[EvalBatch | _Damage]:
        worker = get_worker_info()
        shards = self.shards
        if worker is not None:
            torch.set_num_threads(1)
            shards = self.shards[worker.id :: worker.num_workers]
        waiting: list[tuple[np.ndarray, int, int, int]] = []
        try:
            for entry in self._images(shards):
                waiting.append(entry)
                if len(waiting) == self.batch_size:
                    yield _stack(waiting)
                    waiting = []
            if waiting:
                yield _stack(waiting)
        except ValueError as error:
            yield _Damage(str(error))

    def _images(self, shards: Sequence[int]) -> Iterator[tuple[np.ndarray, int, int, int]]:
        first_image = np.cumsum(self.split.images) - self.split.images
        for identity in read_shards(self.root, self.split, shards):
            if identity.pid == -1:
                continue
            for i, (data, camid) in enumerate(zip(identity.data, identity.camids, strict=True)):
                pixels = self.pixels.decode(data, f"{identity.where}.{identity.files[i]}")
                yield pixels, int(first_image[identity.row]) + i, identity.pid, camid


def _stack(entries: Sequence[tuple[np.ndarray, int, int, int]]) -> EvalBatch:
    images, index, pids, camids = zip(*entries, strict=True)
    return EvalBatch(
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
        torch.tensor(index),
        torch.tensor(pids),
        torch.tensor(camids),
    )
