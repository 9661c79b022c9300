"""shards/stats.py: the table's numbers, the picture, and where it is put."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid.data.manifest import Manifest, Shard, Split
from shards.__main__ import main
from shards.build import build
from shards.readers import folder, market1501
from shards.stats import count_per_identity, draw_stats, format_stats, read_sample
from tests.support.status import status_of


def test_junk_and_distractors_are_no_identities(market: Path, tmp_path: Path) -> None:
    manifest = build(market1501.read(market), tmp_path / "out").manifest
    images, cameras = count_per_identity(manifest.split("gallery"), manifest.distractor_pid)
    assert images.tolist() == [3, 3, 3] and cameras.tolist() == [3, 3, 3]
    images, cameras = count_per_identity(manifest.split("train"), manifest.distractor_pid)
    assert sorted(images.tolist()) == list(range(2, 11)) and sorted(cameras.tolist()) == [2, 3, 4, 5, 6, 6, 6, 6, 6]


def test_command(market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data" / "out"
    assert main(["build", "market1501", "--root", str(market), "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["stats", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split() for line in printed[1:4]] == [
        ["train", "9", "2", "6", "6.0", "10", "4.9", "0"],
        ["query", "3", "1", "1", "1.0", "1", "1.0", "3"],
        ["gallery", "3", "3", "3", "3.0", "3", "3.0", "0"],
    ]
    picture = tmp_path / "data" / "out-stats.png"
    assert printed[4] == f"picture: {picture}"
    with Image.open(picture) as image:
        assert image.width > 800 and image.height > 600
    assert main(["verify", str(out)]) == 0
    assert main(["build", "market1501", "--root", str(market), "--out", str(out)]) == 0  # the picture is not in its way
    assert main(["stats", str(out), "--out", str(tmp_path / "new" / "a.svg")]) == 0
    assert (tmp_path / "new" / "a.svg").read_text().startswith("<?xml")
    capsys.readouterr()
    assert status_of(main, "stats", str(out), "--out", str(tmp_path / "a.xyz")) == 2
    assert "a.xyz: the picture cannot be written" in capsys.readouterr().err
    assert status_of(main, "stats", str(tmp_path / "nowhere")) == 2


def test_sample_images_are_those_of_identities(market: Path, tmp_path: Path) -> None:
    manifest = build(market1501.read(market), tmp_path / "out", num_shards=1).manifest
    for name, number in (("train", 9), ("gallery", 3)):  # gallery: no distractors, no junk
        images, reason = read_sample(tmp_path / "out", manifest.split(name), manifest.distractor_pid)
        assert [image.shape for image in images] == [(32, 16, 3)] * number and not reason
    several = build(market1501.read(market), tmp_path / "several", num_shards=4).manifest
    assert len(read_sample(tmp_path / "several", several.split("train"), several.distractor_pid)[0]) == 9
    (tmp_path / "out" / "train-0000.tar").unlink()
    images, reason = read_sample(tmp_path / "out", manifest.split("train"), manifest.distractor_pid)
    assert not images and "train-0000.tar" in reason


def test_unknown_cameras(folder_tree: Path, tmp_path: Path) -> None:
    manifest = build(folder.read(folder_tree), tmp_path / "out").manifest
    assert format_stats(manifest).splitlines()[1].split() == ["train", "2", "2", "2", "2.0", "2", "unknown", "-"]
    assert draw_stats(manifest, tmp_path / "a.png", tmp_path / "out").is_file()


def test_a_wide_range_of_counts_is_drawn_in_few_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.arange(1, 1001)
    split = Split(
        (Shard("train-0000.tar", "a" * 64, 1, 1000, int(images.sum())),),
        np.arange(1000),
        images,
        np.zeros(1000, dtype=np.int64),
        ((1, 2),) * 1000,
        ("x",) * 1000,
    )
    drawn: list[tuple[np.ndarray, list[float]]] = []
    monkeypatch.setattr("matplotlib.axes.Axes.hist", lambda self, values, bins, **_: drawn.append((values, bins)))
    draw_stats(Manifest("x", {"train": split}), tmp_path / "a.png", tmp_path)  # without its shards: no sample
    (values, bins), (_, camera_bins) = drawn
    assert len(bins) <= 42 and bins[0] <= 1 and bins[-1] >= 1000
    assert len(np.histogram(values, bins)[0]) <= 41 and np.histogram(values, bins)[0].sum() == 1000
    assert camera_bins == [1.5, 2.5]


def test_nothing_but_distractors(market: Path, tmp_path: Path) -> None:
    manifest = build(market1501.read(market), tmp_path / "out").manifest
    gallery = manifest.split("gallery")
    rows = np.flatnonzero(gallery.pids <= 0)
    nobody = replace(
        gallery,
        pids=gallery.pids[rows],
        images=gallery.images[rows],
        shard=gallery.shard[rows],
        cameras=tuple(gallery.cameras[row] for row in rows),
    )
    manifest = replace(manifest, splits={"gallery": nobody})
    assert format_stats(manifest).splitlines()[1].split() == ["gallery", "0", *["-"] * 6]
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_stats(manifest, tmp_path / "a.png", tmp_path)
