"""What the images of the splits say about each other: findings that change what a training or its numbers mean.

Nothing here is damage: every finding can be true of a dataset that is stored perfectly.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shards.records import JUNK_PID, UNKNOWN_CAMERA, Sighting

Sightings = Mapping[str, Sequence[Sighting]]  # split -> one sighting for each stored image
TEST = ("query", "gallery")
FEW_IMAGES = 4  # the usual number of images per identity in a batch: fewer make a short group
MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Check:
    """One question and its answer. level: "ok", "note" (good to know) or "warning"; count out of `of` is concerned."""

    name: str
    level: str
    count: int
    of: int
    text: str
    examples: tuple[str, ...] = ()


def run_checks(sightings: Sightings, distractor_pid: int | None) -> list[Check]:
    """All checks, in a fixed order. Junk is nobody's image and left out; distractors are no identity."""
    kept = {split: [image for image in images if image.pid != JUNK_PID] for split, images in sightings.items()}
    return [
        check_overlap(kept, distractor_pid),
        check_queries(kept),
        check_cameras(kept, distractor_pid),
        check_few_images(kept, distractor_pid),
        *check_copies(kept),
    ]


def find_warnings(sightings: Sightings, distractor_pid: int | None) -> list[str]:
    """The texts of the checks that a user must hear without asking."""
    return [check.text for check in run_checks(sightings, distractor_pid) if check.level == "warning"]


def check_overlap(sightings: Sightings, distractor_pid: int | None) -> Check:
    """Identities that are trained on and then searched for."""
    train = {image.pid for image in sightings.get("train", ())} - {distractor_pid}
    both = sorted(train & {image.pid for split in TEST for image in sightings.get(split, ())})
    text = f"{len(both) or 'no'} identities are in train and in the test splits" + (
        f", e.g. pid {both[0]}" if both else ""
    )
    return _check("identity overlap", "warning", len(both), len(train), text, map(str, both))


def check_queries(sightings: Sightings) -> Check:
    """Queries whose identity is in the gallery under no other camera; an unknown camera differs from every camera."""
    camids: dict[int, set[int]] = defaultdict(set)
    for image in sightings.get("gallery", ()):
        camids[image.pid].add(image.camid)
    queries = sightings.get("query", ())
    lost = [
        image
        for image in queries
        if all(camid == image.camid and camid != UNKNOWN_CAMERA for camid in camids.get(image.pid, ()))
    ]
    text = f"{len(lost)} of {len(queries)} queries have no possible match (none in the gallery from another camera)"
    text += "; they will not be scored" if lost else ""
    return _check("queries without match", "warning", len(lost), len(queries), text, (image.source for image in lost))


def check_cameras(sightings: Sightings, distractor_pid: int | None) -> Check:
    """Images without a camera, and how many identities of each split were seen by one camera alone."""
    images = [image for split in sightings.values() for image in split]
    unknown = [image for image in images if image.camid == UNKNOWN_CAMERA]
    if unknown and len(unknown) == len(images):
        text = "no camera ids: the protocols then apply no same-camera rule"
        return Check("camera coverage", "note", len(unknown), len(images), text)
    parts = [_describe_cameras(split, seen, distractor_pid) for split, seen in sightings.items()]
    text = "; ".join(parts)
    if unknown:
        found = f"{len(unknown)} of {len(images)} images have no camera id"
        text = f"{found}: the same-camera rule does not reach them; {text}"
    return _check("camera coverage", "warning", len(unknown), len(images), text, (image.source for image in unknown))


def _describe_cameras(split: str, images: Iterable[Sighting], distractor_pid: int | None) -> str:
    cameras: dict[int, set[int]] = defaultdict(set)
    everywhere = set()
    for image in images:
        everywhere.add(image.camid)
        if image.pid != distractor_pid:
            cameras[image.pid].add(image.camid)
    single = sum(len(seen) == 1 for seen in cameras.values())
    text = f"{split} {len(everywhere - {UNKNOWN_CAMERA})} cameras"
    return text if split == "query" else f"{text}, {single} of {len(cameras)} identities under one alone"


def check_few_images(sightings: Sightings, distractor_pid: int | None) -> Check:
    """Train identities with one image (no anchor) or with fewer than a usual group has."""
    counts = Counter(image.pid for image in sightings.get("train", ()) if image.pid != distractor_pid)
    single = sorted(pid for pid, count in counts.items() if count == 1)
    few = sorted(pid for pid, count in counts.items() if count < FEW_IMAGES)
    text = f"{len(few)} of {len(counts)} train identities have fewer than {FEW_IMAGES} images"
    if single:
        text = f"{len(single)} train identities have one image: they have no centroid to be pulled to; {text}"
    level = "warning" if single else "note"
    return _check("near-empty identities", level, len(few), len(counts), text, map(str, single or few))


def check_copies(sightings: Sightings) -> list[Check]:
    """Byte-identical images: of train in the test splits, under two identities, of a query in the gallery, twice."""
    total = sum(map(len, sightings.values()))
    groups = _find_copies(sightings)
    leaks = [group for group in groups if {"train"} < {split for split, _ in group}]
    clashes = [group for group in groups if len({image.pid for _, image in group}) > 1]
    found = [group for group in groups if {split for split, _ in group} >= set(TEST)]
    rivals = [group for group in found if not _is_hidden(group)]
    twice = [group for group in groups if len({(split, image.pid) for split, image in group}) < len(group)]
    hidden = "where no same-camera rule leaves them out" if rivals else "where the same-camera rule leaves them out"
    asked = f"{len(rivals or found) or 'no'} query images are in the gallery, too" + (f", {hidden}" if found else "")
    level, queries = "warning" if rivals else "note", len(sightings.get("query", ()))
    return [
        _copies("copies in train and test", "warning", leaks, total, "images are in train and in the test splits"),
        _copies("copies of two identities", "warning", clashes, total, "images are stored under two identities"),
        _check("copies of queries", level, len(rivals or found), queries, asked, map(_pair, rivals or found)),
        _copies("copies in one identity", "note", twice, total, "images are stored twice in one identity and split"),
    ]


_Copies = list[tuple[str, Sighting]]  # split and image, all of the same bytes


def _find_copies(sightings: Sightings) -> list[_Copies]:
    counts = Counter(image.digest for images in sightings.values() for image in images)
    groups: dict[bytes, _Copies] = defaultdict(list)
    for split, images in sightings.items():
        for image in images:
            if counts[image.digest] > 1:
                groups[image.digest].append((split, image))
    return list(groups.values())


def _is_hidden(group: _Copies) -> bool:
    """Whether every copy in the gallery has the query's identity and known camera, so that it is never ranked."""
    labels = {(image.pid, image.camid) for split, image in group if split in TEST}
    return len(labels) == 1 and UNKNOWN_CAMERA not in {camid for _, camid in labels}


def _copies(name: str, level: str, groups: Sequence[_Copies], of: int, text: str) -> Check:
    return _check(name, level, len(groups), of, f"{len(groups) or 'no'} {text}, byte for byte", map(_pair, groups))


def _pair(group: _Copies) -> str:
    return " = ".join(f"{split}: {image.source}" for split, image in group[:3])


def _check(name: str, level: str, count: int, of: int, text: str, examples: Iterable[str]) -> Check:
    shown = tuple(example for example, _ in zip(examples, range(MAX_EXAMPLES), strict=False))
    return Check(name, level if count else "ok", count, of, text, shown)
