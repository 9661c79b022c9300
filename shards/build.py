"""A raw dataset into a folder of shards: one builder at a time, everything beside it first, the manifest last."""

import errno
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reid.data.manifest import MANIFEST_NAME, Manifest, Split, load_manifest, save_manifest
from reid.files import Held, hold
from shards.checks import find_warnings
from shards.dealing import Layout, lay_out
from shards.images import Encoding
from shards.pack import Packed
from shards.records import RawDataset
from shards.summary import compare_counts
from shards.write import write_shards

MAX_BROKEN = 0.01
# The name begins every key: WebDataset cuts keys at the first dot, and a tar header has 100 characters for the whole.
_DATASET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


@dataclass(frozen=True)
class Build:
    """A finished build: its manifest and what the user should hear."""

    manifest: Manifest
    ignored: int
    warnings: tuple[str, ...]


def build(
    raw: RawDataset,
    out: Path,
    *,
    dataset: str | None = None,
    num_shards: int | None = None,
    shard_bytes: int | None = None,
    max_broken: float = MAX_BROKEN,
    encoding: Encoding | None = None,
    workers: int = 1,
    progress: bool = False,
) -> Build:
    """Write `raw` as shards and a manifest into the folder `out`; the same input gives the same bytes.

    num_shards is for train; other splits get as many, but no more than they have identities. shard_bytes instead aims
    at that size of the original images. max_broken is the share of images, 0 to 1, that may be broken: they are left
    out and listed in the manifest. encoding re-encodes every image. workers are processes; their number changes no
    byte. An earlier build of the same dataset in `out` is replaced. Everything is written next to `out` and renamed at
    the end, so an interrupted build leaves no manifest and what was in `out` as it was.

    ValueError: a knob out of range, an `out` that holds something else or that another process builds, a full disk,
    too many broken images, a split with none left.
    """
    name = dataset or raw.name
    out = out.resolve()
    _check_knobs(name, num_shards, shard_bytes, max_broken, workers)
    out.parent.mkdir(parents=True, exist_ok=True)
    with _only_builder(out):
        workshop, old = out.with_name(f".{out.name}.building"), out.with_name(f".{out.name}.old")
        _clear_leftovers(out, workshop, old)
        _refuse_foreign(out, name)
        layout = lay_out(raw, name, num_shards, shard_bytes)
        _refuse_small_disk(out.parent, layout, encoding)
        try:
            workshop.mkdir()
            packed = write_shards(layout, raw.root, workshop, encoding, workers, progress)
            manifest = _describe(packed, raw, name, encoding)
            _refuse_broken(manifest, len(raw.records), max_broken)
            save_manifest(manifest, workshop)
            if out.exists():
                out.rename(old)
            workshop.rename(out)
        except OSError as error:
            _name_full_disk(error, out.parent)
            raise
        finally:
            _clear_leftovers(out, workshop, old)
    sightings = {split: [image for part in parts for image in part.sightings] for split, parts in packed.items()}
    warnings = (
        *raw.warnings,
        *compare_counts(manifest, raw.published),
        *find_warnings(sightings, raw.distractor_pid),
    )
    return Build(manifest, len(raw.ignored), warnings)


@contextmanager
def _only_builder(out: Path) -> Iterator[None]:
    """Two builds into one folder would delete each other's files."""
    try:
        with hold(out.with_name(f".{out.name}.lock")):
            yield
    except Held as holder:
        raise ValueError(f"{out}: {holder} is building there; wait for it or give another --out") from holder


def _clear_leftovers(out: Path, workshop: Path, old: Path) -> None:
    """Remove what a failed or killed build left beside `out`, and put back a folder it had moved aside."""
    if old.exists() and not out.exists():
        old.rename(out)
    for leftover in (workshop, old):
        shutil.rmtree(leftover, ignore_errors=True)


def _check_knobs(name: str, num_shards: int | None, shard_bytes: int | None, max_broken: float, workers: int) -> None:
    if not _DATASET_NAME.fullmatch(name):
        raise ValueError(
            f"--dataset {name!r}: use 1 to 40 letters, digits, '-' and '_', the first no sign; it begins every key"
        )
    if num_shards is not None and num_shards < 1:
        raise ValueError(f"--shards {num_shards}: give at least 1")
    if shard_bytes is not None and num_shards is not None:
        raise ValueError("--shards and --shard-size: give one of them")
    if shard_bytes is not None and shard_bytes < 1:
        raise ValueError(f"--shard-size {shard_bytes / 2**20:g}: give MiB above 0")
    if workers < 1:
        raise ValueError(f"--workers {workers}: give at least 1")
    if not 0 <= max_broken <= 1:
        raise ValueError(f"--max-broken {max_broken}: a share of the images, from 0 to 1")


def _refuse_foreign(out: Path, name: str) -> None:
    """Only an empty folder or an earlier build of the same dataset, and nothing beside it, may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    mend = "give another --out, or remove it yourself"
    if not out.is_dir():
        raise ValueError(f"{out}: is a file, not a folder; {mend}")
    if not (out / MANIFEST_NAME).is_file():
        raise ValueError(f"{out}: is not empty and was not built by this program; {mend}")
    try:
        earlier = load_manifest(out)
    except ValueError as error:
        raise ValueError(f"{out}: holds shards that cannot be read; {mend} ({error})") from error
    if earlier.dataset != name:
        raise ValueError(f"{out}: holds shards of {earlier.dataset!r}, not {name!r}; {mend}")
    ours = {MANIFEST_NAME} | {shard.name for split in earlier.splits.values() for shard in split.shards}
    foreign = sorted(path.name for path in out.iterdir() if path.name not in ours)
    if foreign:
        raise ValueError(f"{out}: beside the shards there is {foreign[0]!r}, which a build would delete; {mend}")


def _refuse_small_disk(folder: Path, layout: Layout, encoding: Encoding | None) -> None:
    free = shutil.disk_usage(folder).free
    if encoding is None and layout.bytes > free:
        raise ValueError(
            f"{folder}: no space left for these shards: they need about {layout.bytes / 2**20:,.1f} MiB, "
            f"{free / 2**20:,.1f} MiB are free; nothing was built. Make room or give another --out"
        )


def _name_full_disk(error: OSError, folder: Path) -> None:
    """Raise ValueError with the mend where the error says that the disk or the quota is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise ValueError(
            f"{folder}: no space left ({error.strerror}); nothing was built and what was written is removed. "
            "Make room or give another --out"
        ) from error


def _describe(packed: dict[str, list[Packed]], raw: RawDataset, name: str, encoding: Encoding | None) -> Manifest:
    skipped = [entry for parts in packed.values() for part in parts for entry in part.skipped]
    splits = {split: _describe_split(parts) for split, parts in packed.items()}
    by_source = tuple(sorted(skipped, key=lambda entry: entry["source"]))
    stored = str(encoding) if encoding else ""
    return Manifest(name, splits, raw.distractor_pid, raw.notice, by_source, stored)


def _describe_split(parts: Sequence[Packed]) -> Split:
    parts = [part for part in parts if part.shard is not None]
    return Split(
        shards=tuple(part.shard for part in parts if part.shard is not None),
        pids=np.array([pid for part in parts for pid in part.pids], dtype=np.int64),
        images=np.array([count for part in parts for count in part.images], dtype=np.int64),
        shard=np.repeat(np.arange(len(parts), dtype=np.int64), [len(part.pids) for part in parts]),
        cameras=tuple(cameras for part in parts for cameras in part.cameras),
        names=tuple(name for part in parts for name in part.names),
    )


def _refuse_broken(manifest: Manifest, num_records: int, max_broken: float) -> None:
    broken = len(manifest.skipped)
    if broken > max_broken * num_records:
        listed = "\n".join(f"  {entry['source']}: {entry['reason']}" for entry in manifest.skipped[:20])
        more = f"\n  and {broken - 20} more" if broken > 20 else ""
        enough = math.ceil(1e4 * broken / num_records) / 1e4
        raise ValueError(
            f"{broken} of {num_records} images are broken, more than --max-broken {max_broken:g} allows; nothing was "
            f"built. Mend or remove them, or leave them out with --max-broken {enough:g}:\n{listed}{more}"
        )
    for split, content in manifest.splits.items():
        if content.num_images == 0:
            raise ValueError(f"{split}: every image is broken, nothing was built; mend them or remove the split")
