"""The layout of a build: records to groups, groups to shards of equal size."""

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reid.data.manifest import JUNK_PID
from shards.pack import Group, source_of
from shards.records import SPLITS, RawDataset, Record

MAX_GROUP = 16  # images in one sample of junk or distractors
MAX_SHARD_BYTES = 512 * 1024 * 1024
_OVERHEAD = 1024  # bytes of a tar for each image: header, padding, its entry in the JSON


@dataclass(frozen=True)
class Layout:
    """The groups of each shard in storage order, per split, and their approximate size in bytes."""

    shards: dict[str, list[list[Group]]]
    bytes: int


def lay_out(raw: RawDataset, name: str, num_shards: int | None, shard_bytes: int | None) -> Layout:
    """Deal each split's groups to num_shards shards, or to shards of shard_bytes, or to a default number of shards.

    A split gets at most one shard per group. Raises ValueError if train has fewer identities than num_shards.
    """
    by_split: dict[str, list[Record]] = defaultdict(list)
    for record in raw.records:
        by_split[record.split].append(record)
    shards, total = {}, 0
    for split in sorted(by_split, key=SPLITS.index):
        groups = group_records(by_split[split], name, raw.distractor_pid, raw.root)
        files = [record.path for record in by_split[split] if record.path.is_file()]  # without missing ones
        size = sum(path.stat().st_size + _OVERHEAD for path in files)
        total += size
        if num_shards is not None:
            count = num_shards
        elif shard_bytes is not None:
            count = max(1, -(-size // shard_bytes))
        else:
            count = default_num_shards(len(groups), size)
        if split == "train" and num_shards is not None and count > len(groups):
            raise ValueError(f"--shards {count}: train has {len(groups)} identities; give at most that many shards")
        dealt = deal([len(group.records) for group in groups], min(count, len(groups)))
        shards[split] = [
            sorted((groups[i] for i in shard), key=lambda group: (group.pid, group.key)) for shard in dealt
        ]
    return Layout(shards, total)


def group_records(records: Sequence[Record], dataset: str, distractor_pid: int | None, root: Path) -> list[Group]:
    """Group the records of one split, sorted by pid, the images of each group by source path."""
    by_pid: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        by_pid[record.pid].append(record)
    groups = []
    for pid, members in sorted(by_pid.items()):
        members.sort(key=lambda record: source_of(record, root))
        split, name = members[0].split, members[0].name
        kind = {JUNK_PID: "junk", distractor_pid: "distractor"}.get(pid)
        size = MAX_GROUP if kind else len(members)
        for number, start in enumerate(range(0, len(members), size)):
            label = f"{kind}-{number:04d}" if kind else f"{pid:06d}"
            groups.append(Group(f"{dataset}-{split}-{label}", pid, name, split, tuple(members[start : start + size])))
    return groups


def default_num_shards(num_identities: int, num_bytes: int) -> int:
    """Return the largest power of two up to identities / 8, from 1 to 64; double it while shards exceed 512 MiB."""
    count = 1
    while count < 64 and 2 * count <= num_identities / 8:
        count *= 2
    while num_bytes / count > MAX_SHARD_BYTES and 2 * count <= num_identities:
        count *= 2
    return count


def deal(sizes: Sequence[int], num_shards: int) -> list[list[int]]:
    """Deal items to shards of balanced size: the largest first, each to the smallest shard, or the first of those.

    Returns the indices of each shard's items; no shard is empty if there are enough items.
    """
    shards: list[list[int]] = [[] for _ in range(num_shards)]
    heap = [(0, shard) for shard in range(num_shards)]
    for item in sorted(range(len(sizes)), key=lambda item: (-sizes[item], item)):
        load, shard = heapq.heappop(heap)
        shards[shard].append(item)
        heapq.heappush(heap, (load + sizes[item], shard))
    return shards
