"""shards/readers/vehicleid.py: lists of images and vehicles; one image per test vehicle is drawn for the gallery."""

from pathlib import Path

import pytest

from reid.data.manifest import load_manifest
from shards.__main__ import main
from shards.readers import vehicleid
from shards.records import Counts
from tests.support.status import status_of

TEST = {"21": ["0000101", "0000102", "0000103"], "7": ["0000200", "0000201"], "300": ["0000300"]}


@pytest.fixture
def root(tmp_path: Path, draw) -> Path:
    root = tmp_path / "VehicleID_V1.0"
    (root / "train_test_split").mkdir(parents=True)
    train = {"4": ["0000001", "0000002"], "5": ["0000003"]}
    for name, listed in (("train_list", train), ("test_list_800", TEST)):
        lines = [f"{image} {vehicle}" for vehicle, images in listed.items() for image in images]
        (root / "train_test_split" / f"{name}.txt").write_text("\r\n".join(lines) + "\r\n")
        for line in lines:
            draw(root / "image" / f"{line.split()[0]}.jpg")
    draw(root / "image" / "0009999.jpg")  # in no list
    return root


def split(root: Path, draw: int = 0) -> tuple[set[str], set[str]]:
    records = vehicleid.read(root, draw=draw).records
    query, gallery = ({r.path.stem for r in records if r.split == name} for name in ("query", "gallery"))
    return query, gallery


def test_one_image_per_vehicle_is_the_gallery(root: Path) -> None:
    raw = vehicleid.read(root)
    assert {record.camid for record in raw.records} == {-1}
    assert [(record.pid, record.path.stem) for record in raw.records if record.split == "train"] == [
        (4, "0000001"),
        (4, "0000002"),
        (5, "0000003"),
    ]
    query, gallery = split(root)
    assert query | gallery == {image for images in TEST.values() for image in images} and not query & gallery
    assert all(len(gallery.intersection(images)) == 1 for images in TEST.values())
    assert split(root) == (query, gallery) and len({frozenset(split(root, draw)[1]) for draw in range(9)}) > 2


def test_from_the_command_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["build", "vehicleid", "--root", str(root), "--out", str(tmp_path / "out"), "--dataset=vehicleid-800"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "academic research only" in said.err and "as published it has 113346 of 13164" in said.out
    manifest = load_manifest(tmp_path / "out")
    assert [split.num_images for split in manifest.splits.values()] == [3, 3, 3]
    assert vehicleid.read(root).published["query"] == Counts(5_693, 800)
    assert status_of(main, *words, "--vehicles=1600") == 2
    assert "test_list_1600.txt: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0000101.jpg 7", "does not read like '0000001 4215'"),
        ("0000101", "does not read like"),
        ("../x 7", "does not read like"),
        ("0000101 7\n0000101 8", "image 0000101 is listed twice"),
        ("", "is empty"),
    ],
)
def test_lists_that_cannot_be_read(root: Path, line: str, message: str) -> None:
    (root / "train_test_split/test_list_800.txt").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=rf"test_list_800\.txt.*{message}"):
        vehicleid.read(root)


def test_other_folders_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image: no such folder; .*give --root the folder that holds image and"):
        vehicleid.read(tmp_path)
    with pytest.raises(ValueError, match="--vehicles 900: use 800, 1600, 2400"):
        vehicleid.read(root, 900)
