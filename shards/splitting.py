"""Train, query and gallery for a dataset without splits: people are disjoint, and every query has a match."""

import csv
import io
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from reid.files import make_folder, write_atomically
from shards.boxes import CORNERS
from shards.records import UNKNOWN_CAMERA, UNSPLIT, RawDataset, Record, count_records

WAYS = ("random", "time", "camera")

_People = dict[int, list[Record]]  # pid -> images


@dataclass(frozen=True)
class SplitRule:
    """How people are divided.

    test_share: share of the people that are tested, 0 (train only) to 1 (test only); by camera, of the cameras.
    by: "random"; "time" tests the people who came last; "camera" tests on cameras that training does not see. Each
        person is then drawn to one side: to test with the probability of the share of their images that cameras of test
        took. Their images by cameras of the other side are left out.
    distractor_share: share of the test people, at least, who are in the gallery without a query.
    seed: another seed divides differently.
    """

    test_share: float
    by: str = "random"
    distractor_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.test_share <= 1:
            raise ValueError(f"--test-share {self.test_share:g}: give a share of the people, from 0 to 1")
        if not 0 <= self.distractor_share < 1:
            raise ValueError(f"--distractors {self.distractor_share:g}: give a share of the test people, below 1")
        if self.by not in WAYS:
            raise ValueError(f"--by {self.by}: use {', '.join(WAYS)}")


def split_dataset(raw: RawDataset, rule: SplitRule) -> RawDataset:
    """Return the dataset with a split for each image; the same people in any order give the same splits.

    A test person has one query per camera, as far as each query keeps a match in the gallery: an image of another
    camera, or of an unknown one. The other images of test people are the gallery.

    Raises:
        ValueError: the images have splits already, or the result could not be evaluated; with the fix.
    """
    if any(record.split != UNSPLIT for record in raw.records):
        raise ValueError(f"{raw.root}: its images have splits already; leave --test-share out, or remove the splits")
    people = {pid: list(found) for pid, found in groupby(raw.records, key=lambda record: record.pid)}
    train, test = _divide_by_camera(raw, people, rule) if rule.by == "camera" else _divide(people, rule)
    left_out = len(raw.records) - sum(map(len, (*train.values(), *test.values())))
    records = [replace(record, split="train") for images in train.values() for record in images]
    queries = _pick_queries(test, rule)
    if rule.test_share:
        _check_test(raw, test, queries, len(people), rule)
    for pid, images in test.items():
        records += [replace(image, split="query" if image in queries[pid] else "gallery") for image in images]
    notes = [f"{left_out} images left out: people of one side on cameras of the other"] if left_out else []
    if silent := sum(not found for found in queries.values()):
        notes.append(f"{silent} of {len(test)} test people have no query: they are only in the gallery")
    return replace(raw, records=records, warnings=(*raw.warnings, *notes))


def _divide(people: _People, rule: SplitRule) -> tuple[_People, _People]:
    """Return the people of train and of test; by time, those who were seen first at the end are tested."""
    if rule.by == "time":
        times = {pid: _first_time(images) for pid, images in people.items()}
        order = sorted(people, key=lambda pid: (-times[pid], people[pid][0].name))
    else:
        order = sorted(people, key=lambda pid: _draw("person", rule.seed, people[pid][0].name))
    count = round(rule.test_share * len(order))
    if 0 < rule.test_share < 1:
        count = min(max(count, 1), len(order) - 1)
    test = set(order[:count])
    return (
        {pid: images for pid, images in people.items() if pid not in test},
        {pid: images for pid, images in people.items() if pid in test},
    )


def _first_time(images: Sequence[Record]) -> float:
    times = [image.time for image in images if image.time is not None]
    if len(times) < len(images):
        without = next(image for image in images if image.time is None)
        raise ValueError(f"--by time: {without.path} has no time; a CSV gives it in the column time")
    return min(times)


def _divide_by_camera(raw: RawDataset, people: _People, rule: SplitRule) -> tuple[_People, _People]:
    """Return the people of train and of test, and only their images by cameras of that side."""
    cameras = sorted({record.camid for record in raw.records}, key=lambda camid: _draw("camera", rule.seed, camid))
    if UNKNOWN_CAMERA in cameras or len(cameras) < 3 or not 0 < rule.test_share < 1:
        found = "some are unknown" if UNKNOWN_CAMERA in cameras else f"there are {len(cameras)}"
        raise ValueError(
            f"--by camera --test-share {rule.test_share:g}: needs a share between 0 and 1 and at least three cameras, "
            f"two of them to test ({found}); use --by random"
        )
    tested = set(cameras[: min(max(round(rule.test_share * len(cameras)), 2), len(cameras) - 1)])
    sides: tuple[_People, _People] = {}, {}
    for pid, images in people.items():
        on_tested = [image.camid in tested for image in images]
        side = _draw("side", rule.seed, images[0].name) < sum(on_tested) / len(images)
        sides[side][pid] = [image for image, is_tested in zip(images, on_tested, strict=True) if is_tested == side]
    if not sides[0]:
        raise ValueError(
            f"{raw.root}: --by camera leaves no person for training; lower --test-share or give another --seed"
        )
    return sides


def _pick_queries(test: _People, rule: SplitRule) -> dict[int, list[Record]]:
    """Return the queries of each test person; none for as many people as the share of distractors says."""
    queries = {pid: _pick_of_person(images, rule) for pid, images in test.items()}
    order = sorted(test, key=lambda pid: (bool(queries[pid]), _draw("distractor", rule.seed, test[pid][0].name)))
    for pid in order[: round(rule.distractor_share * len(order))]:
        queries[pid] = []
    return queries


def _pick_of_person(images: Sequence[Record], rule: SplitRule) -> list[Record]:
    """Return one image per camera, the first in time or a random one, while each query keeps a match."""
    by_camera: dict[int, list[Record]] = defaultdict(list)
    for image in images:
        by_camera[image.camid].append(image)
    queries: list[Record] = []
    gallery = list(images)
    for camid, found in sorted(by_camera.items()):
        if rule.by == "time":
            query = min(found, key=lambda image: image.time or 0)
        else:
            query = found[int(_draw("query", rule.seed, images[0].name, camid) * len(found))]
        rest = [image for image in gallery if image is not query]
        if all(_has_match(each, rest) for each in [*queries, query]):
            queries, gallery = [*queries, query], rest
    return queries


def _has_match(query: Record, gallery: Sequence[Record]) -> bool:
    """Return whether the same-camera rule leaves a match; an unknown camera differs from every camera."""
    return any(image.camid == UNKNOWN_CAMERA or image.camid != query.camid for image in gallery)


def _check_test(raw: RawDataset, test: _People, queries: dict[int, list[Record]], people: int, rule: SplitRule) -> None:
    """Raise ValueError if an evaluation on these people would mean nothing."""
    if len(test) < 2:
        raise ValueError(
            f"{raw.root}: {len(test)} of {people} people is tested, and a ranking needs at least 2; raise --test-share"
        )
    if any(queries.values()):
        return
    if all(len(images) == 1 for images in test.values()):
        fix = "has one image, and a query needs another one as its match; give people two or more, or another --seed"
        raise ValueError(f"{raw.root}: no test person can be a query: each of {len(test)} {fix}")
    cameras = {record.camid for images in test.values() for record in images}
    if len(cameras) == 1 and UNKNOWN_CAMERA not in cameras:
        name = raw.cameras.get(min(cameras), str(min(cameras)))
        fix = f"all their images are of the camera {name!r}, and matches of one camera are not counted; leave it empty"
        raise ValueError(f"{raw.root}: no test person can be a query: {fix}")
    if round(rule.distractor_share * len(test)) == len(test):
        share = f"--distractors {rule.distractor_share:g}"
        raise ValueError(f"{raw.root}: {share} leaves none of {len(test)} test people a query; lower it")
    raise ValueError(
        f"{raw.root}: no test person can be a query: 0 of {len(test)} were seen by two cameras or more; give a person "
        "one identity in all cameras (tracks: --ids shared or --merge), leave the cameras empty, or give another --seed"
    )


def _draw(*key: object) -> float:
    """Return a random number for a name, in [0, 1): it does not depend on the other people."""
    return random.Random("/".join(map(str, key))).random()


def write_table(raw: RawDataset, path: Path) -> None:
    """Write the CSV that the reader `csv` reads as this dataset. Raises ValueError if the file exists."""
    if path.exists():
        raise ValueError(f"{path}: exists; give another --out, or remove it yourself")
    records = sorted(raw.records, key=lambda record: (record.path, record.frame or 0, record.box or ()))
    columns = ["path", "identity", "camera", "split"]
    columns += ["frame"] if any(record.frame is not None for record in records) else []
    columns += CORNERS if any(record.box for record in records) else []
    columns += [name for name, _ in records[0].extra]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for record in records:
        camera = "" if record.camid == UNKNOWN_CAMERA else raw.cameras.get(record.camid, str(record.camid))
        fields = [record.path.relative_to(raw.root).as_posix(), record.name, camera, record.split]
        fields += [str(record.frame or "")] if "frame" in columns else []
        fields += [f"{edge:.12g}" for edge in record.box[:4]] if record.box else []
        writer.writerow([*fields, *(value for _, value in record.extra)])
    make_folder(path.parent)
    write_atomically(path, text.getvalue())


def format_counts(raw: RawDataset) -> str:
    """Return a line with the images and people of each split."""
    return "; ".join(f"{split}: {counts}" for split, counts in count_records(raw).items())
