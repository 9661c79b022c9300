"""The layout of a build: records to groups, groups to shards of equal size."""

import heapq
import os
from collections.abc import Iterable, Sequence
from itertools import groupby

from reid.data.manifest import JUNK_PID
from shards.pack import Group
from shards.records import Record

Layout = dict[str, list[list[Group]]]  # split -> for each shard its groups in storage order
MAX_GROUP = 16  # images in one sample of junk or distractors
DEFAULT_IDENTITIES = 16  # of training: `batch.identities`
USUAL_STREAMS = 8  # that `batch.streams` = auto then chooses, if there are as many shards
MAX_SHARD_BYTES = 512 * 1024 * 1024
_BYTES_PER_PIXEL = 0.6  # of a JPEG of quality 95
_OVERHEAD = 1024  # bytes of a tar for each image: header, padding, its entry in the JSON


def lay_out(
    records: Sequence[Record],
    name: str,
    distractor_pid: int | None,
    num_shards: int | None,
    shard_bytes: float | None,
) -> tuple[Layout, int]:
    """Deal each split's groups to num_shards shards, or to shards of shard_bytes, or to a default number of shards.

    `records` are in the order of RawDataset. Also returns the approximate size of all shards in bytes. A split gets at
    most one shard per group. Raises ValueError if train has fewer identities than num_shards.
    """
    shards: Layout = {}
    total = 0
    for split, found in groupby(records, key=lambda record: record.split):
        groups = group_records(found, name, distractor_pid)
        size = sum(_approximate_size(record) for group in groups for record in group.records)
        total += size
        if num_shards is not None:
            count = num_shards
        elif shard_bytes is not None:
            count = max(1, -(-size // int(shard_bytes)))
        else:
            count = default_num_shards(len(groups), size, USUAL_STREAMS if split == "train" else 1)
        if split == "train" and num_shards is not None and count > len(groups):
            raise ValueError(f"--shards {count}: train has {len(groups)} identities; give at most that many shards")
        dealt = deal([len(group.records) for group in groups], min(count, len(groups)))
        shards[split] = [
            sorted((groups[i] for i in shard), key=lambda group: (group.records[0].pid, group.key)) for shard in dealt
        ]
    return shards, total


def _approximate_size(record: Record) -> int:
    """Return bytes in a tar; 0 for a missing file."""
    if not os.path.isfile(record.path):
        return 0
    size = record.path.stat().st_size
    if record.box is not None:
        area = (record.box.right - record.box.left) * (record.box.bottom - record.box.top)
        size = min(size, int(size * area if record.box.normalized else area * _BYTES_PER_PIXEL))
    return size + _OVERHEAD


def group_records(records: Iterable[Record], dataset: str, distractor_pid: int | None) -> list[Group]:
    """Group the records of one split, which are sorted by pid and path."""
    groups = []
    for pid, found in groupby(records, key=lambda record: record.pid):
        members = tuple(found)
        kind = {JUNK_PID: "junk", distractor_pid: "distractor"}.get(pid)
        size = MAX_GROUP if kind else len(members)
        for number, start in enumerate(range(0, len(members), size)):
            label = f"{kind}-{number:04d}" if kind else f"{pid:06d}"
            groups.append(Group(f"{dataset}-{members[0].split}-{label}", members[start : start + size]))
    return groups


def default_num_shards(num_identities: int, num_bytes: int, streams: int = 1) -> int:
    """Return the largest power of two up to identities / 8, from 1 to 64; double it while shards exceed 512 MiB.

    It is at least `streams`, if each shard then has two identities: a stream of training reads shards of its own.
    """
    count: int = 2 ** min(6, max(1, num_identities // 8).bit_length() - 1)
    if num_identities >= 2 * streams:
        count = max(count, streams)
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
