"""shards/readers/folder.py: split/identity/*.jpg."""

import os
from pathlib import Path

import pytest

from shards.readers import folder


def test_identities_are_numbered_from_one_over_all_splits(folder_tree: Path) -> None:
    raw = folder.read(folder_tree)
    found = [(record.split, record.pid, record.camid, record.name, record.path.name) for record in raw.records]
    assert found == [
        ("train", 1, -1, "Ann", "1.JPG"),
        ("train", 1, -1, "Ann", "2.jpeg"),
        ("train", 2, -1, "Bob", "1.png"),
        ("train", 2, -1, "Bob", "2.jpg"),
        ("query", 3, -1, "Cleo", "1.jpg"),
        ("gallery", 3, -1, "Cleo", "2.jpg"),
        ("gallery", 3, -1, "Cleo", "3.png"),
    ]
    assert raw.distractor_pid is None and not raw.ignored and not raw.warnings


def test_numeric_names_are_sorted_as_numbers(tmp_path: Path, draw) -> None:
    for name in ("10", "9", "2"):
        draw(tmp_path / "train" / name / "a.jpg")
    assert [record.name for record in folder.read(tmp_path).records] == ["2", "9", "10"]


def test_one_identity_in_two_splits_has_one_number(tmp_path: Path, draw) -> None:
    draw(tmp_path / "train" / "b" / "1.jpg")
    draw(tmp_path / "gallery" / "a" / "1.jpg")
    draw(tmp_path / "gallery" / "b" / "2.jpg")
    assert [(record.split, record.pid) for record in folder.read(tmp_path).records] == [
        ("train", 2),
        ("gallery", 1),
        ("gallery", 2),
    ]


def test_strays_and_unknown_folders(folder_tree: Path, draw) -> None:
    (folder_tree / "train" / "Thumbs.db").write_bytes(b"x")
    (folder_tree / "train" / "Ann" / ".DS_Store").write_bytes(b"x")
    (folder_tree / "train" / "Ann" / "._1.jpg").write_bytes(b"x")
    (folder_tree / "train" / "Ann" / "notes.txt").write_bytes(b"x")
    draw(folder_tree / "train" / "Ann" / "deeper" / "1.jpg")
    draw(folder_tree / "val" / "Zoe" / "1.jpg")
    raw = folder.read(folder_tree)
    assert len(raw.records) == 7
    assert {path.name for path in raw.ignored} == {"Thumbs.db", ".DS_Store", "._1.jpg", "notes.txt", "deeper", "val"}
    assert raw.warnings == ["folders whose names are not splits were not read: val"]


def test_train_alone_is_enough(tmp_path: Path, draw) -> None:
    draw(tmp_path / "train" / "a" / "1.jpg")
    assert {record.split for record in folder.read(tmp_path).records} == {"train"}


def test_nothing_fits_the_layout(tmp_path: Path, draw) -> None:
    with pytest.raises(
        ValueError, match=r"nowhere: no such folder; .*give --root a folder laid out as <split>/<identity>"
    ):
        folder.read(tmp_path / "nowhere")
    draw(tmp_path / "flat" / "train" / "1.jpg")
    with pytest.raises(ValueError, match=r"no image found; expected <split>/<identity>.*; in train/: 1.jpg"):
        folder.read(tmp_path / "flat")
    with pytest.raises(ValueError, match="found flat/"):
        folder.read(tmp_path)


def test_a_name_that_is_not_utf8_is_refused_by_name(folder_tree: Path) -> None:
    (folder_tree / "train" / "Ann" / os.fsdecode(b"\xe9.jpg")).touch()
    with pytest.raises(ValueError, match=r"train/Ann/\\udce9\.jpg' is not UTF-8"):
        folder.read(folder_tree)
