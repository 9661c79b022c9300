"""shards/stage.py: whole copies, continued copies, many callers, and whatever can be wrong on either side."""

import hashlib
import multiprocessing
import os
import shutil
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace

import pytest

from shards.__main__ import main
from shards.build import build
from shards.readers import market1501
from shards.stage import Staged, stage
from shards.verify import verify
from tests.support.status import status_of

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def built(market: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage") / "shards"
    build(market1501.read(market), folder, num_shards=4)
    return folder


@pytest.fixture
def source(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(built, tmp_path / "network" / "shards")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "node" / "shards"


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def stamp_of(path: Path) -> tuple[int, int]:
    """Changes when a file is copied anew, however coarse the file system's clock is."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def test_copies_everything_and_then_nothing(source: Path, target: Path) -> None:
    shards = list(source.glob("*.tar"))
    size = sum(path.stat().st_size for path in shards)
    assert stage(source, target) == Staged(len(shards), 0, size)
    assert content(target) == content(source) and verify(target).damage == []
    assert [path.name for path in target.parent.iterdir()] == ["shards"]
    before = {path: stamp_of(path) for path in target.iterdir()}
    assert stage(source, target) == Staged(0, len(shards), 0)
    assert {path: stamp_of(path) for path in target.iterdir()} == before


def test_an_interrupted_copy_is_continued(source: Path, target: Path) -> None:
    shards = sorted(path.name for path in source.glob("*.tar"))
    stage(source, target)
    (target / "manifest.json").unlink()  # stopped before the end
    (target / shards[0]).rename(target / f"{shards[0]}.part")
    data = bytearray((target / shards[1]).read_bytes())
    data[700] ^= 1
    (target / shards[1]).write_bytes(data)  # a faulty disk: the right size, the wrong bytes
    (target / shards[2]).write_bytes(b"short")
    kept = stamp_of(target / shards[3])
    done = stage(source, target)
    assert (done.copied, done.found) == (3, len(shards) - 3)
    assert content(target) == content(source)
    assert stamp_of(target / shards[3]) == kept


def test_an_error_leaves_no_manifest_and_keeps_whole_shards(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, done = Path.rename, []

    def interrupt(self: Path, other: Path) -> Path:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(other)
        return rename(self, other)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupt)
        patch.setattr("shards.stage.COPIES", 1)
        with pytest.raises(KeyboardInterrupt):
            stage(source, target)
    assert not (target / "manifest.json").exists()
    assert stage(source, target).found == 2
    assert content(target) == content(source)


def test_a_shard_lost_after_staging_is_copied_again(source: Path, target: Path) -> None:
    stage(source, target)
    (target / "train-0001.tar").unlink()
    assert stage(source, target).copied == 1
    assert content(target) == content(source)


def test_a_newer_build_replaces_the_older(source: Path, target: Path, market: Path, tmp_path: Path) -> None:
    stage(source, target)
    build(market1501.read(market), source, num_shards=2)
    last = (source / "gallery-0001.tar").rename(tmp_path / "aside")
    with pytest.raises(ValueError, match="is missing"):
        stage(source, target)
    assert not (target / "manifest.json").exists()  # the older build's, which its shards no longer match
    last.rename(source / "gallery-0001.tar")
    stage(source, target)
    assert content(target) == content(source)
    build(market1501.read(market), tmp_path / "other", dataset="other")
    with pytest.raises(ValueError, match="holds shards of 'market1501', not 'other'; give another folder"):
        stage(tmp_path / "other", target)
    assert content(target) == content(source)


def test_a_foreign_folder_is_refused(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    (target / "thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"holds 'thesis\.txt', which is no part of these shards"):
        stage(source, target)
    assert content(target).keys() == {"thesis.txt"}
    stage(source, target.parent / "new")
    (target.parent / "new" / "notes.txt").write_text("dear")
    (target.parent / "new" / "train-0000.tar").unlink()
    with pytest.raises(ValueError, match=r"holds 'notes\.txt'"):
        stage(source, target.parent / "new")
    assert (target.parent / "new" / "manifest.json").exists()
    with pytest.raises(ValueError, match="is a file, not a folder"):
        stage(source, target / "thesis.txt")


def test_a_damaged_source_is_not_passed_on(source: Path, target: Path) -> None:
    path = source / "gallery-0000.tar"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"network/shards/gallery-0000\.tar: sha256 differs .*repair the source"):
        stage(source, target)
    assert not (target / "manifest.json").exists() and not (target / path.name).exists()
    path.unlink()
    with pytest.raises(ValueError, match=r"gallery-0000\.tar: is missing or no regular file; repair the source"):
        stage(source, target)
    (source / "manifest.json").unlink()
    with pytest.raises(ValueError, match="unfinished build"):
        stage(source, target)


def test_source_and_target_must_differ(source: Path) -> None:
    for target in (source, source / "inside", source.parent):
        with pytest.raises(ValueError, match="give a folder on the node's own disk"):
            stage(source, target)
    assert verify(source).damage == []


def test_a_full_disk(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shards.write.shutil.disk_usage", lambda _: SimpleNamespace(free=10_000))
        with pytest.raises(ValueError, match=r"no space left: 0\.\d MiB are needed, 0\.0 MiB are free"):
            stage(source, target)

    def fsync(_: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr("shards.stage.os.fsync", fsync)
        with pytest.raises(ValueError, match=r"no space left \(No space left on device\); make room"):
            stage(source, target)
    assert not (target / "manifest.json").exists()
    stage(source, target)
    assert content(target) == content(source)


def test_many_processes_at_once_copy_once(source: Path, target: Path) -> None:
    shards = len(list(source.glob("*.tar")))
    begin, results = FORK.Barrier(3, timeout=300), FORK.SimpleQueue()
    processes = [FORK.Process(target=stage_with_others, args=(source, target, begin, results)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * 3
    done = [results.get() for _ in processes]
    assert sorted((each.copied, each.found) for each in done) == [(0, shards)] * 2 + [(shards, 0)]
    assert content(target) == content(source)
    assert [path.name for path in target.parent.iterdir()] == ["shards"]


def stage_with_others(source: Path, target: Path, begin: Barrier, results: "SimpleQueue[Staged]") -> None:
    begin.wait()
    results.put(stage(source, target))


def test_command(source: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = len(list(source.glob("*.tar")))
    assert main(["stage", str(source), str(target)]) == 0
    assert f"{target}: {shards} shards, 0." in capsys.readouterr().out
    assert main(["stage", str(source), str(target)]) == 0
    assert f"{target}: 0 shards, 0.0 MiB copied, {shards} were there" in capsys.readouterr().out
    assert status_of(main, "stage", str(source), "/dev/null/x/shards") == 2
    assert "/dev/null/x cannot be written" in capsys.readouterr().err
    assert status_of(main, "stage", str(source), str(source)) == 2
    assert capsys.readouterr().err.startswith("error: ")
