"""shards/readers/csv_file.py: the table, its paths, its labels, and what is wrong with it by line."""

import os
from pathlib import Path

import pytest

from shards.readers import csv_file

TABLE = """path,identity,camera,split
a/1.jpg,zoe,10,train
a/2.jpg,zoe,2,train
b/1.jpg,ann,,query
b/2.jpg,ann,9,gallery
"""


def write(tmp_path: Path, text: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding=encoding)
    return path


def summary(root: Path, table: Path | None = None) -> list[tuple[str, int, int, str, str]]:
    raw = csv_file.read(root, table)
    return [
        (record.split, record.pid, record.camid, record.name, record.path.relative_to(raw.root).as_posix())
        for record in raw.records
    ]


EXPECTED = [
    ("train", 2, 3, "zoe", "a/1.jpg"),
    ("train", 2, 1, "zoe", "a/2.jpg"),
    ("query", 1, -1, "ann", "b/1.jpg"),
    ("gallery", 1, 2, "ann", "b/2.jpg"),
]


def test_labels_from_one_cameras_in_numeric_order(tmp_path: Path) -> None:
    table = write(tmp_path, TABLE)
    assert summary(tmp_path) == EXPECTED
    assert summary(table) == EXPECTED
    elsewhere = tmp_path / "images"
    elsewhere.mkdir()
    assert summary(elsewhere, table) == EXPECTED
    assert csv_file.read(elsewhere, table).records[0].path == elsewhere / "a/1.jpg"


def test_byte_order_mark_column_order_empty_rows_quotes(tmp_path: Path) -> None:
    text = 'split,identity,path\r\ntrain,"Smith, J.","a ""1"".jpg"\r\n\r\n,,\r\ntrain, Åse ,b.jpg\r\n'
    write(tmp_path, text, encoding="utf-8-sig")
    assert summary(tmp_path) == [("train", 1, -1, "Smith, J.", 'a "1".jpg'), ("train", 2, -1, "Åse", "b.jpg")]


def test_cameras_of_any_text_are_sorted_as_text(tmp_path: Path) -> None:
    write(tmp_path, "path,identity,camera,split\n1.jpg,a,door,train\n2.jpg,a,10,train\n3.jpg,a,9,train\n")
    assert [camid for _, _, camid, _, _ in summary(tmp_path)] == [3, 1, 2]


def test_absolute_paths_below_the_root(tmp_path: Path) -> None:
    write(tmp_path, f"path,identity,split\n{tmp_path}/a/1.jpg,a,train\n")
    assert summary(tmp_path) == [("train", 1, -1, "a", "a/1.jpg")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column path, identity"),
        ("a/1.jpg,zoe,10,train\n", "no column path, identity; the first line names 'a/1.jpg', 'zoe', '10'"),
        ("path,identity,camera,split\n", "no row below the header"),
        ("path,identity,split\n1.jpg,a,test\n", "line 2: split 'test' is unknown; use train, query, gallery"),
        ("path,identity,split\n1.jpg,,train\n", "line 2: identity is empty"),
        ("path,identity,split\n1.jpg,a\n", "line 2: more or fewer fields"),
        ("path,identity,split\n../1.jpg,a,train\n", "line 2: path '../1.jpg' lies outside"),
        ("path,identity,split\n1.jpg,a,train\n2.jpg,a,train\n1.jpg,b,train\n", "lines 2 and 4: 1.jpg twice"),
        (
            "path,identity,split\n1.jpg,a,query\n2.jpg,b,train\n3.jpg,a,train\n",
            "line 4: identity 'a' is in train, and in query or gallery at .*line 2: .*identities: 1",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        csv_file.read(tmp_path)
    assert "labels.csv" in str(caught.value)


@pytest.mark.parametrize("column", ["Camera", "cam", "camera_id", "camera ", "camid", "CAM", "cameras", "kamera"])
def test_columns_that_are_not_read_are_refused_with_the_nearest(tmp_path: Path, column: str) -> None:
    """Without cameras no same-camera rule applies, and every metric is inflated."""
    write(tmp_path, f"path,identity,{column},split\n1.jpg,a,3,train\n")
    with pytest.raises(ValueError, match=rf"labels\.csv: columns .*'{column}' \(did you mean camera\?\)"):
        summary(tmp_path)


def test_a_backslash_may_be_a_part_of_a_name(tmp_path: Path) -> None:
    write(tmp_path, "path,identity,split\na\\1.jpg,a,train\n")
    (tmp_path / "a\\1.jpg").touch()
    assert summary(tmp_path) == [("train", 1, -1, "a", "a\\1.jpg")]


def test_one_image_may_be_query_and_gallery(tmp_path: Path) -> None:
    write(tmp_path, "path,identity,split\n1.jpg,a,query\n1.jpg,a,gallery\n")
    assert len(summary(tmp_path)) == 2


def test_which_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"exactly one \.csv was expected, found: none"):
        csv_file.read(tmp_path)
    table = write(tmp_path, TABLE)
    write(tmp_path, TABLE, "other.csv")
    with pytest.raises(ValueError, match=r"found: labels\.csv, other\.csv; name it with --csv"):
        csv_file.read(tmp_path)
    with pytest.raises(ValueError, match="not a folder"):
        csv_file.read(table, table)
    with pytest.raises(ValueError, match="give --csv a table"):
        csv_file.read(tmp_path, tmp_path / "none.csv")
    with pytest.raises(ValueError, match="unzip it"):
        csv_file.read(write(tmp_path, "", "data.zip"))
    with pytest.raises(ValueError, match="no such file or folder"):
        csv_file.read(tmp_path / "nowhere")


def test_labels_written_in_several_ways_are_a_warning(tmp_path: Path) -> None:
    write(tmp_path, "path,identity,camera,split\n1.jpg,7,Gate,train\n2.jpg,007,gate,train\n3.jpg,7.0,2,train\n")
    raw = csv_file.read(tmp_path)
    assert [warning.split(" are ")[0] for warning in raw.warnings] == ["1 identities", "1 cameras"]
    assert len({record.pid for record in raw.records}) == 3  # as they are written: some datasets mean it


def test_labels_may_be_numbers_of_any_length(tmp_path: Path) -> None:
    write(tmp_path, f"path,identity,split\n1.jpg,{'9' * 5000},train\n2.jpg,1,train\n")
    assert [pid for _, pid, _, _, _ in summary(tmp_path)] == [1, 2]


@pytest.mark.timeout(20)
def test_a_table_that_would_block_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.csv")
    for arguments in ((tmp_path / "fifo.csv",), (tmp_path, tmp_path / "fifo.csv"), (tmp_path,)):
        with pytest.raises(ValueError, match=r"fifo\.csv: is a FIFO"):
            csv_file.read(*arguments)
