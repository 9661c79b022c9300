"""shards/readers/prcc.py: two sets of clothes, camera and person in folders or names, val left out."""

from pathlib import Path

import pytest

from reid.data.manifest import load_manifest
from shards.__main__ import main
from shards.readers import prcc


@pytest.fixture
def root(tmp_path: Path, draw) -> Path:
    root = tmp_path / "prcc"
    for name in ("A_cropped_rgb001.jpg", "B_cropped_rgb002.jpg", "C_cropped_rgb003.jpg", "._A_cropped_rgb001.jpg"):
        draw(root / "rgb/train/001" / name)
        draw(root / "rgb/val/001" / name)
    for camera in "ABC":
        for person in ("005", "017"):
            draw(root / "rgb/test" / camera / person / "cropped_rgb001.jpg")
            draw(root / "sketch/test" / camera / person / "cropped_rgb001.jpg")
    draw(root / "rgb/train/001" / "D_cropped_rgb001.jpg")
    (root / "rgb/test/A/Thumbs.db").write_bytes(b"\xd0")
    return root


def test_cameras_and_clothes(root: Path) -> None:
    raw = prcc.read(root)
    facts = [(record.split, record.pid, record.camid, record.extra[0][1]) for record in raw.records]
    train = [("train", 1, 1, "1"), ("train", 1, 2, "1"), ("train", 1, 3, "2")]
    assert facts[:3] == train
    assert facts[3:5] == [("query", 5, 3, "2"), ("query", 17, 3, "2")]
    assert facts[5:] == [("gallery", 5, 1, "1"), ("gallery", 17, 1, "1")]
    assert raw.warnings == ["3 images of rgb/val, with the people of train, were left out"]
    names = [path.name for path in raw.ignored]
    assert sorted(names) == ["._A_cropped_rgb001.jpg", "D_cropped_rgb001.jpg", "Thumbs.db"]
    same = prcc.read(root, "same")
    assert [record.camid for record in same.records if record.split == "query"] == [2, 2]
    assert (raw.name, same.name) == ("prcc-changed", "prcc-same")


def test_from_the_command_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["build", "prcc", "--root", str(root), "--out", str(tmp_path / "out"), "--dataset=prcc-same"]
    assert main([*words, "--queries=same"]) == 0
    said = capsys.readouterr()
    assert "academic research only" in said.err and "as published it has 17896 of 150" in said.out
    manifest = load_manifest(tmp_path / "out")
    assert [split.num_images for split in manifest.splits.values()] == [3, 2, 2]
    assert main(["verify", str(tmp_path / "out"), "--decode"]) == 0


def test_other_folders_are_refused(root: Path, tmp_path: Path, draw) -> None:
    with pytest.raises(ValueError, match=r"train: no such folder; .*give --root the folder that holds rgb"):
        prcc.read(root / "rgb")
    with pytest.raises(ValueError, match="--queries other: use changed or same"):
        prcc.read(root, "other")
    for path in root.glob("rgb/test/C/*/*"):
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(ValueError, match=r"rgb/test/C: no image found; it holds 005/, 017/; give --root"):
        prcc.read(root)
