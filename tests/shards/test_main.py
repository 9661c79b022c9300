"""The command line: what it prints, its exit status, and that it runs as a module."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from reid.data.manifest import load_manifest
from shards.__main__ import main
from shards.pedestrians import dataset as pedestrians
from shards.pedestrians import footage
from shards.readers import dukemtmc
from shards.reading import MODULES
from shards.records import Counts
from tests.support.status import status_of

ROOT = Path(__file__).parents[2]


def test_build_and_verify_market(market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["build", "market1501", "--root", str(market), "--out", str(out), "--shards", "2"]) == 0
    printed = capsys.readouterr()
    assert "academic research only" in printed.err
    table = [line.split() for line in printed.out.splitlines()[:4]]
    assert table == [
        ["split", "shards", "identities", "images", "distractors", "junk", "cameras", "MiB"],
        ["train", "2", "9", "54", "0", "0", "6", table[1][-1]],
        ["query", "2", "3", "3", "0", "0", "1", table[2][-1]],
        ["gallery", "2", "3", "47", "18", "20", "7", table[3][-1]],
    ]
    assert "ignored: 4 files" in printed.out
    assert main(["verify", str(out), "--decode"]) == 0
    assert "intact, every image decodes" in capsys.readouterr().out


def test_verify_fails_on_damage(market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["build", "market1501", "--root", str(market), "--out", str(out)]) == 0
    (out / "query-0000.tar").unlink()
    assert main(["verify", str(out)]) == 1
    assert "damage: query-0000.tar: is missing" in capsys.readouterr().out


def test_verify_warns_without_failing(own_market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = own_market / "bounding_box_train" / "0002_c1s1_000000_03.jpg"
    (own_market / "bounding_box_test" / "0021_c9s1_000000_03.jpg").write_bytes(image.read_bytes())
    out = tmp_path / "out"
    assert main(["build", "market1501", "--root", str(own_market), "--out", str(out)]) == 0
    assert "warning: 1 images with equal bytes are in train and in the test splits" in capsys.readouterr().out
    assert main(["verify", str(out)]) == 0
    printed = capsys.readouterr().out
    rows = [re.split(r" {2,}", line)[:2] for line in printed.splitlines()[5:16]]
    assert rows == [
        ["check", "result"],
        ["files", "ok"],
        ["decoding", "not done"],
        ["identity overlap", "ok"],
        ["queries without match", "ok"],
        ["camera coverage", "ok"],
        ["near-empty identities", "note"],
        ["copies in train and test", "warning"],
        ["copies of two identities", "warning"],
        ["copies of queries", "ok"],
        ["copies in one identity", "ok"],
    ]
    assert "copies in train and test: train: bounding_box_train/0002_c1s1_000000_03.jpg = gallery: " in printed
    assert printed.splitlines()[-1] == f"{out}: intact, 2 warnings"


def test_verify_as_json(market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["build", "market1501", "--root", str(market), "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["verify", str(out), "--json", "--decode"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["whole"] and found["decoded"] and found["damage"] == []
    assert found["fingerprint"] == load_manifest(out).fingerprint
    assert found["splits"]["gallery"] == {"shards": 1, "images": 47, "identities": 3}
    few = next(check for check in found["checks"] if check["check"] == "near-empty identities")
    assert (few["level"], few["count"], few["of"], few["examples"]) == ("note", 2, 9, ["2", "3"])
    (out / "query-0000.tar").write_bytes(b"")
    assert main(["verify", str(out), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["whole"] and {damage["shard"] for damage in found["damage"]} == {"query-0000.tar"}


def test_build_folder_and_csv(folder_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "folder", "--root", str(folder_tree), "--out", str(tmp_path / "f"), "--dataset", "us"]) == 0
    assert "unknown" in capsys.readouterr().out
    assert load_manifest(tmp_path / "f").dataset == "us"
    rows = "path,identity,split\ntrain/Ann/1.JPG,Ann,train\ntrain/Bob/1.png,Bob,train\nnone.jpg,Bob,train\n"
    table = tmp_path / "table.csv"
    table.write_text(rows)
    command = ["build", "csv", "--root", str(folder_tree), "--csv", str(table), "--out", str(tmp_path / "c")]
    assert status_of(main, *command) == 2
    assert "1 of 3 images are broken" in capsys.readouterr().err
    assert main([*command, "--max-broken", "0.4"]) == 0
    printed = capsys.readouterr().out
    assert "broken and left out: 1 images" in printed and "none.jpg: No such file" in printed
    assert "warning: 2 train identities have one image" in printed


def test_the_reader_that_fits_is_named(
    market: Path, folder_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert status_of(main, "build", "folder", "--root", str(market), *out) == 2
    assert f"`build market1501` or `build dukemtmc` reads {market}" in capsys.readouterr().err
    assert status_of(main, "build", "veri776", "--root", str(folder_tree), *out) == 2
    assert f"`build folder` reads {folder_tree}" in capsys.readouterr().err
    assert status_of(main, "build", "msmt17", "--root", str(tmp_path), *out) == 2
    assert " reads " not in capsys.readouterr().err
    (folder_tree / "labels.csv").write_text("path,identity,Camera,split\ntrain/Ann/1.JPG,Ann,1,train\n")
    assert status_of(main, "build", "csv", "--root", str(folder_tree), *out) == 2
    assert "build folder" not in capsys.readouterr().err  # the layout is right, a name in it is wrong
    (folder_tree / "labels.csv").write_text("path,identity,camera,split\ntrain/Ann/1.JPG,Ann,1,train\n")
    assert main(["build", "folder", "--root", str(folder_tree), *out]) == 0
    printed = capsys.readouterr().out
    assert f"warning: `build csv` reads {folder_tree}, too" in printed
    assert "note: the defaults" in printed and "batch.identities to at most 2 with batch.streams = 1" in printed


def test_the_reader_whose_published_counts_these_are_is_named(
    market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Market-1501 and DukeMTMC-reID have the same folders and file names."""
    monkeypatch.setitem(dukemtmc.PUBLISHED, "train", Counts(60, 9))
    assert main(["build", "market1501", "--root", str(market), "--out", str(tmp_path / "out")]) == 0
    assert "warning: the counts of images are those of `build dukemtmc`" in capsys.readouterr().out
    assert main(["build", "dukemtmc", "--root", str(market), "--out", str(tmp_path / "d")]) == 0
    assert "are those of" not in capsys.readouterr().out


def test_folders_whose_names_are_not_utf8(folder_tree: Path, tmp_path: Path) -> None:
    """Only a real program has an output with an encoding."""
    root, out = (tmp_path / os.fsdecode(name) for name in (b"people\xff", b"out\xff"))
    folder_tree.rename(root)
    command = [sys.executable, "-m", "shards", "build", "folder", "--root", str(root), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.endswith("out\\udcff\n"), done.stderr


def test_errors_are_one_line_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = str(tmp_path / "nowhere")
    for command in (
        ["build", "market1501", "--root", nowhere, "--out", str(tmp_path / "out")],
        ["build", "folder", "--root", nowhere, "--csv", "x.csv", "--out", str(tmp_path / "out")],
        ["build", "dukemtmc", "--root", nowhere, "--boxes", "labeled", "--out", str(tmp_path / "out")],
        ["build", "csv", "--root", nowhere, "--without-val", "--out", str(tmp_path / "out")],
        ["verify", nowhere],
        ["synth", "--out", "/dev/null/x"],
        ["synth-footage", "--out", "/dev/null/x"],
    ):
        assert status_of(main, *command) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        assert ("cannot be written" in error and "give another --out" in error) == ("/dev/null/x" in command)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["https://host/shards", "s3://bucket/shards"])
@pytest.mark.parametrize("command", [["verify", "URL"], ["stats", "URL"], ["stage", "URL", "x"], ["stage", "x", "URL"]])
def test_urls_are_refused_in_one_line(
    command: list[str], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status_of(main, *(url if word == "URL" else word for word in command)) == 2
    printed = capsys.readouterr()
    assert printed.err == (
        f"error: {url}: is a URL, and this command reads local folders only; copy the shards to one first\n"
    )
    assert not printed.out and not list(tmp_path.iterdir())


def test_shard_size_where_no_file_is_there(
    folder_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A split whose files are all absent has no size, and the reason is said as for any other build."""
    table = tmp_path / "table.csv"
    table.write_text(
        "path,identity,split\ntrain/Ann/1.JPG,Ann,train\nnone.jpg,Cleo,query\ngallery/Cleo/2.jpg,Cleo,gallery"
    )
    command = ["build", "csv", "--root", str(folder_tree), "--csv", str(table), "--out", str(tmp_path / "out")]
    assert status_of(main, *command, "--shard-size", "1", "--max-broken", "1") == 2
    assert capsys.readouterr().err.endswith(
        "error: query: every image is broken, nothing was built; repair them or remove the split\n"
    )


@pytest.mark.parametrize("size", ["inf", "-inf", "nan", "0", "-1"])
def test_shard_size_that_is_none(size: str, market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["build", "market1501", "--root", str(market), "--out", str(tmp_path / "out"), f"--shard-size={size}"]
    assert status_of(main, *command) == 2
    assert f"error: --shard-size {size}: give MiB above 0\n" in capsys.readouterr().err


def test_build_options(market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["build", "market1501", "--root", str(market), "--out", str(tmp_path / "out")]
    assert main([*command, "--shard-size", "0.03", "--workers", "2", "--size", "24x12", "--quality", "70"]) == 0
    manifest = load_manifest(tmp_path / "out")
    assert manifest.encoding == "JPEG 24x12, quality 70" and len(manifest.split("train").shards) > 2
    capsys.readouterr()
    for options, message in (
        (["--quality", "70"], "--quality 70: also needs --size"),
        (["--size", "256"], "--size 256: give HEIGHTxWIDTH"),
        (["--size", "0x128"], "--size 0x128: give HEIGHTxWIDTH"),
        (["--size", "24x12", "--quality", "101"], "--quality 101: give 1 to 100"),
        (["--workers", "0"], "--workers 0"),
    ):
        assert status_of(main, *command, *options) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--shards", "2", "--shard-size", "3"])


def test_options_of_another_reader_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(main, "build", "market1501", "--root", "x", "--without-val", "--out", str(tmp_path / "out")) == 2
    assert "--without-val: not an option of `build market1501`, only of msmt17" in capsys.readouterr().err


def test_every_reader_states_terms_of_use(market: Path) -> None:
    for module in MODULES:
        assert len(module.NOTICE) > 50


def test_runs_as_a_module(folder_tree: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "shards",
        "build",
        "folder",
        "--root",
        str(folder_tree),
        "--out",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "train: 4 images in 1 shards written" in done.stderr  # plain lines where stderr is no terminal
    assert "\r" not in done.stderr


def test_synth_passes_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    given: dict[str, object] = {}

    def synthesize(out: Path, **options: object) -> dict[str, int]:
        given.update(out=out, **options)
        return {"train": 5}

    monkeypatch.setattr(pedestrians, "synthesize", synthesize)
    assert (
        main(["synth", "--out", str(tmp_path), "--identities-train", "3", "--images_per_identity=5", "--seed", "7"])
        == 0
    )
    assert given["out"] == tmp_path
    assert (given["identities_train"], given["images_per_identity"], given["seed"]) == (3, 5, 7)
    assert "train: 5" in capsys.readouterr().out


def test_the_next_command_can_be_pasted_for_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(footage, "synthesize", lambda out, **options: 5)
    assert main(["synth-footage", "--out", str(tmp_path / "two words")]) == 0
    words = shlex.split(capsys.readouterr().out.partition("build it with: ")[2])
    assert words[words.index("--root") + 1] == str(tmp_path / "two words")
