"""shards/readers/folder.py: split/identity/*.jpg."""

import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from reid.data.image_file import FORMATS
from reid.data.images import Pixels
from reid.data.shard_reader import read_identities
from shards.build import build
from shards.readers import folder
from shards.verify import verify


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
    draw(tmp_path / "query" / "b" / "1.jpg")
    draw(tmp_path / "gallery" / "a" / "1.jpg")
    draw(tmp_path / "gallery" / "b" / "2.jpg")
    assert [(record.split, record.pid) for record in folder.read(tmp_path).records] == [
        ("query", 2),
        ("gallery", 1),
        ("gallery", 2),
    ]
    draw(tmp_path / "train" / "b" / "3.jpg")
    with pytest.raises(ValueError, match=r"train/b: identity 'b' is in train, and in query or gallery at .*gallery/b"):
        folder.read(tmp_path)


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
    for number in range(20):
        (folder_tree / f"{number:02d}").mkdir()
    assert folder.read(folder_tree).warnings[0].endswith(": 00, 01, 02, 03, 04, 05, 06, 07 and 13 more")


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


def test_all_formats_that_training_decodes_are_read_and_others_counted(folder_tree: Path, tmp_path: Path, draw) -> None:
    for form in FORMATS:
        name = f"{form.lower()}.{'tif' if form == 'TIFF' else form}"
        draw(folder_tree / "train" / "Ann" / name)
    draw(folder_tree / "train" / "Ann" / "0.png").rename(folder_tree / "train" / "Ann" / "really_png.jpg")
    for name in ("1.heic", "2.HEIC", "3.tga", "4.txt", "._5.heic"):
        (folder_tree / "train" / "Ann" / name).touch()
    (folder_tree / "train" / "stray.jpg").touch()
    (folder_tree / "train" / "Bob" / "deeper").mkdir()
    done = build(folder.read(folder_tree), tmp_path / "out")
    train = done.manifest.split("train")
    assert train.images.tolist() == [2 + len(FORMATS) + 1, 2]
    with tarfile.open(tmp_path / "out" / "train-0000.tar") as tar:
        suffixes = Counter(name.rpartition(".")[2] for name in tar.getnames() if "000001" in name)
    assert suffixes == {"json": 1, "jpg": 3, "png": 2, "bmp": 1, "webp": 1, "tif": 1, "gif": 1}
    assert done.ignored == 7
    for counted in ("1 images lie", "(2 .heic, 1 .tga)", "1 folders inside"):
        assert sum(counted in warning for warning in done.warnings) == 1
    assert verify(tmp_path / "out", decode=True).damage == []
    (identity,) = (found for found in read_identities(tmp_path / "out", train, [0]) if found.pid == 1)
    pixels = [Pixels(8, 8).decode(identity.image(i), "x") for i in range(len(identity.files))]
    assert len(pixels) == 2 + len(FORMATS) + 1


def test_links_out_of_the_folder_are_counted(folder_tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (folder_tree / "train" / "Ann").rename(outside)
    (folder_tree / "train" / "Ann").symlink_to(outside)
    (folder_tree / "train" / "Bob" / "link.jpg").symlink_to(outside / "1.JPG")
    (folder_tree / "train" / "Bob" / "inside.jpg").symlink_to("2.jpg")
    warnings = build(folder.read(folder_tree), tmp_path / "out").warnings
    assert sum(warning.startswith("3 image(s) lie outside") for warning in warnings) == 1
    linked = tmp_path / "linked"
    linked.symlink_to(folder_tree)
    (folder_tree / "train" / "Ann").unlink()
    (folder_tree / "train" / "Bob" / "link.jpg").unlink()
    assert not any("outside" in warning for warning in build(folder.read(linked), tmp_path / "out").warnings)
