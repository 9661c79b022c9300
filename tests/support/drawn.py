"""Made-up input: a tiny dataset of drawn images, built into shards as a user would, and a malicious object."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from reid.data.manifest import Manifest
from shards.build import build
from shards.readers.market1501 import read

HEIGHT, WIDTH = 32, 16
TRAIN_IMAGES = (2, 3, 4, 5, 6, 7, 2, 3, 4, 5, 6, 7, 2, 3, 4, 5)  # images of each train identity


@dataclass(frozen=True)
class Drawn:
    """raw: images in Market-1501's layout; root: the shards made of them."""

    raw: Path
    root: Path
    manifest: Manifest

    def sources(self, split: str) -> list[list[Path]]:
        """The original file of each image, by row of the manifest and place in its identity."""
        files = []
        for shard in self.manifest.split(split).shards:
            with tarfile.open(self.root / shard.name) as tar:
                for member in tar:
                    if member.name.endswith(".json"):
                        images = json.load(tar.extractfile(member))["images"]
                        files.append([self.raw / image["source"] for image in images])
        return files


def draw_dataset(
    folder: Path,
    train_images: Sequence[int] = TRAIN_IMAGES,
    num_test: int = 6,
    num_shards: int = 8,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    seed: int = 0,
) -> Drawn:
    """Draw into `folder`/raw, build into `folder`/shards.

    Train identities have cameras 1 and 2 in turn. Each test identity has a query from camera 1 and gallery images from
    cameras 1, 2 and 3; the gallery holds 18 distractors and 5 junk images, too.
    """
    raw, rng = folder / "raw", np.random.default_rng(seed)

    def draw(subfolder: str, pid: int, camids: Sequence[int]) -> None:
        palette = np.random.default_rng([seed, pid + 1]).integers(0, 256, (4, 2, 3))  # what makes the identity
        for number, camid in enumerate(camids):
            blocks = palette if pid > 0 else rng.integers(0, 256, (4, 2, 3))
            large = blocks.repeat(-(-size[0] // 4), axis=0).repeat(-(-size[1] // 2), axis=1)[: size[0], : size[1]]
            pixels = (large + rng.normal(0, 25, large.shape)).clip(0, 255).astype(np.uint8)
            path = raw / subfolder / f"{f'{pid:04d}' if pid >= 0 else pid}_c{camid}s1_{number:06d}_01.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)

    train_pids = range(2, 2 + 3 * len(train_images), 3)  # with gaps, so that pid and label differ
    for pid, count in zip(train_pids, train_images, strict=True):
        draw("bounding_box_train", pid, [number % 2 + 1 for number in range(count)])
    for pid in range(1001, 1001 + num_test):
        draw("query", pid, [1])
        draw("bounding_box_test", pid, [1, 2, 3, 2])
    draw("bounding_box_test", 0, [number % 3 + 1 for number in range(18)])
    draw("bounding_box_test", -1, [1, 2, 3, 1, 2])
    built = build(read(raw), folder / "shards", dataset="drawn", num_shards=num_shards)
    return Drawn(raw, folder / "shards", built.manifest)


class Bomb:
    """Unpickling it creates the file `path`: what a malicious weights file would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")
