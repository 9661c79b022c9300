"""shards/checks.py: each finding alone, and what is no finding."""

from itertools import count

import pytest

from shards.checks import Check, run_checks
from shards.records import Sighting

NUMBER = count()


def image(pid: int, camid: int, content: str | None = None) -> Sighting:
    number = next(NUMBER)
    return Sighting(pid, camid, f"{number}.jpg", (content or f"own {number}").encode())


def four(pid: int, *more: Sighting) -> list[Sighting]:
    return [*more, *(image(pid, camid) for camid in range(1, 5 - len(more)))]


def found(name: str, distractor_pid: int | None = None, **sightings: list[Sighting]) -> Check:
    return next(check for check in run_checks(sightings, distractor_pid) if check.name == name)


def test_nothing_to_say() -> None:
    checks = run_checks({"train": four(1), "query": [image(2, 1)], "gallery": [image(2, 2)]}, None)
    assert [check.level for check in checks] == ["ok"] * 8
    assert len({check.name for check in checks}) == 8
    assert {check.level for check in run_checks({}, 0)} == {"ok"}


def test_identity_overlap() -> None:
    train, gallery = four(2) + four(1) + four(3), [image(2, 2)]
    check = found("identity overlap", train=train, query=[image(3, 1)], gallery=gallery)
    assert (check.level, check.count, check.of, check.examples) == ("warning", 2, 3, ("2", "3"))
    assert f"e.g. pid 2 ({train[0].source} and {gallery[0].source})" in check.text


def test_junk_and_distractors_are_no_overlap() -> None:
    sightings = {"train": [image(-1, 1), image(0, 1), image(0, 2)], "gallery": [image(-1, 1), image(0, 1)]}
    levels = [[check.level for check in run_checks(sightings, distractor_pid)] for distractor_pid in (0, None)]
    assert [found.count("warning") for found in levels] == [0, 1]


def test_queries_without_a_match() -> None:
    queries = [image(1, 1), image(2, 1), image(3, 1), image(4, -1), image(5, 2)]
    gallery = [image(1, 1), image(3, 2), image(4, -1), image(5, -1), image(-1, 9)]
    check = found("queries without match", query=queries, gallery=gallery)
    assert (check.level, check.count, check.of) == ("warning", 2, 5)
    assert check.examples == (queries[0].source, queries[1].source)


def test_cameras() -> None:
    train = [image(1, 1), image(1, 2), image(2, 3), image(2, 3)]
    check = found("camera coverage", train=train, gallery=[image(0, 7), image(8, 1)], distractor_pid=0)
    assert check.level == "ok"
    assert check.text == (
        "train 3 cameras, 1 of 2 identities have a single camera; "
        "gallery 2 cameras, 1 of 1 identities have a single camera"
    )
    check = found("camera coverage", train=[*train, image(2, -1)])
    assert (check.level, check.count, check.of) == ("warning", 1, 5)
    assert check.text.startswith("1 of 5 images have no camera id")
    check = found("camera coverage", train=[image(1, -1), image(1, -1)])
    assert check.level == "note" and "no same-camera rule" in check.text


def test_near_empty_identities() -> None:
    check = found("near-empty identities", train=four(1) + four(2)[:3])
    assert (check.level, check.count, check.of, check.examples) == ("note", 1, 2, ("2",))
    check = found("near-empty identities", train=four(1) + four(2)[:3] + [image(3, 1), image(0, 1)], distractor_pid=0)
    assert (check.level, check.count, check.of, check.examples) == ("warning", 2, 3, ("3",))
    assert check.text.startswith("1 train identities have one image")


@pytest.mark.parametrize("split", ["query", "gallery"])
def test_a_train_image_in_a_test_split(split: str) -> None:
    copy = image(1, 1, "x")
    check = found("copies in train and test", **{"train": four(1, copy), split: [image(7, 1, "x")]})
    assert (check.level, check.count) == ("warning", 1)
    assert check.examples[0].startswith(f"train: {copy.source} = {split}: ")


def test_one_image_under_two_identities() -> None:
    check = found("copies of two identities", train=four(1, image(1, 1, "x")) + four(2, image(2, 5, "x")))
    assert (check.level, check.count, check.of) == ("warning", 1, 8)
    assert found("copies of two identities", gallery=[image(-1, 1, "x"), image(5, 1, "x")]).level == "ok"  # junk


@pytest.mark.parametrize(
    ("query", "level"), [((5, 1), "note"), ((5, 2), "warning"), ((6, 1), "warning"), ((5, -1), "warning")]
)
def test_a_query_in_the_gallery(query: tuple[int, int], level: str) -> None:
    camid = -1 if query[1] == -1 else 1
    gallery = [image(5, camid, "x"), image(5, 3)]
    check = found("copies of queries", query=[image(*query, "x"), image(5, 4)], gallery=gallery)
    assert (check.level, check.count, check.of) == (level, 1, 2)
    assert ("the same-camera rule leaves them out" in check.text) == (level == "note")


def test_twice_in_one_identity() -> None:
    check = found("copies in one identity", train=four(1, image(1, 1, "x"), image(1, 2, "x")))
    assert (check.level, check.count) == ("note", 1)


def test_examples_are_few() -> None:
    train = [image(1, 1, f"{number}") for number in range(30)]
    check = found("copies in train and test", train=train, gallery=[image(2, 1, f"{number}") for number in range(30)])
    assert check.count == 30 and len(check.examples) == 5 and check.more == 25


def test_one_camera_everywhere_has_its_own_advice() -> None:
    test = {"query": [image(1, 1), image(2, 1)], "gallery": [image(1, 1), image(2, 1)]}
    assert "leave the camera column of the CSV empty" in found("queries without match", **test).text
    unknown = {"query": [image(1, -1)], "gallery": [image(2, -1)]}  # person 1 is not in the gallery
    check = found("queries without match", **unknown)
    assert check.count == 1 and "camera column" not in check.text
    test["gallery"].append(image(3, 2))
    assert "leave" not in found("queries without match", **test).text


def mixed(*places: tuple[str, int], split: str = "train", pid: int = 7) -> list[Check]:
    """The check of one identity with an image in each (folder, camera), beside another identity in each folder."""
    images = [Sighting(pid, camid, f"{folder}/{next(NUMBER)}.jpg", b"own") for folder, camid in places]
    images += [Sighting(100 + i, camid, f"{folder}/x{i}.jpg", b"") for i, (folder, camid) in enumerate(places)]
    return [check for check in run_checks({split: images}, 0) if check.name == "mixed datasets"]


@pytest.mark.parametrize(
    "places",
    [
        (("all/mall/a", 1), ("all/mall/a", 2), ("all/shop/a", 1)),  # both count cameras from 1
        (("mall", 1), ("mall", 2), ("shop", 3), ("shop", 4)),
        (("site1", 1), ("site1", 2), ("site2", 3), ("site2", 4)),
        (("mall", -1), ("shop", -1)),
    ],
)
def test_two_datasets_that_both_count_from_one(places: tuple[tuple[str, int], ...]) -> None:
    (check,) = mixed(*places)
    assert (check.level, check.count) == ("warning", 1) and "pid 7 in " in check.text


@pytest.mark.parametrize(
    "places",
    [
        (("entrance", 1), ("hall", 2), ("yard", 3)),  # a folder for each camera
        (("cam1", -1), ("cam2", -1)),
        (("monday", 1), ("monday", 2)),
        (("2024-05-01", 1), ("2024-05-01", 2), ("2024-05-02", 1)),
        tuple((f"{number:02x}", camid) for number in range(30) for camid in (1, 2)),  # by hash
    ],
)
def test_folders_of_one_dataset(places: tuple[tuple[str, int], ...]) -> None:
    assert mixed(*places) == []


def test_splits_junk_and_distractors_are_not_mixed() -> None:
    assert mixed(("mall", 1), ("mall", 2), ("shop", 1), pid=0) == mixed(("mall", 1), ("shop", 1), pid=-1) == []
    train, gallery = ([Sighting(7, camid, f"{folder}/{camid}.jpg", b"") for camid in (1, 2)] for folder in ("a", "b"))
    assert not [
        check for check in run_checks({"train": train, "gallery": gallery}, None) if check.name == "mixed datasets"
    ]
