"""reid/data/table.py: tables that people write. The readers' tests in tests/shards and tests/search say more."""

from pathlib import Path

import pytest

from reid.data.table import read_table, relative_path


def test_rows_have_all_columns_and_their_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('\ufeffb,path\n 1 ,"x\ny"\n\n,\n2,./z\n', encoding="utf-8")
    rows = list(read_table(tmp_path / "t.csv", tmp_path, ["path"], ["b", "c"]))
    assert rows == [(3, {"path": "x\ny", "b": "1", "c": ""}), (6, {"path": "z", "b": "2", "c": ""})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,B\n", r"'B' \(did you mean b\?\)"),
        ("path,wholly_other\n", "not read: 'wholly_other'; rename or remove"),
        ("path,path\n", "the column path is named twice"),
        ("path,\n1,\n", "not read: ''"),
        ("b\n1\n", "no column path; the first line names 'b'; the columns are path"),
        ("path,b\n,1\n", "line 2: path is empty"),
        ("path,v,x,y,z,\n1,,,,,\n", "not read: 'v', 'x', 'y', 'z', ''"),
        ("path\n1,2\n", "line 2: more or fewer fields"),
        ("path,b\n1\n", "line 2: more or fewer fields"),
        ("path;b\n1;2\n", "separated by semicolons"),
        ("path\tb\n1\t2\n", "separated by tabs"),
        ("path\n1\n2\0\n", "line 3: a NUL character"),
        ("path\n1\n\xe5\n", "line 3: not UTF-8"),
        ('path\n"1\n', "not a CSV table"),
        ("path\n/etc/1\n", "line 2: path '/etc/1' lies outside"),
        ("path,b\nx/1,1\n./x//1,2\n", "lines 2 and 3: x/1 twice"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=rf"t\.csv.*{message}"):
        list(read_table(tmp_path / "t.csv", tmp_path, ["path"], ["b"]))


def test_paths_stay_inside(tmp_path: Path) -> None:
    for listed in ("x/1.jpg", "./x//1.jpg", f"{tmp_path}/x/1.jpg"):
        assert relative_path(listed, tmp_path, "t.csv, line 2") == Path("x/1.jpg")
    for listed in ("../1.jpg", "/etc/1.jpg", "x/../../1.jpg", f"{tmp_path}/../1.jpg", ".", r"x\1.jpg", r"C:\x\1.jpg"):
        with pytest.raises(ValueError, match=r"^t\.csv, line 2: .*(lies outside|has backslashes)"):
            relative_path(listed, tmp_path, "t.csv, line 2")
