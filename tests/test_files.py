"""Locks among real processes, atomic writes, and folders that cannot be written."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reid.files import (
    Held,
    check_writable,
    hold,
    is_inside,
    make_folder,
    read_regular_file,
    read_text,
    write_atomically,
)

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


def test_a_text_is_read_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "x").write_text("Åse\n", encoding=encoding)
        assert read_text(tmp_path / "x") == "Åse\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\nb\xe5\n", "x, line 2: not UTF-8"),
        (b"a\nb\0\n", "x, line 2: a NUL"),
        ("a".encode("utf-16"), "x: .* UTF-16"),
    ],
)
def test_what_is_no_text_is_named_by_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_text(tmp_path / "x")


@pytest.mark.timeout(20)
def test_only_regular_files_of_a_sane_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "long").write_bytes(bytes(11))
    for path, reason in (
        ("fifo", "a FIFO"),
        ("zeros", "a device"),
        (".", "a folder"),
        ("long", "11 bytes, more than 10"),
    ):
        with pytest.raises(OSError, match=reason):
            read_regular_file(tmp_path / path, max_bytes=10)
    with pytest.raises(ValueError, match="fifo: is a FIFO"):
        read_text(tmp_path / "fifo")


def test_what_lies_outside_of_a_folder(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    (root / "sub").mkdir(parents=True), other.mkdir()
    (root / "out").symlink_to(other), (root / "in").symlink_to(root / "sub"), (tmp_path / "link").symlink_to(root)
    (root / "loop").symlink_to(root / "loop")
    for folder in (root, tmp_path / "link"):
        inside = ("a.jpg", "sub/../a.jpg", "in/a.jpg", str(root / "a.jpg"))
        assert all(is_inside(folder / name, folder) for name in inside)
        outside = ("../other/a.jpg", "out/a.jpg", str(other / "a.jpg"), "../rootless/a.jpg", "/etc/passwd")
        assert not any(is_inside(folder / name, folder) for name in outside)
        is_inside(folder / "loop", folder)
