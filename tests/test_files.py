"""shards/lock.py among real processes: refusal, waiting, and what a killed holder leaves."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reid.files import Held, hold

ROOT = Path(__file__).parents[1]
HOLDER = """
import sys
from pathlib import Path
from reid.files import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")],
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


def test_a_killed_holder_holds_nothing(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
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

    monkeypatch.setattr("reid.files.fcntl.flock", refuse)
    with hold(tmp_path / "lock"):
        pass
    assert not list(tmp_path.iterdir())
