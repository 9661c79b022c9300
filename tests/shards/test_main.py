"""The command line: what it prints, its exit status, and that it runs as a module."""

import subprocess
import sys
from pathlib import Path

import pytest

from reid.manifest import load_manifest
from shards import pedestrians
from shards.__main__ import main

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
    assert "whole, every image decodes" in capsys.readouterr().out


def test_verify_fails_on_damage(market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["build", "market1501", "--root", str(market), "--out", str(out)]) == 0
    (out / "query-0000.tar").unlink()
    assert main(["verify", str(out)]) == 1
    assert "damage: query-0000.tar: is missing" in capsys.readouterr().out


def test_build_folder_and_csv(folder_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "folder", "--root", str(folder_tree), "--out", str(tmp_path / "f"), "--dataset", "us"]) == 0
    assert "unknown" in capsys.readouterr().out
    assert load_manifest(tmp_path / "f").dataset == "us"
    rows = "path,identity,split\ntrain/Ann/1.JPG,Ann,train\ntrain/Bob/1.png,Bob,train\nnone.jpg,Bob,train\n"
    table = tmp_path / "table.csv"
    table.write_text(rows)
    command = ["build", "csv", "--root", str(folder_tree), "--csv", str(table), "--out", str(tmp_path / "c")]
    assert main(command) == 1
    assert "1 of 3 images are broken" in capsys.readouterr().err
    assert main([*command, "--max-broken", "0.4"]) == 0
    printed = capsys.readouterr().out
    assert "broken and left out: 1 images" in printed and "none.jpg: No such file" in printed
    assert "warning: 2 train identities have one image" in printed


def test_errors_are_one_line_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = str(tmp_path / "nowhere")
    for command in (
        ["build", "market1501", "--root", nowhere, "--out", str(tmp_path / "out")],
        ["build", "folder", "--root", nowhere, "--csv", "x.csv", "--out", str(tmp_path / "out")],
        ["verify", nowhere],
    ):
        assert main(command) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


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
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "train: 4 images in 1 shards written" in done.stderr  # plain lines where stderr is no terminal
    assert "\r" not in done.stderr


def test_synth_passes_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    given: dict[str, object] = {}

    def synthesize(out: Path, **options: object) -> dict[str, int]:
        given.update(out=out, **options)
        return {"train": 5}

    monkeypatch.setattr(pedestrians, "synthesize", synthesize)
    assert main(["synth", "--out", str(tmp_path), "--identities-train", "3", "--seed", "7"]) == 0
    assert given == {"out": tmp_path, "identities_train": 3, "seed": 7}
    assert "train: 5" in capsys.readouterr().out
