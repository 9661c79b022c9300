"""Read the images of a split in storage order, for feature extraction, and single images for figures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from reid.data.images import Pixels
from reid.data.manifest import JUNK_PID, Manifest, Split
from reid.data.shard_reader import read_identities
from reid.data.workers import count_workers, receive, start_workers


class Decoder(Protocol):
    """What decodes images, as `Pixels` does."""

    def decode(self, data: memoryview, name: str) -> Tensor:
        """Return an image (3, H, W) uint8. name: for errors."""


def kept_places(manifest: Manifest, split: str) -> np.ndarray:
    """Return (N,) the places in storage order of the images that have features: all but junk."""
    part = manifest.split(split)
    return np.flatnonzero(np.repeat(part.pids != JUNK_PID, part.images))


@dataclass(frozen=True)
class EvalBatch:
    """B images of an evaluation split."""

    images: Tensor
    """(B, 3, H, W) uint8."""
    index: Tensor
    """(B,) int64: place of each image in the split's storage order, the same on any rank and worker."""
    pids: Tensor
    """(B,) int64, as camids."""
    camids: Tensor


class EvalLoader:
    """Each image of some shards of a split once, except junk (pid -1), which no protocol uses.

    A batch holds images of one shard, so the batch of an image, and with it the last digit of its features, does not
    depend on the number of ranks and workers. Damage always raises: metrics over a part of the images are meaningless.

    Args:
        shards: indices into split.shards.
        rows: if given, read only these identities.
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
        self.wanted = split.pids != JUNK_PID
        if rows is not None:
            self.wanted &= np.isin(np.arange(len(split.pids)), rows)

    def batches(self, workers: int | str = 0) -> Iterator[EvalBatch]:
        parts = start_workers(self._read, count_workers(workers, len(self.shards)))
        with contextlib.suppress(StopIteration):
            while True:
                yield receive(parts)

    def _read(self, worker: int, workers: int) -> Iterator[EvalBatch]:
        for shard in self.shards[worker::workers]:
            images = self._images(shard)
            while entries := list(islice(images, self.batch_size)):
                pixels, *labels = zip(*entries, strict=True)
                yield EvalBatch(torch.stack(pixels), *map(torch.tensor, labels))

    def _images(self, shard: int) -> Iterator[tuple[Tensor, int, int, int]]:
        first_image = np.cumsum(self.split.images) - self.split.images
        for identity in read_identities(self.root, self.split, [shard]):
            if not self.wanted[identity.row]:
                continue
            for i, camid in enumerate(identity.camids):
                pixels = self.pixels.decode(identity.image(i), identity.place(i))
                yield pixels, int(first_image[identity.row]) + i, identity.pid, camid


def read_images(
    root: str | Path, manifest: Manifest, split: str, index: Sequence[int], pixels: Decoder
) -> list[np.ndarray]:
    """Return the images (H, W, 3) uint8 at `index`, places in storage order; opens only the shards that hold them."""
    return [image for image, _ in read_named_images(root, manifest, split, index, pixels)]


def read_named_images(
    root: str | Path, manifest: Manifest, split: str, index: Sequence[int], pixels: Decoder
) -> list[tuple[np.ndarray, str]]:
    """Return the images as `read_images`, each with the file of the dataset that it was made from."""
    part = manifest.split(split)
    ends = np.cumsum(part.images)
    rows = np.searchsorted(ends, np.asarray(index), side="right")
    wanted: dict[int, list[int]] = {}
    for place, row in zip(index, rows, strict=True):
        wanted.setdefault(int(row), []).append(int(place))
    found: dict[int, tuple[np.ndarray, str]] = {}
    for identity in read_identities(root, part, sorted({int(part.shard[row]) for row in wanted})):
        for place in wanted.get(identity.row, []):
            i = place - int(ends[identity.row] - part.images[identity.row])
            image = pixels.decode(identity.image(i), identity.place(i)).permute(1, 2, 0).numpy()
            found[place] = image, identity.sources[i] or f"{identity.key}.{identity.files[i]}"
    return [found[int(place)] for place in index]
