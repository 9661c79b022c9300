"""Folders of shards as one train split: people and cameras are renumbered in memory, each shard keeps its folder."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, groupby

import numpy as np

from reid.data.manifest import MANIFEST_NAME, Manifest, Split, load_manifest
from reid.data.shard_reader import Dropped, Identity, read_sound_identities
from reid.data.storage import file_version


@dataclass(frozen=True, eq=False)
class Dataset:
    """A folder of shards, or its URL."""

    root: str
    label: str
    """Its name in tables and logs, which no other dataset of the training has."""
    manifest: Manifest

    @property
    def train(self) -> Split:
        """The images to train on. Raises ValueError, with the folder, if there are none."""
        if "train" not in self.manifest.splits:
            there = ", ".join(self.manifest.splits)
            raise ValueError(f"{self.root}: has no split train, only {there}; give data.root shards with train images")
        return self.manifest.split("train")


@dataclass(frozen=True, eq=False)
class Joined:
    """The train splits of one dataset or several. Rows and shards are counted through all of them."""

    datasets: tuple[Dataset, ...]
    """In an order that depends on their contents only."""

    @classmethod
    def load(cls, roots: Sequence[str]) -> Joined:
        """Read the manifests. Raises ValueError if two folders hold the same data."""
        manifests = {root: load_manifest(root) for root in roots}
        if len(manifests) < len(roots):
            raise ValueError(f"{', '.join(roots)}: a folder is there twice; give each dataset once")
        for (one, first), (other, second) in combinations(manifests.items(), 2):
            same_shards = {shard.sha256 for shard in first.shards} & {shard.sha256 for shard in second.shards}
            if same_shards or first.contents & second.contents:
                raise ValueError(f"{other}: holds the same data as {one}; give each dataset once")
        ordered = sorted(manifests.items(), key=lambda item: (item[1].dataset, item[1].fingerprint))
        labels = label_datasets([manifest for _, manifest in ordered])
        return cls(
            tuple(Dataset(root, label, manifest) for label, (root, manifest) in zip(labels, ordered, strict=True))
        )

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(dataset.label for dataset in self.datasets)

    @property
    def where(self) -> str:
        """The folders, for messages."""
        return ", ".join(dataset.root for dataset in self.datasets)

    @property
    def fingerprints(self) -> list[str]:
        return [dataset.manifest.fingerprint for dataset in self.datasets]

    @property
    def fingerprint(self) -> str:
        """The manifest's; of several datasets the hex sha256 of theirs."""
        several = len(self.datasets) > 1
        return hashlib.sha256("".join(self.fingerprints).encode()).hexdigest() if several else self.fingerprints[0]

    @cached_property
    def split(self) -> Split:
        """The identities of all train splits, one dataset after the other; that of a single dataset is unchanged."""
        if len(self.datasets) == 1:
            return self.datasets[0].train
        splits = [dataset.train for dataset in self.datasets]
        first_pids = _offsets(part.pids.max() + 1 for part in splits)
        return Split(
            shards=tuple(shard for part in splits for shard in part.shards),
            pids=np.concatenate(
                [_shift(part.pids, first) for part, first in zip(splits, first_pids[:-1], strict=True)]
            ),
            images=np.concatenate([part.images for part in splits]),
            shard=np.concatenate(
                [part.shard + first for part, first in zip(splits, self._first_shards[:-1], strict=True)]
            ),
            cameras=tuple(
                _shift_cameras(seen, first)
                for part, first in zip(splits, self._first_cameras[:-1], strict=True)
                for seen in part.cameras
            ),
            names=tuple(f"{dataset.label}/{name}" for dataset in self.datasets for name in dataset.train.names),
        )

    @cached_property
    def _first_rows(self) -> np.ndarray:
        """(datasets + 1,): row of the first identity of each dataset, then the number of rows."""
        return _offsets(len(dataset.train.pids) for dataset in self.datasets)

    @cached_property
    def _first_shards(self) -> np.ndarray:
        return _offsets(len(dataset.train.shards) for dataset in self.datasets)

    @cached_property
    def _first_cameras(self) -> np.ndarray:
        return _offsets(1 + max(map(max, dataset.train.cameras)) for dataset in self.datasets)

    @cached_property
    def dataset_of_shard(self) -> np.ndarray:
        """(shards,): place of each shard's dataset in `datasets`."""
        return np.repeat(np.arange(len(self.datasets)), np.diff(self._first_shards))

    @property
    def dataset_of_row(self) -> np.ndarray:
        """(N,): the same of each identity."""
        return np.repeat(np.arange(len(self.datasets)), np.diff(self._first_rows))

    def divide(self, rows: np.ndarray) -> list[np.ndarray]:
        """Cut an array (N, ...) of all identities into those of each dataset."""
        return np.split(rows, self._first_rows[1:-1])

    def read(self, shards: Sequence[int], wanted: Collection[int], lazily: bool) -> Iterator[Identity | Dropped]:
        """Yield as `read_sound_identities`, with the rows and cameras of `split`. Pids are those of the shards."""
        for number, group in groupby(shards, key=self.dataset_of_shard.__getitem__):
            row, end, shard = self._first_rows[number], self._first_rows[number + 1], self._first_shards[number]
            rows = {int(each - row) for each in wanted if row <= each < end}
            dataset = self.datasets[number]
            own = [int(each - shard) for each in group]
            for found in read_sound_identities(dataset.root, dataset.train, own, rows, lazily):
                if isinstance(found, Dropped):
                    yield Dropped(tuple(int(row) + each for each in found.rows), found.reason)
                else:
                    found.row += int(row)
                    found.camids = _shift_cameras(found.camids, int(self._first_cameras[number]))
                    yield found

    def root_of(self, shard: int) -> str:
        return self.datasets[self.dataset_of_shard[shard]].root

    def versions(self) -> list[object]:
        """Return a value for each manifest that changes when it is replaced; None for a remote one."""
        return [file_version(dataset.root, MANIFEST_NAME) for dataset in self.datasets]

    def check_versions(self, versions: Sequence[object]) -> None:
        """Raise ValueError if a manifest was replaced since `versions` was called."""
        for dataset, before, now in zip(self.datasets, versions, self.versions(), strict=True):
            if now != before:
                raise ValueError(
                    f"{dataset.root}: {MANIFEST_NAME} was replaced while this run read the shards; start a new run "
                    "on the new data, or restore the old data and resume"
                )


def plain_name(dataset: str) -> str:
    """Return the name of a dataset for folders, keys and metrics: ASCII letters, digits, - and _."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", dataset).strip("-") or "data"


def label_datasets(manifests: Sequence[Manifest]) -> list[str]:
    """Return the name of each dataset in tables and logs, which no other of them has."""
    names = [plain_name(manifest.dataset) for manifest in manifests]
    return [
        name if Counter(names)[name] == 1 else f"{name}-{manifest.fingerprint[:8]}"
        for name, manifest in zip(names, manifests, strict=True)
    ]


def _offsets(sizes: Iterable[int]) -> np.ndarray:
    return np.cumsum([0, *sizes])


def _shift_cameras(camids: Iterable[int], first: int) -> tuple[int, ...]:
    return tuple(camid + first if camid >= 0 else camid for camid in camids)


def _shift(pids: np.ndarray, first: int) -> np.ndarray:
    return np.where(pids >= 0, pids + first, pids)
