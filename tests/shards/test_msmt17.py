"""shards/readers/msmt17.py: both versions, list files, identities that count from 0 twice."""

from pathlib import Path

import pytest

from reid.data.manifest import load_manifest
from shards.__main__ import main
from shards.build import build
from shards.readers import msmt17

CONTENT = {  # list -> (identity, file)
    "train": [(0, "0000_000_01_0303morning_0015_0.jpg"), (1, "0001_002_14_0113noon_1068_1.jpg")],
    "val": [(0, "0000_001_02_0303morning_0016_0.jpg"), (1, "0001_003_15_0113noon_1069_1.jpg")],
    "query": [(0, "0000_000_03_0303afternoon_0020_0.jpg")],
    "gallery": [(0, "0000_001_05_0303afternoon_0021_0.jpg"), (2, "0002_001_05_0303afternoon_0022_0.jpg")],
}


@pytest.fixture(params=["v1", "v2"])
def root(request: pytest.FixtureRequest, tmp_path: Path, draw) -> Path:
    root = tmp_path / "MSMT17"
    folders = msmt17.VERSIONS[request.param]
    for name, images in CONTENT.items():
        lines = [f"{pid:04d}/{file} {pid}" for pid, file in images]
        for line in lines:
            draw(root / folders[name in ("query", "gallery")] / line.split()[0])
        (root / f"list_{name}.txt").write_text("\n".join(lines) + "\n")
    draw(root / folders[0] / "0000" / "0000_009_01_0303morning_0099_0.jpg")  # in no list
    (root / folders[1] / "0000" / "Thumbs.db").write_bytes(b"\xd0")
    return root


def facts(root: Path, with_val: bool = True) -> list[tuple[str, int, int, str]]:
    records = msmt17.read(root, with_val).records
    return [(record.split, record.pid, record.camid, record.name) for record in records]


def test_test_identities_do_not_meet_train_identities(root: Path) -> None:
    assert facts(root) == [
        ("train", 0, 1, "0"),
        ("train", 0, 2, "0"),
        ("train", 1, 14, "1"),
        ("train", 1, 15, "1"),
        ("query", 10_000, 3, "0"),
        ("gallery", 10_000, 5, "0"),
        ("gallery", 10_002, 5, "2"),
    ]


def test_train_without_val(root: Path) -> None:
    assert facts(root, with_val=False) == [("train", 0, 1, "0"), ("train", 1, 14, "1"), *facts(root)[4:]]
    (root / "list_val.txt").unlink()
    assert len(facts(root, with_val=False)) == 5
    with pytest.raises(ValueError, match=r"list_val\.txt: no such file; .*list_gallery\.txt"):
        facts(root)


def test_published_counts(root: Path) -> None:
    both, alone = msmt17.read(root).published, msmt17.read(root, with_val=False).published
    assert both["train"].images == 32_621 and alone["train"].images == 30_248
    assert both["gallery"] == alone["gallery"]


def test_build_from_the_command_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["build", "msmt17", "--root", str(root), "--out", str(tmp_path / "out"), "--without-val"]
    assert main([*command, "--dataset", msmt17.read(root).name]) == 0
    printed = capsys.readouterr()
    assert "release agreement" in printed.err
    assert "warning: train: 2 images of 2 identities; as published it has 30248 of 1041" in printed.out
    manifest = load_manifest(tmp_path / "out")
    assert manifest.dataset == f"msmt17-{'v2' if (root / 'mask_train_v2').is_dir() else 'v1'}"
    assert manifest.distractor_pid is None
    assert sorted(manifest.split("train").pids.tolist()) == [0, 1]
    assert sorted(manifest.split("gallery").pids.tolist()) == [10_000, 10_002]
    assert main(["verify", str(tmp_path / "out"), "--decode"]) == 0


def test_an_image_without_a_camera_is_kept(root: Path, draw) -> None:
    folder = root / msmt17.VERSIONS["v2" if (root / "mask_train_v2").is_dir() else "v1"][0]
    draw(folder / "0001" / "spare.jpg")
    with open(root / "list_val.txt", "a") as file:
        file.write("\n0001/spare.jpg 1\n")
    assert ("train", 1, -1, "1") in facts(root)
    assert msmt17.read(root).warnings == ["1 images have no camera in their names"]


def test_a_listed_image_that_is_absent_counts_as_broken(root: Path, tmp_path: Path) -> None:
    record = msmt17.read(root).records[0]
    record.path.unlink()
    manifest = build(msmt17.read(root), tmp_path / "out", max_broken=0.2).manifest
    assert [entry["source"] for entry in manifest.skipped] == [record.path.relative_to(root).as_posix()]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0000/a_b_01_c.jpg", "does not read like"),
        ("0000/a_b_01_c.jpg x", "does not read like"),
        ("0000/a_b_01_c.jpg -1", "does not read like"),
        ("0000/a_b_01_c.txt 0", "does not read like"),
        ("3", "does not read like"),
        ("../0000/a_b_01_c.jpg 0", "lies outside"),
        ("/etc/a_b_01_c.jpg 0", "lies outside"),
        ("0000/a_b_01_c.jpg 10000", "identity 10000"),
        (r"0000\a_b_01_c.jpg 0", "has backslashes"),
        ("0000/a_b_01_c.jpg\t0", "is a tab"),
        ("0000/a\0b_01_c.jpg 0", "a NUL character"),
    ],
)
def test_lines_that_cannot_be_read(root: Path, line: str, message: str) -> None:
    (root / "list_query.txt").write_text(f"\n{line}\n")
    with pytest.raises(ValueError, match=rf"list_query\.txt, line 2: .*{message}"):
        msmt17.read(root)


def test_lists_with_a_byte_order_mark_lose_no_image(root: Path) -> None:
    """As Windows' editors write it, before the first image's path."""
    before = facts(root)
    for path in root.glob("list_*.txt"):
        path.write_text(path.read_text().replace("\n", "\r\n"), encoding="utf-8-sig")
    assert facts(root) == before
    assert all(record.path.is_file() for record in msmt17.read(root).records)


def test_lists_that_contradict_themselves(root: Path) -> None:
    first = (root / "list_train.txt").read_text()
    (root / "list_val.txt").write_text(first)
    with pytest.raises(ValueError, match=r"the lists name the train image .* twice"):
        msmt17.read(root)
    (root / "list_val.txt").write_text(first.replace(".jpg 0", ".jpg 1"))
    with pytest.raises(ValueError, match="twice"):
        msmt17.read(root)
    (root / "list_val.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"list_val\.txt: is empty"):
        msmt17.read(root)
    (root / "list_val.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"list_val\.txt: not UTF-8 but UTF-16"):
        msmt17.read(root)


def test_errors_name_what_was_wanted(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"nowhere: no such folder; .*give --root the folder that holds list_train\.txt"
    ):
        msmt17.read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="not MSMT17; it holds MSMT17/; give --root"):
        msmt17.read(tmp_path)
    for folder in ("train", "test", "mask_train_v2", "mask_test_v2"):
        (root / folder).mkdir(exist_ok=True)
    with pytest.raises(ValueError, match="folders of V1 and of V2"):
        msmt17.read(root)


def test_copies_as_they_are_unpacked(root: Path, tmp_path: Path) -> None:
    """Folders in folders of the same name, the files of macOS, Windows line ends."""
    before = facts(root)
    for path in root.glob("list_*.txt"):
        path.write_text(path.read_text().replace("\n", "\r\n"), encoding="utf-8-sig")
        (root / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    for folder in [path for path in root.iterdir() if path.is_dir()]:
        (folder / "0000" / "._0000_000_01_0303morning_0015_0.jpg").write_bytes(b"\0\5\x16\7")
        inner = folder.rename(root / "inner")
        folder.mkdir()
        inner.rename(folder / folder.name)
    outer = tmp_path / "outer" / "MSMT17"
    (outer / "__MACOSX" / "MSMT17").mkdir(parents=True)
    (outer / "MSMT17").mkdir()
    root.rename(outer / "MSMT17" / "MSMT17")
    assert facts(outer) == before
    assert all(record.path.is_file() for record in msmt17.read(outer).records)


def test_market_layout(tmp_path: Path, draw) -> None:
    """0000 is a person in train and another in the gallery; for Market-1501 it would be no person."""
    root = tmp_path / "msmt17"
    for name in ("bounding_box_train/0000_c1_0001.jpg", "bounding_box_train/0001_c14_0002.jpg"):
        draw(root / name)
    for name in ("query/0000_c3_0003.jpg", "bounding_box_test/0000_c5_0004.jpg", "bounding_box_test/0002_c5_0005.jpg"):
        draw(root / name)
    assert facts(root) == [
        ("train", 0, 1, "0000"),
        ("train", 1, 14, "0001"),
        ("query", 10_000, 3, "0000"),
        ("gallery", 10_000, 5, "0000"),
        ("gallery", 10_002, 5, "0002"),
    ]
    raw = msmt17.read(root)
    assert (raw.name, raw.distractor_pid, raw.published) == ("msmt17-market", None, msmt17.PUBLISHED)
    with pytest.raises(ValueError, match=r"--without-val: .*no list_val\.txt"):
        msmt17.read(root, with_val=False)
    draw(root / "query" / "10000_c3_0003.jpg")
    with pytest.raises(ValueError, match=r"10000_c3_0003\.jpg: identity 10000"):
        msmt17.read(root)
