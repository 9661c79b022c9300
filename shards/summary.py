"""What a build holds, in numbers: its table of counts, and where they differ from what the dataset's authors count."""

from collections.abc import Mapping, Sequence

from reid.data.manifest import JUNK_PID, Manifest, Split
from shards.records import UNKNOWN_CAMERA, Counts


def count_split(split: Split, distractor_pid: int | None) -> Counts:
    """What a split holds, as datasets count themselves: all images, and the identities without junk and distractors."""
    nobody = [JUNK_PID] if distractor_pid is None else [JUNK_PID, distractor_pid]
    return Counts(split.num_images, len(set(split.pids.tolist()).difference(nobody)))


def compare_counts(manifest: Manifest, published: Mapping[str, Counts]) -> list[str]:
    """One line for each split that differs from what the dataset's authors count; nothing where they say nothing."""
    lines = []
    for name, wanted in published.items():
        split = manifest.splits.get(name)
        found = count_split(split, manifest.distractor_pid) if split else Counts(0, 0)
        if found != wanted:
            lines.append(
                f"{name}: {found.images} images of {found.identities} identities; as published it has "
                f"{wanted.images} of {wanted.identities}: another version, or an incomplete copy"
            )
    return lines


def format_table(manifest: Manifest) -> str:
    """One line per split; identities without junk and distractors, images with them."""
    rows = [["split", "shards", "identities", "images", "distractors", "junk", "cameras", "MiB"]]
    for name, split in manifest.splits.items():
        junk, distractor = split.pids == JUNK_PID, split.pids == manifest.distractor_pid
        counts = count_split(split, manifest.distractor_pid)
        cameras = {camera for cameras in split.cameras for camera in cameras} - {UNKNOWN_CAMERA}
        numbers = (
            len(split.shards),
            counts.identities,
            counts.images,
            split.images[distractor].sum(),
            split.images[junk].sum(),
            len(cameras) or "unknown",
        )
        size = sum(shard.bytes for shard in split.shards) / 2**20
        rows.append([name, *map(str, numbers), f"{size:.1f}"])
    return align(rows)


def align(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of cells as a plain-text table; the first `left` columns start at the left, the others end at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
