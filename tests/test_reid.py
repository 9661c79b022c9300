"""The program `reid`, and what its wheel holds."""

import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from reid.__main__ import PROGRAMS, main
from reid.config import Config, parse
from reid.launcher import forward_signals, launch, take_processes
from reid.program import SIGNALS, call
from tests.support.programs import run_program

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_names_every_program(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in PROGRAMS)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["trian"], "Did you mean train?"),
        (["train", "--processes", "none"], "--processes none"),
        (["train", "--processes"], "--processes"),
        (["train", "--config=reid:quickstrat"], "Did you mean reid:quickstart?"),
        (["evaluate", "--run=/nowhere"], "/nowhere"),
    ],
)
def test_an_error_is_one_line(arguments: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert wanted in said and len(said.splitlines()) == 1


def test_a_closed_output_ends_a_program_quietly() -> None:
    """As `reid configs | head -1` does, with the status of other Unix tools; also for output that fits its buffer."""
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "reid", "configs"]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_an_error_that_is_not_of_the_output_is_shown() -> None:
    def fail() -> None:
        raise BrokenPipeError("a socket of W&B")

    with pytest.raises(BrokenPipeError, match="socket"):
        call(fail)


def test_an_error_of_several_processes_is_one_line_without_the_report_of_the_launcher() -> None:
    status, said = run_program("reid", "evaluate", "--processes=2", "--run", "/nowhere")
    assert status == 2
    assert said.strip().startswith("error: ") and "/nowhere" in said and len(said.strip().splitlines()) == 1, said


@pytest.fixture
def _own_signals() -> Iterator[None]:
    """Restore the handlers that a launcher sets."""
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_own_signals")
def test_a_killed_process_which_can_say_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> None:
        raise ChildFailedError("train", {1: ProcessFailure(local_rank=1, pid=0, exitcode=-9, error_file="")})

    monkeypatch.setattr("torch.distributed.run.run", fail)
    assert launch("reid.training.__main__", [], 2) == 137
    said = capsys.readouterr().err
    assert said.startswith("error: process 1 was killed by SIGKILL") and len(said.splitlines()) == 1


@pytest.mark.usefixtures("_own_signals")
@pytest.mark.parametrize("is_nohup", [False, True])
def test_a_launcher_forwards_signals_but_no_hangup_under_nohup(is_nohup: bool) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN if is_nohup else signal.SIG_DFL)
    forward_signals()
    assert callable(signal.getsignal(signal.SIGTERM)) and callable(signal.getsignal(signal.SIGINT))
    assert (signal.getsignal(signal.SIGHUP) is signal.SIG_IGN) == is_nohup


def test_processes_are_taken_from_the_flags() -> None:
    assert take_processes(["--name=a", "--processes", "4", "--seed=1"]) == (4, ["--name=a", "--seed=1"])
    assert take_processes(["--processes=2"]) == (2, [])
    assert take_processes(["--seed=1"]) == (1, ["--seed=1"])


def test_a_configuration_is_found_by_its_name() -> None:
    for name in ("quickstart", "ablations/paper"):
        assert parse(Config, [f"--config=reid:{name}"]) == parse(Config, [f"--config={ROOT}/configs/{name}.yaml"])


def test_a_configuration_without_its_prefix_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "configs/quickstart.yaml"):
        with pytest.raises(ValueError, match=f"{name}: no such file here; .* --config reid:quickstart"):
            parse(Config, [f"--config={name}"])


def test_a_wheel_works_without_the_source_tree(tmp_path: Path) -> None:
    """It holds the code, its templates, and the files of configs, launch and slurm."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    for folder in ("configs", "launch", "slurm"):
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.*") if path.suffix != ".pyc"}
        assert {f"reid/shipped/{file}" for file in files} <= names
    assert {"reid/py.typed", "reid/reports/templates/report.html"} <= names
    assert not any(name.startswith(("tests/", "docs/")) for name in names)
    ours = ["-c", "import sys; sys.path.insert(0, 'installed'); from reid.__main__ import main; sys.exit(main())"]
    flags = ["train", "--config", "reid:quickstart", "--print_config"]
    said = subprocess.run(
        [sys.executable, "-P", *ours, *flags], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "encoder: resnet10" in said.stdout
