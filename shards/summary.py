"""What a build holds, in numbers: its table of counts, and where they differ from what the dataset's authors count."""

from collections.abc import Mapping, Sequence
from typing import Any

from reid.data.manifest import JUNK_PID, Manifest, Split
from shards.checks import Check
from shards.records import UNKNOWN_CAMERA, Counts
from shards.verify import Verification


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


SHOWN = 20  # of a long list


def format_verification(result: Verification, checks: Sequence[Check]) -> str:
    """Counts of the splits, a line per check, damage and warnings with examples, and the verdict last."""
    rows = [["check", "result", "found"], *_file_rows(result)]
    rows += [[check.name, check.level, check.text] for check in checks]
    parts = [format_table(result.manifest), "", align(rows, left=3), ""]
    parts += [f"{check.name}: {example}" for check in checks if check.level != "ok" for example in check.examples]
    parts += [f"damage: {damage}" for damage in result.damage[:SHOWN]]
    if len(result.damage) > SHOWN:
        parts.append(f"and {len(result.damage) - SHOWN} more; --json lists all")
    return "\n".join([*parts, _verdict(result, checks)])


def _file_rows(result: Verification) -> list[list[str]]:
    shards = sum(len(split.shards) for split in result.manifest.splits.values())
    hurt = len({damage.shard for damage in result.damage})
    whole = f"{shards} shards: size, sha256, members and keys" + (", every image decodes" if result.decoded else "")
    files = ["files", "damage", f"{len(result.damage)} findings in {hurt} shards"] if hurt else ["files", "ok", whole]
    return [files] if result.decoded else [files, ["decoding", "not done", "--decode reads every image"]]


def _verdict(result: Verification, checks: Sequence[Check]) -> str:
    if result.damage:
        return f"{result.folder}: damaged; copy the shards again or build them again. The checks saw what is left"
    warnings = sum(check.level == "warning" for check in checks)
    said = "whole, every image decodes" if result.decoded else "whole"
    return f"{result.folder}: {said}" + (f", {warnings} warnings" if warnings else "")


def to_json(result: Verification, checks: Sequence[Check]) -> dict[str, Any]:
    """Everything the table says and all of the damage, in plain types."""
    manifest = result.manifest
    splits = {}
    for name, split in manifest.splits.items():
        counts = count_split(split, manifest.distractor_pid)
        splits[name] = {"shards": len(split.shards), "images": counts.images, "identities": counts.identities}
    return {
        "folder": str(result.folder),
        "dataset": manifest.dataset,
        "fingerprint": manifest.fingerprint,
        "splits": splits,
        "whole": not result.damage,
        "decoded": result.decoded,
        "damage": [{"shard": found.shard, "member": found.member, "what": found.what} for found in result.damage],
        "checks": [
            {
                "check": check.name,
                "level": check.level,
                "count": check.count,
                "of": check.of,
                "text": check.text,
                "examples": list(check.examples),
            }
            for check in checks
        ],
    }
