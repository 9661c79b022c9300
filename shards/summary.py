"""Text for the user: what a build holds, how its counts differ from the published ones, what a verification found."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from reid.data.manifest import JUNK_PID, Manifest, Split
from reid.data.plan import Plan
from shards.checks import FEW_IMAGES, Check
from shards.dealing import DEFAULT_IDENTITIES
from shards.records import UNKNOWN_CAMERA, Counts, RawDataset, is_hidden, is_image
from shards.verify import Verification

SHOWN = 20  # of a long list
_RAW = {".arw", ".cr2", ".dng", ".nef"}
OTHER_PICTURES = {".avif", ".eps", ".heic", ".heif", ".jp2", ".jxl", ".pgm", ".ppm", ".psd", ".svg", ".tga"} | _RAW


def has_identity(split: Split, distractor_pid: int | None) -> np.ndarray:
    """Return a (N,) bool mask of the split's rows that are neither junk nor distractors."""
    return ~np.isin(split.pids, [JUNK_PID] if distractor_pid is None else [JUNK_PID, distractor_pid])


def count_split(split: Split, distractor_pid: int | None) -> Counts:
    return Counts(split.num_images, len(np.unique(split.pids[has_identity(split, distractor_pid)])))


def describe_streams(manifest: Manifest) -> list[str]:
    """Return what `batch.identities` can be, if its default does not fit train."""
    train = manifest.splits.get("train")
    if train is None:
        return []
    counts = np.where(has_identity(train, manifest.distractor_pid), train.images, 0)
    try:
        Plan(counts, train.shard, len(train.shards), DEFAULT_IDENTITIES, FEW_IMAGES, streams=1)
    except ValueError as error:
        return [f"the defaults of training do not fit: {error}"]
    return []


def compare_counts(manifest: Manifest, published: Mapping[str, Counts]) -> list[str]:
    """Return one line for each split whose counts differ from the published ones."""
    lines = []
    for name, wanted in published.items():
        split = manifest.splits.get(name)
        found = count_split(split, manifest.distractor_pid) if split else Counts(0, 0)
        if found != wanted:
            text = f"{name}: {found}; as published it has {wanted.images} of {wanted.identities}"
            lines.append(f"{text}: another version, or an incomplete copy")
    return lines


def format_table(manifest: Manifest) -> str:
    """Return a table with one line per split; identities without junk and distractors, images with them."""
    rows = [["split", "shards", "identities", "images", "distractors", "junk", "cameras", "MiB"]]
    for name, split in manifest.splits.items():
        junk, distractor = (split.images[split.pids == pid].sum() for pid in (JUNK_PID, manifest.distractor_pid))
        counts = count_split(split, manifest.distractor_pid)
        cameras = {camera for cameras in split.cameras for camera in cameras} - {UNKNOWN_CAMERA}
        numbers = len(split.shards), counts.identities, counts.images, distractor, junk, len(cameras) or "unknown"
        size = sum(shard.bytes for shard in split.shards) / 2**20
        rows.append([name, *map(str, numbers), f"{size:.1f}"])
    return align(rows)


def align(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Format rows of cells as a plain-text table; the first `left` columns are aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    template = "  ".join(f"{{:{'<' if i < left else '>'}{width}}}" for i, width in enumerate(widths))
    return "\n".join(template.format(*row).rstrip() for row in rows)


def describe_ignored(raw: RawDataset) -> list[str]:
    """Return warnings of ignored files and folders that may be a part of the dataset."""
    visible = [path for path in raw.ignored if not is_hidden(path)]
    folders = [path for path in visible if path.parent != raw.root and path.is_dir()]
    files = [path for path in visible if not path.is_dir()]
    images = [path for path in files if is_image(path)]
    others = [path for path in files if path.suffix.lower() in OTHER_PICTURES]
    suffixes = Counter(path.suffix.lower() for path in others)
    counted = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common())
    kinds = (
        (images, "images lie or are named as this reader does not expect and were not read"),
        (others, f"pictures are of formats that are not read ({counted}); convert them to JPEG or PNG"),
        (folders, "folders inside the dataset's folders were not read"),
    )
    return [f"{len(found)} {text}, e.g. {found[0].relative_to(raw.root)}" for found, text in kinds if found]


def list_skipped(manifest: Manifest) -> list[str]:
    """Return a line for each of the first broken images, and one for the number of the others."""
    lines = [f"  {entry['source']}: {entry['reason']}" for entry in manifest.skipped[:SHOWN]]
    return lines + ([f"  and {len(manifest.skipped) - SHOWN} more"] if len(manifest.skipped) > SHOWN else [])


def format_build(manifest: Manifest, ignored: int, warnings: Sequence[str]) -> str:
    """Return the table of counts, the number of ignored files, the broken images, the warnings, and notes."""
    lines = [format_table(manifest)]
    if ignored:
        lines.append(f"ignored: {ignored} files or folders that are no images of the dataset")
    if manifest.skipped:
        lines.append(f"broken and left out: {len(manifest.skipped)} images (all are listed in the manifest)")
    lines += list_skipped(manifest)
    lines += [f"warning: {warning}" for warning in warnings]
    return "\n".join([*lines, *(f"note: {note}" for note in describe_streams(manifest))])


def format_verification(result: Verification, checks: Sequence[Check]) -> str:
    """Return the counts of the splits, a line per check, damage and warnings with examples, and the verdict."""
    damaged = len({damage.shard for damage in result.damage})
    decoded = ", every image decodes" if result.decoded else ""
    intact = f"{len(result.manifest.shards)} shards: size, sha256, members and keys{decoded}"
    found = f"{len(result.damage)} findings in {damaged} shards"
    rows = [["check", "result", "found"], ["files", "damage", found] if damaged else ["files", "ok", intact]]
    rows += [] if result.decoded else [["decoding", "not done", "--decode reads every image"]]
    rows += [[check.name, check.level, check.text] for check in checks]
    parts = [format_table(result.manifest), "", align(rows, left=3), ""]
    for check in checks:
        if check.level != "ok":
            parts += [f"{check.name}: {example}" for example in check.examples]
            parts += [f"{check.name}: and {check.more} more"] if check.more else []
    parts += [f"damage: {damage}" for damage in result.damage[:SHOWN]]
    if len(result.damage) > SHOWN:
        parts.append(f"and {len(result.damage) - SHOWN} more; --json lists all")
    if result.damage:
        verdict = "damaged; copy or build the shards again. The checks used the undamaged identities"
    else:
        warnings = sum(check.level == "warning" for check in checks)
        verdict = "intact" + decoded + (f", {warnings} warnings" if warnings else "")
    return "\n".join([*parts, f"{result.folder}: {verdict}"])


def to_json(result: Verification, checks: Sequence[Check]) -> dict[str, Any]:
    """Return the result with all damage as plain types."""
    manifest = result.manifest
    return {
        "folder": str(result.folder),
        "dataset": manifest.dataset,
        "fingerprint": manifest.fingerprint,
        "splits": {
            name: {"shards": len(split.shards), **asdict(count_split(split, manifest.distractor_pid))}
            for name, split in manifest.splits.items()
        },
        "whole": not result.damage,
        "decoded": result.decoded,
        "damage": [asdict(damage) for damage in result.damage],
        "checks": [
            {"check" if key == "name" else key: value for key, value in asdict(check).items()} for check in checks
        ],
    }
