"""`shards split` and `build --test-share`: who is tested, the queries, and what cannot be evaluated."""

import csv
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from reid.data.manifest import load_manifest
from shards.__main__ import main
from shards.boxes import Box
from shards.readers import csv_file, folder
from shards.records import UNKNOWN_CAMERA, RawDataset, Record
from shards.splitting import SplitRule, split_dataset, write_table
from tests.support.status import status_of


def dataset(people: dict[str, list[int]]) -> RawDataset:
    """Person -> the camera of each image; the n-th person's i-th image has the time 100 n + i."""
    records = [
        Record(Path(f"/d/{name}/{i}.jpg"), pid, camera, "", name, time=100.0 * pid + i)
        for pid, (name, cameras) in enumerate(people.items(), 1)
        for i, camera in enumerate(cameras)
    ]
    return RawDataset("d", Path("/d"), records, None, "", cameras={1: "gate"})


MANY = {f"p{number}": [1, 1, 2, 2, 3] for number in range(20)}


def names(raw: RawDataset, *splits: str) -> set[str]:
    return {record.name for record in raw.records if record.split in splits}


@pytest.mark.parametrize("by", ["random", "time"])
def test_people_are_disjoint_and_have_a_query_per_camera(by: str) -> None:
    raw = split_dataset(dataset(MANY), SplitRule(0.3, by))
    assert len(names(raw, "query")) == 6 and names(raw, "query") == names(raw, "gallery")
    assert not names(raw, "train") & names(raw, "query", "gallery") and len(raw.records) == 100
    seen = Counter((record.name, record.camid) for record in raw.records if record.split == "query")
    assert set(seen.values()) == {1} and len(seen) == 18
    again = dataset(MANY)
    assert split_dataset(replace(again, records=again.records[::-1]), SplitRule(0.3, by)).records == raw.records


def test_seeds_differ_and_a_new_person_moves_nobody() -> None:
    sets = [names(split_dataset(dataset(MANY), SplitRule(0.3, seed=seed)), "gallery") for seed in range(5)]
    assert len({frozenset(found) for found in sets}) == 5
    more = names(split_dataset(dataset(MANY | {"new": [1, 2]}), SplitRule(0.3)), "gallery")
    assert len(more - {"new"} - sets[0]) == 0


def test_by_time_the_last_people_are_tested_with_their_first_images() -> None:
    raw = split_dataset(dataset(MANY), SplitRule(0.25, "time"))
    assert names(raw, "gallery") == {f"p{number}" for number in range(15, 20)}
    times = defaultdict(list)
    for record in raw.records:
        times[record.name, record.camid, record.split].append(record.time)
    for (name, camid, split), found in times.items():
        assert split != "query" or max(found) < min(times.get((name, camid, "gallery"), [float("inf")]))


def test_by_camera_sides_share_neither_people_nor_cameras() -> None:
    people = {f"p{number}": [1 + (number * k + k // 2) % 6 for k in range(1, 7)] for number in range(24)}
    raw = split_dataset(dataset(people), SplitRule(0.5, "camera"))
    cameras = [{r.camid for r in raw.records if (r.split == "train") == side} for side in (True, False)]
    assert cameras[0] and len(cameras[1]) >= 2 and not cameras[0] & cameras[1]
    assert names(raw, "query") and not names(raw, "train") & names(raw, "query", "gallery")
    assert len(raw.records) < 144 and "images left out" in raw.warnings[0]


@pytest.mark.parametrize(("cameras", "share"), [(3, 0.5), (4, 0.5), (4, 0.75)])
def test_by_camera_divides_people_whom_all_cameras_see(cameras: int, share: float) -> None:
    people = {f"p{number}": list(range(1, cameras + 1)) for number in range(24)}
    raw = split_dataset(dataset(people), SplitRule(share, "camera"))
    assert len(names(raw, "train")) >= 3 and len(names(raw, "query")) >= 3


@pytest.mark.parametrize(
    ("cameras", "queries"),
    [
        ([1, 2], [1]),
        ([1, 1, 2], [1]),
        ([1, 1, 2, 2], [1, 2]),
        ([1, 2, 3], [1, 2]),
        ([1, 1, 1], []),
        ([1], []),
        ([UNKNOWN_CAMERA] * 3, [UNKNOWN_CAMERA]),
        ([UNKNOWN_CAMERA], []),
        ([1, 1, UNKNOWN_CAMERA], [1]),
    ],
)
def test_every_query_keeps_a_match(cameras: list[int], queries: list[int]) -> None:
    raw = split_dataset(dataset({"x": cameras, "other": [1, 1, 2, 2]}), SplitRule(1.0))
    found = [record for record in raw.records if record.name == "x"]
    wanted = sorted(record.camid for record in found if record.split == "query")
    # an unknown camera's own query needs another image to match; [1, 1, -1]: either of its two queries would do
    assert wanted == queries or (cameras == [1, 1, UNKNOWN_CAMERA] and len(wanted) in (1, 2))
    gallery = [record.camid for record in found if record.split == "gallery"]
    assert all(any(camid != query or camid == UNKNOWN_CAMERA for camid in gallery) for query in wanted)


def test_distractors_are_first_the_people_without_a_query() -> None:
    people = MANY | {f"single{number}": [1, 1] for number in range(4)}
    raw = split_dataset(dataset(people), SplitRule(1.0, distractor_share=0.5))
    without = names(raw, "gallery") - names(raw, "query")
    assert len(without) == 12 and {f"single{number}" for number in range(4)} <= without
    assert "12 of 24 test people have no query" in raw.warnings[0]


@pytest.mark.parametrize(
    ("people", "rule", "message"),
    [
        ({"a": [1, 1], "b": [1, 1]}, dict(test_share=1.0), "camera 'gate', .*leave it empty"),
        ({"a": [1, 1], "b": [2, 2]}, dict(test_share=1.0), "0 of 2 were seen by two cameras"),
        ({"a": [-1], "b": [-1]}, dict(test_share=1.0), "no test person can be a query: each of 2 has one image"),
        ({"a": [-1, -1], "b": [-1, -1]}, dict(test_share=1.0, distractor_share=0.9), "--distractors 0.9 leaves none"),
        (MANY, dict(test_share=0.01), "1 of 20 people is tested, .* raise --test-share"),
        ({"a": [1, 2]}, dict(test_share=0.5), "0 of 1 people is tested"),
        (MANY, dict(test_share=1.5), "--test-share 1.5"),
        (MANY, dict(test_share=float("nan")), "--test-share nan"),
        (MANY, dict(test_share=0.5, distractor_share=1.0), "--distractors 1"),
        (MANY, dict(test_share=0.5, by="size"), "--by size: use random, time, camera"),
        ({"a": [1, 2], "b": [1, 2]}, dict(test_share=0.5, by="camera"), r"three cameras, .*there are 2"),
        ({"a": [1, -1], "b": [3, 2]}, dict(test_share=0.5, by="camera"), "some are unknown"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_the_fix(
    people: dict[str, list[int]], rule: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        split_dataset(dataset(people), SplitRule(**rule))


def test_shares_of_everybody_and_of_nobody() -> None:
    assert {record.split for record in split_dataset(dataset(MANY), SplitRule(0)).records} == {"train"}
    assert {record.split for record in split_dataset(dataset(MANY), SplitRule(1)).records} == {"query", "gallery"}
    with pytest.raises(ValueError, match="have splits already"):
        split_dataset(split_dataset(dataset(MANY), SplitRule(0.5)), SplitRule(0.5))
    timeless = dataset({"a": [1, 2], "b": [1, 2]})
    timeless = replace(timeless, records=[replace(record, time=None) for record in timeless.records])
    with pytest.raises(ValueError, match="has no time; a CSV gives it"):
        split_dataset(timeless, SplitRule(0.5, "time"))


def test_the_table_reads_back_as_the_same_dataset(tmp_path: Path) -> None:
    raw = dataset(MANY)
    boxed = [
        replace(r, path=tmp_path / r.name / "1.jpg", box=Box(r.pid / 3, r.camid, r.pid + r.time / 7, 9.5, False))
        for r in raw.records
    ]
    raw = split_dataset(
        replace(raw, root=tmp_path, records=boxed, cameras={1: "gate", 2: "hall", 3: "yard"}), SplitRule(0.5)
    )
    write_table(raw, tmp_path / "split.csv")
    read = csv_file.read(tmp_path)

    def facts(raw: RawDataset) -> list[object]:
        boxes = [tuple(round(edge, 6) for edge in record.box[:4]) for record in raw.records]
        return sorted(
            (r.split, r.name, r.path, raw.cameras[r.camid], box) for r, box in zip(raw.records, boxes, strict=True)
        )

    assert facts(read) == facts(raw)
    with pytest.raises(ValueError, match="exists"):
        write_table(raw, tmp_path / "split.csv")


def test_a_folder_of_people_from_the_command_line(tmp_path: Path, draw, capsys: pytest.CaptureFixture[str]) -> None:
    """Without splits it is refused with the fix; `split` then `build csv` equals `build --test-share`."""
    root = tmp_path / "people"
    for number in range(10):
        for image in range(3):
            draw(root / f"p{number}" / f"{image}.{'webp' if image else 'jpg'}")
    assert {record.split for record in folder.read(root).records} == {""}
    common = ["folder", "--root", str(root)]
    assert status_of(main, "build", *common, "--out", str(tmp_path / "a")) == 2
    assert "its images have no split; give the share" in capsys.readouterr().err
    assert status_of(main, "build", *common, "--out", str(tmp_path / "a"), "--seed=1") == 2
    assert "also need --test-share" in capsys.readouterr().err
    shared = ["--test-share=0.4", "--seed=3", "--distractors=0.25"]
    assert main(["build", *common, "--out", str(tmp_path / "a"), *shared]) == 0
    assert "1 of 4 test people have no query" in capsys.readouterr().out
    table = tmp_path / "split.csv"
    assert main(["split", *common, "--out", str(table), *shared]) == 0
    said = capsys.readouterr().out
    assert "query: 3 images of 3 identities" in said and f"build csv --root {root} --csv {table}" in said
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 30 and set(rows[0]) == {"path", "identity", "camera", "split"}
    assert main(["build", "csv", "--root", str(root), "--csv", str(table), "--out", str(tmp_path / "b")]) == 0
    one, two = (load_manifest(tmp_path / name) for name in "ab")
    assert list(one.splits) == list(two.splits) == ["train", "query", "gallery"]
    for split in one.splits:
        assert one.split(split).names == two.split(split).names
        assert (one.split(split).pids == two.split(split).pids).all()
        assert (one.split(split).images == two.split(split).images).all()
    assert status_of(main, "build", "csv", "--root", root, "--csv", table, "--out", tmp_path / "b", *shared) == 2
    assert "have splits already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1.jpg,a,,noon\n", "line 2: time 'noon' is no number and no date"),
        ("1.jpg,a,,inf\n", "line 2: time 'inf'"),
        ("1.jpg,a,train,1\n2.jpg,a,,1\n", "line 3: split '' is unknown"),
    ],
)
def test_tables_that_are_partly_divided_or_have_no_time(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text("path,identity,split,time\n" + rows)
    with pytest.raises(ValueError, match=message):
        csv_file.read(tmp_path)


def test_times_may_be_dates(tmp_path: Path) -> None:
    rows = "1.jpg,a,2026-01-31 08:15:00\n2.jpg,a,2026-01-31T08:15:01.5\n3.jpg,a,\n"
    (tmp_path / "labels.csv").write_text("path,identity,time\n" + rows)
    first, second, third = (record.time for record in csv_file.read(tmp_path).records)
    assert second - first == 1.5 and third is None
