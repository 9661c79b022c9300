"""The build of a folder of shards from a raw dataset: in a temporary folder next to it, renamed at the end."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reid.data.manifest import Manifest, Split, save_manifest
from reid.files import warn_of_links
from shards.boxes import Cropping
from shards.checks import run_checks
from shards.dealing import lay_out
from shards.images import Encoding, describe_storage
from shards.output import FIX, check_name, replace_folder
from shards.pack import Packed
from shards.records import SPLITS, UNSPLIT, RawDataset, name_dataset
from shards.summary import compare_counts, describe_ignored, list_skipped
from shards.video import cut_videos
from shards.write import check_free_space, explain_full_disk, write_shards

MAX_BROKEN = 0.01
FRAMES = "frames"  # images of videos, while a build runs


@dataclass(frozen=True)
class Build:
    """A finished build: its manifest, the number of ignored files, and warnings for the user."""

    manifest: Manifest
    ignored: int
    warnings: tuple[str, ...]


def build(
    raw: RawDataset,
    out: Path,
    *,
    dataset: str | None = None,
    num_shards: int | None = None,
    shard_bytes: float | None = None,
    max_broken: float = MAX_BROKEN,
    encoding: Encoding | None = None,
    cropping: Cropping = Cropping(),  # noqa: B008  # it is immutable
    workers: int = 1,
    progress: bool = False,
) -> Build:
    """Write a dataset as shards and a manifest; the same input gives the same bytes.

    Everything is written next to `out` and renamed at the end, so a build that fails leaves `out` as it was.

    Args:
        raw: the result of a reader.
        out: a folder that is missing, is empty, or holds an earlier build of the same dataset, which is replaced.
        dataset: name in keys and reports; default: the reader's.
        num_shards: shards of train; other splits get as many, but at most one per identity.
        shard_bytes: aim at this size of the original images instead.
        max_broken: share of images, 0 to 1, that may be broken; they are left out and listed in the manifest.
        encoding: re-encode every image.
        cropping: how the boxes of records are cut out.
        workers: number of processes; it does not change the bytes.

    Raises:
        ValueError: an argument is out of range, `out` holds other files or is built by another process, the disk is
            full, too many images are broken, or a split has none left.
    """
    raw, out = name_dataset(raw, dataset), out.resolve()
    check_name(raw.name)
    _check_knobs(num_shards, shard_bytes, max_broken, workers)
    _check_records(raw, cropping)

    with explain_full_disk(out.parent, FIX), replace_folder(out, raw.name) as temporary:
        records, unread = cut_videos(raw.records, raw.root, temporary / FRAMES, encoding, cropping, progress)
        layout, size = lay_out(records, raw.name, raw.distractor_pid, num_shards, shard_bytes)
        check_free_space(out.parent, size if encoding is None else 0, FIX)
        packed = write_shards(layout, raw.root, temporary, encoding, cropping, workers, progress)
        shutil.rmtree(temporary / FRAMES, ignore_errors=True)
        manifest = _describe(packed, unread, raw, describe_storage(encoding, cropping if _is_cut(raw) else None))
        _check_broken(manifest, raw, max_broken)
        save_manifest(manifest, temporary)
    return Build(manifest, len(raw.ignored), tuple(_find_warnings(raw, manifest, packed)))


def _find_warnings(raw: RawDataset, manifest: Manifest, packed: dict[str, list[Packed]]) -> list[str]:
    samples = {split: [sample for part in parts for sample in part.samples] for split, parts in packed.items()}
    sightings = {split: [image for _, images in found for image in images] for split, found in samples.items()}
    checks = [check.text for check in run_checks(sightings, raw.distractor_pid) if check.level == "warning"]
    links = [text for text in [warn_of_links((record.path for record in raw.records), raw.root)] if text]
    return [*raw.warnings, *describe_ignored(raw), *links, *compare_counts(manifest, raw.published), *checks]


def _check_knobs(num_shards: int | None, shard_bytes: float | None, max_broken: float, workers: int) -> None:
    if num_shards is not None and num_shards < 1:
        raise ValueError(f"--shards {num_shards}: give at least 1")
    if shard_bytes is not None and num_shards is not None:
        raise ValueError("--shards and --shard-size: give one of them")
    if shard_bytes is not None and not 1 <= shard_bytes < math.inf:
        raise ValueError(f"--shard-size {shard_bytes / 2**20:g}: give MiB above 0")
    if workers < 1:
        raise ValueError(f"--workers {workers}: give at least 1")
    if not 0 <= max_broken <= 1:
        raise ValueError(f"--max-broken {max_broken}: give a share of the images, from 0 to 1")


def _check_records(raw: RawDataset, cropping: Cropping) -> None:
    if any(record.split == UNSPLIT for record in raw.records):
        raise ValueError(
            f"{raw.root}: its images have no split; give the share of people to test, such as --test-share 0.3 (0: "
            "train on all), or divide them yourself in a CSV with the column split"
        )
    if cropping != Cropping() and not any(record.box for record in raw.records):
        raise ValueError("--pad-box and --min-box: no image of this dataset has a box; leave them out")


def _is_cut(raw: RawDataset) -> bool:
    return any(record.box or record.frame is not None for record in raw.records)


def _describe(
    packed: dict[str, list[Packed]], unread: Sequence[dict[str, str]], raw: RawDataset, storage: str
) -> Manifest:
    splits = {}
    for split, parts in packed.items():
        shards = [part.shard for part in parts if part.shard is not None]
        samples = [sample for part in parts for sample in part.samples]
        splits[split] = Split(
            shards=tuple(shards),
            pids=np.array([images[0].pid for _, images in samples], dtype=np.int64),
            images=np.array([len(images) for _, images in samples], dtype=np.int64),
            shard=np.repeat(np.arange(len(shards), dtype=np.int64), [shard.identities for shard in shards]),
            cameras=tuple(tuple(sorted({image.camid for image in images})) for _, images in samples),
            names=tuple(name for name, _ in samples),
        )
    skipped = [*unread, *(entry for parts in packed.values() for part in parts for entry in part.skipped)]
    skipped.sort(key=lambda entry: entry["source"])
    return Manifest(raw.name, splits, raw.distractor_pid, raw.notice, tuple(skipped), storage)


def _check_broken(manifest: Manifest, raw: RawDataset, max_broken: float) -> None:
    broken, num_records = len(manifest.skipped), len(raw.records)
    if broken > max_broken * num_records:
        enough = math.ceil(1e4 * broken / num_records) / 1e4
        raise ValueError(
            f"{broken} of {num_records} images are broken, more than --max-broken {max_broken:g} allows; nothing was "
            f"built. Repair or remove them, or leave them out with --max-broken {enough:g}:\n"
            + "\n".join(list_skipped(manifest))
        )
    for split in SPLITS:
        found = manifest.splits.get(split)
        if (found is None or found.num_images == 0) and any(record.split == split for record in raw.records):
            raise ValueError(f"{split}: every image is broken, nothing was built; repair them or remove the split")
