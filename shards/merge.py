"""Merge folders of shards into one: people and cameras are renumbered, the bytes of the images are not touched."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from reid.data.joined import Dataset, Joined
from reid.data.manifest import JUNK_PID, Manifest, Shard, Split, save_manifest
from reid.files import hash_file
from shards.output import FIX, check_name, replace_folder
from shards.pack import add_description, add_member, write_tar
from shards.records import SPLITS, UNKNOWN_CAMERA
from shards.verify import Verification, verify
from shards.write import check_free_space, explain_full_disk

DISTRACTOR = 0  # pid of the distractors of all datasets


@dataclass(frozen=True)
class _Source:
    """A dataset with what is added to its pids and cameras."""

    dataset: Dataset
    first_pid: int
    first_camera: int

    def pid(self, pid: int) -> int:
        if pid == self.dataset.manifest.distractor_pid:
            return DISTRACTOR
        return pid if pid == JUNK_PID else pid + self.first_pid

    def camera(self, camera: int) -> int:
        return camera if camera == UNKNOWN_CAMERA else camera + self.first_camera

    def name(self, name: str) -> str:
        return f"{self.dataset.label}/{name}"


def merge(roots: Sequence[str], out: Path, dataset: str = "merged") -> Verification:
    """Write the shards of several folders as one folder, and verify it. The order of the folders changes nothing.

    Each shard becomes a shard with the same identities. The manifest has the fingerprint of each dataset, and the name
    of an identity begins with its dataset's label.

    Args:
        roots: local folders of shards.
        out: a folder that is missing, is empty, or holds an earlier merge of the same name, which is replaced.
        dataset: name in keys and reports.

    Raises:
        ValueError: two folders hold the same data, a shard differs from its manifest, or `out` cannot be written.
    """
    check_name(dataset)
    out = out.resolve()
    if len(roots) < 2:
        raise ValueError(f"{', '.join(roots) or 'no folder'}: give two folders of shards or more")
    if out in [Path(root).resolve() for root in roots]:
        raise ValueError(f"--out {out}: is one of the folders that are merged; give another")
    sources = _number(Joined.load(roots).datasets)
    with explain_full_disk(out.parent, FIX), replace_folder(out, dataset) as temporary:
        check_free_space(out.parent, sum(s.bytes for each in sources for s in each.dataset.manifest.shards), FIX)
        names = [name for name in SPLITS if any(name in each.dataset.manifest.splits for each in sources)]
        splits = {name: _merge_split(name, sources, temporary) for name in names}
        save_manifest(_describe(sources, splits, dataset), temporary)
        result = verify(temporary)
        if result.damage:
            raise ValueError(f"{result.damage[0]}: the merged shards differ from what was written; check the disk")
    return replace(result, folder=out)


def _number(datasets: Sequence[Dataset]) -> list[_Source]:
    sources, camera = [], 0
    pid = int(any(dataset.manifest.distractor_pid is not None for dataset in datasets))  # DISTRACTOR is taken then
    for dataset in datasets:
        sources.append(_Source(dataset, pid, camera))
        splits = dataset.manifest.splits.values()
        pid += 1 + max(int(split.pids.max(initial=-1)) for split in splits)
        camera += 1 + max((each for split in splits for seen in split.cameras for each in seen), default=-1)
    return sources


def _merge_split(name: str, sources: Sequence[_Source], folder: Path) -> Split:
    parts = [(source, source.dataset.manifest.splits[name]) for source in sources
             if name in source.dataset.manifest.splits]  # fmt: skip
    shards: list[Shard] = []
    firsts = []
    total = sum(len(split.shards) for _, split in parts)
    with tqdm(total=total, desc=f"merging {name}", unit="shard", disable=None) as bar:
        for source, split in parts:
            firsts.append(len(shards))
            row = 0
            for shard in split.shards:
                path = folder / f"{name}-{len(shards):04d}.tar"
                shards.append(_copy_shard(Path(source.dataset.root) / shard.name, shard, path, source, name, row))
                row += shard.identities
                bar.update()
    return Split(
        shards=tuple(shards),
        pids=np.array([source.pid(pid) for source, split in parts for pid in split.pids.tolist()], dtype=np.int64),
        images=np.concatenate([split.images for _, split in parts]),
        shard=np.concatenate([split.shard + first for first, (_, split) in zip(firsts, parts, strict=True)]),
        cameras=tuple(tuple(map(source.camera, seen)) for source, split in parts for seen in split.cameras),
        names=tuple(source.name(identity) for source, split in parts for identity in split.names),
    )


def _copy_shard(origin: Path, shard: Shard, target: Path, source: _Source, split: str, row: int) -> Shard:
    """Write a shard with other keys, pids and cameras. row: of its first identity in the split of its dataset."""
    _check_bytes(origin, shard)
    key, row = "", row - 1
    with tarfile.open(origin) as tar, write_tar(target) as (merged, sink):
        for member in tar:
            data = tar.extractfile(member).read()  # type: ignore[union-attr]  # the sha256 is right: all are files
            _, _, file = member.name.partition(".")
            if file == "json":
                row += 1
                key = f"{source.dataset.label}-{split}-{row:06d}"
                add_description(merged, key, _renumber(json.loads(data), source))
            else:
                add_member(merged, f"{key}.{file}", data)
            tar.members.clear()  # type: ignore[attr-defined]  # or tarfile keeps every member in memory
    return Shard(target.name, sink.sha256.hexdigest(), sink.length, shard.identities, shard.images)


def _check_bytes(path: Path, shard: Shard) -> None:
    try:
        same = hash_file(path) == shard.sha256
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}; copy it again, or build again") from error
    if not same:
        raise ValueError(f"{path}: sha256 differs from its manifest's; copy it again, or build again")


def _renumber(sample: Mapping[str, Any], source: _Source) -> dict[str, Any]:
    """Return the JSON of an identity with its new numbers, and names that begin with the label of its dataset."""
    images = [
        image | {"camid": source.camera(image["camid"]), "source": source.name(image["source"])}
        for image in sample["images"]
    ]
    kept = {name: value for name, value in sample.items() if name != "checksum"}
    return kept | {"pid": source.pid(sample["pid"]), "name": source.name(sample["name"]), "images": images}


def _describe(sources: Sequence[_Source], splits: dict[str, Split], dataset: str) -> Manifest:
    manifests = {source.dataset.label: source.dataset.manifest for source in sources}
    origins: dict[str, str] = {}
    for label, manifest in manifests.items():
        inside = {f"{label}/{name}": fingerprint for name, fingerprint in manifest.origins.items()}
        origins |= inside or {label: manifest.fingerprint}
    encodings = {label: manifest.encoding for label, manifest in manifests.items() if manifest.encoding}
    return Manifest(
        dataset,
        splits,
        DISTRACTOR if any(manifest.distractor_pid is not None for manifest in manifests.values()) else None,
        " ".join(f"{label}: {manifest.notice}" for label, manifest in manifests.items()),
        tuple(
            skipped | {"source": source.name(skipped["source"])}
            for source in sources
            for skipped in source.dataset.manifest.skipped
        ),
        "; ".join(f"{label}: {encoding}" for label, encoding in encodings.items()),
        origins,
    )
