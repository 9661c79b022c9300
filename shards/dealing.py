"""Which image goes into which shard: records to groups, groups to shards of equal size."""

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.pack import Group, source_of
from shards.records import JUNK_PID, SPLITS, RawDataset, Record

MAX_GROUP = 16  # images in one sample of junk or distractors
MAX_SHARD_BYTES = 512 * 1024 * 1024
_OVERHEAD = 1024  # bytes an image costs in a tar beside its own: header, padding, its entry in the JSON


@dataclass(frozen=True)
class Layout:
    """Per split the groups of each shard, in the order in which they will be stored, and about how many bytes."""

    shards: dict[str, list[list[Group]]]
    bytes: int


def lay_out(raw: RawDataset, name: str, num_shards: int | None, shard_bytes: int | None) -> Layout:
    """Deal each split's groups to num_shards shards, or to as many as have shard_bytes each, or to a default number.

    No split gets more shards than it has groups. ValueError when train has fewer identities than num_shards.
    """
    by_split: dict[str, list[Record]] = defaultdict(list)
    for record in raw.records:
        by_split[record.split].append(record)
    shards, total = {}, 0
    for split in SPLITS:
        if split not in by_split:
            continue
        groups = group_records(by_split[split], name, raw.distractor_pid, raw.root)
        size = estimate_bytes(by_split[split])
        total += size
        if num_shards is not None:
            count = num_shards
        elif shard_bytes is not None:
            count = max(1, -(-size // shard_bytes))  # every file of a split may be absent
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


def estimate_bytes(records: Sequence[Record]) -> int:
    """About the size of the tars that hold these images as they are; absent files count nothing."""
    return sum(record.path.stat().st_size + _OVERHEAD for record in records if record.path.is_file())
