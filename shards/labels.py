"""Labels that people write by hand: identities and cameras in two spellings, people on both sides of a division."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from shards.records import list_few

SHOWN = 5


def find_lookalikes(labels: Iterable[str]) -> list[list[str]]:
    """Return the groups of labels that differ only by case, spaces, leading zeros, ".0", or Unicode form, sorted."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in sorted(set(labels)):
        groups[_plain(label)].append(label)
    return [group for group in groups.values() if len(group) > 1]


def describe_lookalikes(kind: str, labels: Iterable[str]) -> list[str]:
    """Return a warning that lists look-alikes. kind: "identities" or "cameras"."""
    groups = find_lookalikes(labels)
    if not groups:
        return []
    listed = list_few([" and ".join(map(_quote, group[:4])) for group in groups], SHOWN)
    reason = "by case, spaces, leading zeros, '.0' or Unicode form"
    return [f"{len(groups)} {kind} are written in several ways and count as different ({reason}): {listed}"]


def check_sides(labels: Iterable[tuple[str, str, str]]) -> None:
    """Raise ValueError if a person is in train and in query or gallery.

    labels: of each image the split, the identity, and the line or folder that says so.
    """
    train: dict[str, str] = {}
    test: dict[str, str] = {}
    for split, identity, where in labels:
        (train if split == "train" else test).setdefault(identity, where)
    both = [identity for identity in train if identity in test]
    if both:
        raise ValueError(
            f"{train[both[0]]}: identity {both[0]!r} is in train, and in query or gallery at {test[both[0]]}: "
            f"people of the training are found too easily, so the metrics would be too high (identities: {len(both)}); "
            "give each person to one side, different people different names, or remove the splits and use --test-share"
        )


def _plain(label: str) -> str:
    text = unicodedata.normalize("NFKC", label)  # composed accents, digits of normal width
    text = "".join(letter for letter in text if not letter.isspace() and unicodedata.category(letter) != "Cf")
    text = re.sub(r"^(\d+)\.0*$", r"\1", text.casefold())  # a spreadsheet's 7.0
    return unicodedata.normalize("NFKC", re.sub(r"(?<!\d)0+(?=\d)", "", text))


def _quote(label: str) -> str:
    """Return the label in quotes, with escapes if it looks like another: accents in two parts, invisible characters."""
    return repr(label) if unicodedata.is_normalized("NFKC", label) and label.isprintable() else ascii(label)
