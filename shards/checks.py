"""Checks of a dataset across its splits: findings that change what a training or its metrics mean.

Nothing here is damage: every finding can be true of shards that are stored correctly.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from reid.data.manifest import JUNK_PID
from shards.records import UNKNOWN_CAMERA, Sighting

Sightings = Mapping[str, Sequence[Sighting]]  # split -> one sighting for each stored image
TEST = ("query", "gallery")
FEW_IMAGES = 4  # the usual number of images per identity in a batch: fewer make a short group
MAX_EXAMPLES = 5
MAX_MIXED = 20  # folders that may be datasets
MIN_PREFIX = 3  # letters that the names of related folders share: day1 and day2


@dataclass(frozen=True)
class Check:
    """A finding about `count` out of `of` images or identities. level: "ok", "note" (for information) or "warning"."""

    name: str
    level: str
    count: int
    of: int
    text: str
    examples: tuple[str, ...] = ()
    more: int = 0  # examples that are not listed


def run_checks(sightings: Sightings, distractor_pid: int | None) -> list[Check]:
    """Run all checks, in a fixed order. Junk is left out; distractors are no identity."""
    kept = {split: [image for image in images if image.pid != JUNK_PID] for split, images in sightings.items()}
    return [
        check_overlap(kept, distractor_pid),
        check_queries(kept),
        check_cameras(kept, distractor_pid),
        check_few_images(kept, distractor_pid),
        *check_copies(kept),
        *check_mixed(kept, distractor_pid),
    ]


def check_overlap(sightings: Sightings, distractor_pid: int | None) -> Check:
    """Count the identities that are in train and in the test splits."""
    train = {image.pid for image in sightings.get("train", ())} - {distractor_pid}
    tested = {image.pid: image for split in TEST for image in sightings.get(split, ())}
    both = sorted(train & tested.keys())
    text = f"{len(both) or 'no'} identities are in train and in the test splits"
    if both:
        trained = next(image for image in sightings["train"] if image.pid == both[0])
        text += f", e.g. pid {both[0]} ({trained.source} and {tested[both[0]].source}), so the metrics are too high: "
        text += "build from a CSV (`build csv`) in which each person is only in train, or only in query and gallery"
    return _check("identity overlap", "warning", len(both), len(train), text, map(str, both))


def check_queries(sightings: Sightings) -> Check:
    """Count the queries without a gallery image from another camera; an unknown camera differs from every camera."""
    camids: dict[int, set[int]] = defaultdict(set)
    for image in sightings.get("gallery", ()):
        camids[image.pid].add(image.camid)
    queries = sightings.get("query", ())
    lost = [image for image in queries if camids[image.pid] <= {image.camid} - {UNKNOWN_CAMERA}]
    text = f"{len(lost)} of {len(queries)} queries have no possible match (none in the gallery from another camera)"
    text += "; they will not be scored" if lost else ""
    everywhere = {image.camid for split in TEST for image in sightings.get(split, ())}
    if lost and len(everywhere) == 1 and UNKNOWN_CAMERA not in everywhere:
        text += ". All of them have the same camera, which the same-camera rule leaves out: if cameras are unknown, "
        text += "leave the camera column of the CSV empty (`build csv`)"
    return _check("queries without match", "warning", len(lost), len(queries), text, (image.source for image in lost))


def check_cameras(sightings: Sightings, distractor_pid: int | None) -> Check:
    """Count the images without a camera, and the identities of each split with a single camera."""
    images = [image for split in sightings.values() for image in split]
    unknown = [image for image in images if image.camid == UNKNOWN_CAMERA]
    if unknown and len(unknown) == len(images):
        text = "no camera ids: the protocols then apply no same-camera rule"
        return Check("camera coverage", "note", len(unknown), len(images), text)
    text = f"{len(unknown)} of {len(images)} images have no camera id, so no same-camera rule applies to them"
    parts = [text] if unknown else []
    for split, seen in sightings.items():
        pairs = {(image.pid, image.camid) for image in seen}
        everywhere = {camid for _, camid in pairs} - {UNKNOWN_CAMERA}
        cameras = Counter(pid for pid, _ in pairs if pid != distractor_pid)
        single = list(cameras.values()).count(1)
        parts.append(f"{split} {len(everywhere)} cameras")
        parts[-1] += "" if split == "query" else f", {single} of {len(cameras)} identities have a single camera"
    sources = (image.source for image in unknown)
    return _check("camera coverage", "warning", len(unknown), len(images), "; ".join(parts), sources)


def check_few_images(sightings: Sightings, distractor_pid: int | None) -> Check:
    """Count the train identities with one image (no anchor) and with fewer than a usual group has."""
    counts = Counter(image.pid for image in sightings.get("train", ()) if image.pid != distractor_pid)
    single = sorted(pid for pid, count in counts.items() if count == 1)
    few = sorted(pid for pid, count in counts.items() if count < FEW_IMAGES)
    text = f"{len(few)} of {len(counts)} train identities have fewer than {FEW_IMAGES} images"
    if single:
        text = f"{len(single)} train identities have one image: they have no positive centroid; {text}"
    level = "warning" if single else "note"
    return _check("near-empty identities", level, len(few), len(counts), text, map(str, single or few))


def check_mixed(sightings: Sightings, distractor_pid: int | None) -> list[Check]:
    """Count the identities of a split with images in folders that seem to be different datasets; no check if none.

    Two people numbered 0001 by two datasets in one table become one identity.
    """
    found = []
    for split, images in sightings.items():
        folders = _top_folders(images)
        if not 2 <= len(set(folders)) <= MAX_MIXED:  # more are folders by identity, day or hash
            continue
        cameras: dict[str, set[int]] = defaultdict(set)
        seen: dict[int, set[str]] = defaultdict(set)
        for image, folder in zip(images, folders, strict=True):
            cameras[folder].add(image.camid)
            if image.pid != distractor_pid:
                seen[image.pid].add(folder)
        apart = {pair for pair in combinations(sorted(cameras), 2) if _are_apart(*pair, cameras)}
        for pid, names in sorted(seen.items()):
            for first, second in sorted(apart.intersection(combinations(sorted(names), 2)))[:1]:
                found.append(f"pid {pid} in {first}/ and {second}/ ({split})")
    if not found:
        return []
    text = f"{len(found)} identities have images in folders that look like different datasets, e.g. {found[0]}: "
    text += "if each numbers its own people, write its name before its identities and cameras, such as mall-0001"
    total = sum(len({image.pid for image in images}) for images in sightings.values())
    return [_check("mixed datasets", "warning", len(found), total, text, found)]


def _top_folders(images: Sequence[Sighting]) -> list[str]:
    """Return for each image the first folder of its path below the folder that holds all images."""
    parents = [image.source.rpartition("/")[0] for image in images]
    common = os.path.commonpath(parents) if parents else ""
    return [parent[len(common) :].lstrip("/").partition("/")[0] for parent in parents]


def _are_apart(first: str, second: str, cameras: Mapping[str, set[int]]) -> bool:
    """Return whether two folders seem to be two datasets, not two cameras or days of one."""
    one, other = cameras[first], cameras[second]
    if one != other and len(one) == len(other) == 1 and UNKNOWN_CAMERA not in one | other:
        return False  # a folder for each camera
    return not one & other or first[:MIN_PREFIX] != second[:MIN_PREFIX]


_Copies = list[tuple[str, Sighting]]  # split and image, all of the same bytes


def check_copies(sightings: Sightings) -> list[Check]:
    """Count images with equal bytes: in train and test, of two identities, in query and gallery, in one identity."""
    counts = Counter(image.digest for images in sightings.values() for image in images)
    by_digest: dict[bytes, _Copies] = defaultdict(list)
    for split, images in sightings.items():
        for image in images:
            if counts[image.digest] > 1:
                by_digest[image.digest].append((split, image))
    groups = list(by_digest.values())
    leaks = [group for group in groups if {"train"} < {split for split, _ in group}]
    clashes = [group for group in groups if len({image.pid for _, image in group}) > 1]
    twice = [group for group in groups if len({(split, image.pid) for split, image in group}) < len(group)]
    found = [group for group in groups if {split for split, _ in group} >= set(TEST)]
    ranked = [group for group in found if not _is_excluded(group)]
    rule = f", where {'no' if ranked else 'the'} same-camera rule leaves them out" if found else ""
    total, queries = sum(map(len, sightings.values())), len(sightings.get("query", ()))
    level = "warning" if ranked else "note"
    return [
        _copies("copies in train and test", "warning", leaks, total, "are in train and in the test splits"),
        _copies("copies of two identities", "warning", clashes, total, "are stored under two identities"),
        _copies("copies of queries", level, ranked or found, queries, f"are in query and gallery{rule}"),
        _copies("copies in one identity", "note", twice, total, "are stored twice in one identity and split"),
    ]


def _copies(name: str, level: str, groups: Sequence[_Copies], of: int, text: str) -> Check:
    pairs = (" = ".join(f"{split}: {image.source}" for split, image in group[:3]) for group in groups)
    return _check(name, level, len(groups), of, f"{len(groups) or 'no'} images with equal bytes {text}", pairs)


def _is_excluded(group: _Copies) -> bool:
    """Return whether every gallery copy has the query's identity and known camera, so that it is never ranked."""
    labels = {(image.pid, image.camid) for split, image in group if split in TEST}
    return len(labels) == 1 and UNKNOWN_CAMERA not in {camid for _, camid in labels}


def _check(name: str, level: str, count: int, of: int, text: str, examples: Iterable[str]) -> Check:
    listed = list(examples)
    more = max(0, len(listed) - MAX_EXAMPLES)
    return Check(name, level if count else "ok", count, of, text, tuple(listed[:MAX_EXAMPLES]), more)
