"""Locks among real processes, atomic writes, and folders that cannot be written."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reid.files import Held, check_writable, hold, make_folder, write_atomically

ROOT = Path(__file__).parents[1]
HOLDER = """
import os, signal, sys
from pathlib import Path
from reid.files import hold
with hold(Path(sys.argv[1])):
    if sys.argv[2] == "forks" and os.fork():
        signal.pause()
    print("held", flush=True)
    sys.stdin.readline()
    if sys.argv[2] == "forks":
        os._exit(0)
"""


@pytest.fixture
def holder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock"), getattr(request, "param", "")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate(timeout=300)


def test_refused_while_another_process_holds_it(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(Held, match=f"process {holder.pid} on "), hold(tmp_path / "lock"):
        raise AssertionError("held twice")
    holder.communicate("\n", timeout=300)
    with hold(tmp_path / "lock"):
        assert (tmp_path / "lock").is_file()
    assert not list(tmp_path.iterdir())


def test_waits_and_says_for_whom(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    heard: list[str] = []

    def release(name: str) -> None:
        heard.append(name)
        assert holder.stdin is not None
        holder.stdin.write("\n")
        holder.stdin.flush()

    with hold(tmp_path / "lock", release):
        assert len(heard) == 1 and heard[0].startswith(f"process {holder.pid} on ")
        with pytest.raises(Held), hold(tmp_path / "lock"):  # the file that was waited for is gone; ours is a new one
            raise AssertionError("held twice")


@pytest.mark.parametrize("holder", ["", "forks"], indirect=True)
def test_a_killed_holder_holds_nothing(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """Not even while a process that it forked, such as a decoding process, still runs."""
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=300)
    assert (tmp_path / "lock").is_file()
    with hold(tmp_path / "lock"):
        pass
    assert not list(tmp_path.iterdir())


def test_an_error_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyError), hold(tmp_path / "lock"):
        raise KeyError
    with hold(tmp_path / "lock"):
        pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with hold(tmp_path / "lock"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", ["grün\n", b"\x00\xff"])
def test_an_atomic_write_replaces_the_file(tmp_path: Path, data: str | bytes) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    write_atomically(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_atomic_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for check in (check_writable, make_folder):
        with pytest.raises(ValueError, match="give another --out"):
            check(tmp_path / "file" / "run", "--out")


def test_a_check_leaves_no_folder_and_make_folder_does(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    make_folder(tmp_path / "a" / "b", "--out")
    assert (tmp_path / "a" / "b").is_dir()
