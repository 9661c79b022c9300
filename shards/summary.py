"""What a person should know about a build: its table of counts, and findings that change what its numbers mean."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from reid.manifest import JUNK_PID, Manifest
from shards.records import UNKNOWN_CAMERA

# Per split the (pid, camid) of every image.
Sightings = Mapping[str, Sequence[tuple[int, int]]]


def find_warnings(sightings: Sightings, distractor_pid: int | None) -> list[str]:
    """Identities in train and test, train identities with one image, queries that cannot be scored."""
    train = Counter(pid for pid, _ in sightings.get("train", ()))
    test = {pid for split in ("query", "gallery") for pid, _ in sightings.get(split, ())}
    warnings = []
    overlap = (train.keys() & test) - {JUNK_PID, distractor_pid}
    if overlap:
        warnings.append(f"{len(overlap)} identities are in train and in the test splits, e.g. pid {min(overlap)}")
    single = sum(count == 1 for count in train.values())
    if single:
        warnings.append(f"{single} train identities have one image: they have no centroid to be pulled to")
    query = sightings.get("query", ())
    unmatched = count_unmatched(query, sightings.get("gallery", ()))
    if unmatched:
        warnings.append(
            f"{unmatched} of {len(query)} queries have no possible match (none in the gallery from another camera); "
            "they will not be scored"
        )
    return warnings


def count_unmatched(query: Iterable[tuple[int, int]], gallery: Iterable[tuple[int, int]]) -> int:
    """Queries whose identity is in the gallery under no other camera; an unknown camera differs from every camera."""
    camids: dict[int, set[int]] = defaultdict(set)
    for pid, camid in gallery:
        camids[pid].add(camid)
    return sum(all(other == camid and camid != UNKNOWN_CAMERA for other in camids.get(pid, ())) for pid, camid in query)


def format_table(manifest: Manifest) -> str:
    """One line per split; identities without junk and distractors, images with them."""
    rows = [["split", "shards", "identities", "images", "distractors", "junk", "cameras", "MiB"]]
    for name, split in manifest.splits.items():
        junk, distractor = split.pids == JUNK_PID, split.pids == manifest.distractor_pid
        cameras = {camera for cameras in split.cameras for camera in cameras} - {UNKNOWN_CAMERA}
        numbers = (
            len(split.shards),
            split.num_pids - junk.any() - distractor.any(),
            split.num_images,
            split.images[distractor].sum(),
            split.images[junk].sum(),
            len(cameras) or "unknown",
        )
        size = sum(shard.bytes for shard in split.shards) / 2**20
        rows.append([name, *map(str, numbers), f"{size:.1f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return "\n".join(lines)
