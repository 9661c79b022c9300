"""What `verify` found, as a table for people and as JSON for programs."""

from collections.abc import Sequence
from typing import Any

from shards.checks import Check
from shards.summary import align, count_split, format_table
from shards.verify import Verification

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
