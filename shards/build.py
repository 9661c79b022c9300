"""A raw dataset into a folder of shards: grouping, dealing to shards, writing, and the manifest last."""

import heapq
import math
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from reid.manifest import MANIFEST_NAME, Manifest, Split, load_manifest, save_manifest
from shards.pack import Group, Packed, pack_shard, source_of
from shards.records import JUNK_PID, SPLITS, RawDataset, Record
from shards.summary import find_warnings

MAX_BROKEN = 0.01
MAX_GROUP = 16  # images in one sample of junk or distractors
MAX_SHARD_BYTES = 512 * 1024 * 1024
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
    max_broken: float = MAX_BROKEN,
    progress: bool = False,
) -> Build:
    """Write `raw` as shards and a manifest into the folder `out`; the same input gives the same bytes.

    num_shards is for train; other splits get as many, but no more than they have identities. max_broken is the share of
    images, 0 to 1, that may be broken: they are left out and listed in the manifest. An earlier build of the same
    dataset in `out` is replaced. Everything is written next to `out` and renamed at the end, so an interrupted build
    leaves no manifest and what was in `out` as it was.

    ValueError: a knob out of range, an `out` that holds something else, too many broken images, a split with none left.
    """
    name = dataset or raw.name
    out = out.resolve()
    workshop, old = out.with_name(f".{out.name}.building"), out.with_name(f".{out.name}.old")
    _check_knobs(name, num_shards, max_broken)
    _clear_leftovers(out, workshop, old)
    _refuse_foreign(out, name)
    plan = _plan(raw, name, num_shards)
    workshop.mkdir(parents=True)
    try:
        packed = _write(plan, raw.root, workshop, progress)
        manifest = _describe(packed, raw, name)
        _refuse_broken(manifest, len(raw.records), max_broken)
        save_manifest(manifest, workshop)
        if out.exists():
            out.rename(old)
        workshop.rename(out)
    finally:
        _clear_leftovers(out, workshop, old)
    sightings = {split: [pair for part in parts for pair in part.sightings] for split, parts in packed.items()}
    return Build(manifest, len(raw.ignored), (*raw.warnings, *find_warnings(sightings, raw.distractor_pid)))


def _clear_leftovers(out: Path, workshop: Path, old: Path) -> None:
    """Remove what a failed or killed build left beside `out`, and put back a folder it had moved aside."""
    if old.exists() and not out.exists():
        old.rename(out)
    for leftover in (workshop, old):
        shutil.rmtree(leftover, ignore_errors=True)


def _check_knobs(name: str, num_shards: int | None, max_broken: float) -> None:
    if not _DATASET_NAME.fullmatch(name):
        raise ValueError(
            f"--dataset {name!r}: use 1 to 40 letters, digits, '-' and '_', the first no sign; it begins every key"
        )
    if num_shards is not None and num_shards < 1:
        raise ValueError(f"--shards {num_shards}: give at least 1")
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


def _plan(raw: RawDataset, name: str, num_shards: int | None) -> dict[str, list[list[Group]]]:
    """Per split, the groups of each shard in the order in which they will be stored."""
    by_split: dict[str, list[Record]] = defaultdict(list)
    for record in raw.records:
        by_split[record.split].append(record)
    plan = {}
    for split in SPLITS:
        if split not in by_split:
            continue
        groups = group_records(by_split[split], name, raw.distractor_pid, raw.root)
        count = default_num_shards(len(groups), _total_bytes(by_split[split])) if num_shards is None else num_shards
        if split == "train" and count > len(groups):
            raise ValueError(f"--shards {count}: train has {len(groups)} identities; give at most that many shards")
        dealt = deal([len(group.records) for group in groups], min(count, len(groups)))
        plan[split] = [sorted((groups[i] for i in shard), key=lambda group: (group.pid, group.key)) for shard in dealt]
    return plan


def group_records(records: Sequence[Record], dataset: str, distractor_pid: int | None, root: Path) -> list[Group]:
    """The records of one split as groups sorted by pid, the images of each by source path."""
    by_pid: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        by_pid[record.pid].append(record)
    groups = []
    for pid, members in sorted(by_pid.items()):
        members.sort(key=lambda record: source_of(record, root))
        split, name = members[0].split, members[0].name
        kind = {JUNK_PID: "junk", distractor_pid: "distractor"}.get(pid)
        if kind is None:
            groups.append(Group(f"{dataset}-{split}-{pid:06d}", pid, name, split, tuple(members)))
            continue
        for number, start in enumerate(range(0, len(members), MAX_GROUP)):
            part = tuple(members[start : start + MAX_GROUP])
            groups.append(Group(f"{dataset}-{split}-{kind}-{number:04d}", pid, name, split, part))
    return groups


def default_num_shards(num_identities: int, num_bytes: int) -> int:
    """The largest power of two up to identities / 8, from 1 to 64; doubled while a shard would exceed 512 MiB."""
    count = 1
    while count < 64 and 2 * count <= num_identities / 8:
        count *= 2
    while num_bytes / count > MAX_SHARD_BYTES and 2 * count <= num_identities:
        count *= 2
    return count


def deal(sizes: Sequence[int], num_shards: int) -> list[list[int]]:
    """Deal items to shards so that sizes balance: largest first, each onto the emptiest shard (then the first).

    Returns the indices of each shard's items; no shard is empty as long as there are enough items.
    """
    shards: list[list[int]] = [[] for _ in range(num_shards)]
    heap = [(0, shard) for shard in range(num_shards)]
    for item in sorted(range(len(sizes)), key=lambda item: (-sizes[item], item)):
        load, shard = heapq.heappop(heap)
        shards[shard].append(item)
        heapq.heappush(heap, (load + sizes[item], shard))
    return shards


def _total_bytes(records: Sequence[Record]) -> int:
    return sum(record.path.stat().st_size for record in records if record.path.is_file())


def _write(plan: dict[str, list[list[Group]]], root: Path, folder: Path, progress: bool) -> dict[str, list[Packed]]:
    total = sum(len(group.records) for shards in plan.values() for groups in shards for group in groups)
    plain = progress and not sys.stderr.isatty()
    packed: dict[str, list[Packed]] = {}
    with tqdm(total=total, desc="building", unit="image", disable=plain or not progress) as bar:
        for split, shards in plan.items():
            packed[split] = []
            for groups in shards:
                number = sum(done.shard is not None for done in packed[split])  # no gap after a shard left empty
                done = pack_shard(folder / f"{split}-{number:04d}.tar", groups, root, bar.update)
                packed[split].append(done)
            if plain:
                images = sum(sum(done.images) for done in packed[split])
                print(f"{split}: {images} images in {len(shards)} shards written", file=sys.stderr, flush=True)
    return packed


def _describe(packed: dict[str, list[Packed]], raw: RawDataset, name: str) -> Manifest:
    skipped = [entry for parts in packed.values() for part in parts for entry in part.skipped]
    splits = {split: _describe_split(parts) for split, parts in packed.items()}
    by_source = tuple(sorted(skipped, key=lambda entry: entry["source"]))
    return Manifest(name, splits, raw.distractor_pid, raw.notice, by_source)


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
