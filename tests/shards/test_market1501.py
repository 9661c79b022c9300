"""shards/readers/market1501.py against a drawn tree in the exact layout."""

from collections import Counter
from pathlib import Path

import pytest

from shards.readers import market1501
from shards.readers.market_layout import PATTERN


def test_counts_and_labels(market: Path) -> None:
    raw = market1501.read(market)
    assert Counter(record.split for record in raw.records) == {"train": 54, "query": 3, "gallery": 47}
    gallery = Counter(record.pid for record in raw.records if record.split == "gallery")
    assert gallery == {-1: 20, 0: 18, 1: 3, 21: 3, 1501: 3}
    assert raw.distractor_pid == 0
    assert "research" in raw.notice and "redistributed" in raw.notice
    assert not raw.warnings
    one = next(record for record in raw.records if record.path.name == "1501_c112s2_000100_01.jpg")
    assert (one.pid, one.camid, one.split, one.name) == (1501, 112, "gallery", "1501")
    junk = next(record for record in raw.records if record.pid == -1)
    assert junk.name == "-1"


def test_strays_are_counted(market: Path) -> None:
    strays = {path.name for path in market1501.read(market).ignored}
    assert strays == {"Thumbs.db", ".DS_Store", "._0001_c1s2_000100_01.jpg", "readme.txt"}


def test_order_is_by_split_pid_and_path(market: Path) -> None:
    records = market1501.read(market).records
    splits = ["train", "query", "gallery"]
    keys = [(splits.index(record.split), record.pid, str(record.path)) for record in records]
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    ("name", "pid", "camid"),
    [
        ("0002_c1s1_000451_03.jpg", 2, 1),
        ("-1_c3s1_000451_03.jpg", -1, 3),
        ("0002_c15s1_000451_03.jpg.jpg", 2, 15),
        ("0001_c001_00016450_0.jpg", 1, 1),
        ("0005_c2_f0046985.JPG", 5, 2),
        ("12345_c1s1_000451_03.png", 12345, 1),
        ("0002_c1s1_000451_03.WebP", 2, 1),
        ("0002_c1s1_000451_03.tiff", 2, 1),
    ],
)
def test_names_that_match(name: str, pid: int, camid: int) -> None:
    match = PATTERN.fullmatch(name)
    assert match and (int(match["pid"]), int(match["camid"])) == (pid, camid)


@pytest.mark.parametrize(
    "name", ["Thumbs.db", "-2_c1s1_1_1.jpg", "0002.jpg", "x0002_c1s1_1_1.jpg", "0002_c1s1_1_1.txt"]
)
def test_names_that_do_not(name: str) -> None:
    assert PATTERN.fullmatch(name) is None


def test_pattern_sees_only_the_file_name(tmp_path: Path, own_market: Path) -> None:
    """A parent folder that looks like an image's name must not lend its identity."""
    moved = tmp_path / "0099_c9s9_000001_01.jpg" / "market"
    moved.parent.mkdir()
    own_market.rename(moved)
    assert 99 not in {record.pid for record in market1501.read(moved).records}


def test_junk_outside_the_gallery_is_left_out_with_a_warning(own_market: Path) -> None:
    for source, name in (
        ("0002_c1s1_000000_03.jpg", "-1_c1s1_9_9.jpg"),
        ("0002_c1s1_000000_03.jpg", "0000_c1s1_9_9.jpg"),
    ):
        folder = own_market / "bounding_box_train"
        (folder / name).write_bytes((folder / source).read_bytes())
    raw = market1501.read(own_market)
    assert min(record.pid for record in raw.records if record.split == "train") == 2
    assert raw.warnings == ["2 images with pid -1 or 0 outside bounding_box_test were left out"]


def test_drawn_people_are_not_market1501(own_market: Path) -> None:
    assert market1501.read(own_market).name == "market1501"
    (own_market / market1501.DRAWN_MARKER).write_text("{}")
    raw = market1501.read(own_market)
    assert raw.name == "pedestrians" and "Drawn" in raw.notice
    assert raw.published == {}  # of their number, Market-1501's authors say nothing


def test_missing_folder_says_what_is_there(own_market: Path, tmp_path: Path) -> None:
    (own_market / "query").rename(own_market / "queries")
    with pytest.raises(ValueError, match=r"query: no such folder; .*holds bounding_box_test/, .*queries/"):
        market1501.read(own_market)
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        market1501.read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds market/; give --root the folder that holds bounding_box_train"):
        market1501.read(tmp_path)


def test_nothing_matches(own_market: Path) -> None:
    for path in (own_market / "query").iterdir():
        path.unlink()
    (own_market / "query" / "IMG_1.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"query: no image is named like 0002_c1s1_000451_03.jpg; found IMG_1.jpg"):
        market1501.read(own_market)
