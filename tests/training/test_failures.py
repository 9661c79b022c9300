"""What may befall a training run, with real processes: signals, kills, full disks, damage. Nothing hangs or is lost."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from reid.files import hold
from reid.program import STOPPED
from reid.runs.checkpoint import find
from reid.runs.models import find_run
from reid.training import setup as startup
from shards.__main__ import main as shards_main
from tests.support.programs import TIMEOUT_S, Program, launch
from tests.support.waiting import WAITS, wait_in_step_6

SMALL = [
    "--config=configs/quickstart.yaml", "--data.height=32", "--data.width=16", "--batch.identities=4",
    "--batch.streams=2", "--optim.milestones=[]", "--track.every_steps=1", "--track.wandb=off", "--data.workers=1",
]  # fmt: skip
FOREVER = "--optim.epochs=500"  # of a run that only a signal, a kill or a file ends


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("failures")
    sizes = ["--identities-train=16", "--identities-test=4", "--images-per-identity=6", "--distractors=2", "--junk=1"]
    drawn = ["--out", str(folder / "drawn"), *sizes, "--cameras=3", "--height=64", "--width=32"]
    assert shards_main(["synth", *drawn]) == 0
    built = ["--root", str(folder / "drawn"), "--out", str(folder / "shards"), "--shards=4"]
    assert shards_main(["build", "market1501", *built]) == 0
    return folder / "shards"


def words(data: Path, runs: Path, *flags: str) -> list[str]:
    return [*SMALL, f"--data.root={data}", f"--runs={runs}", "--name=run", *flags]


Start = Callable[..., Program]


@pytest.fixture
def start(data: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a training in tmp_path/run; what still runs after the test is killed."""
    started = []

    def start(*flags: str, ranks: int = 1, root: Path = data, **options) -> Program:
        started.append(Program("train.py", *words(root, tmp_path, *flags), ranks=ranks, **options))
        return started[-1]

    yield start
    for program in started:
        program.kill()


def launched(data: Path, runs: Path, script: str, *flags: str) -> Program:
    """A training on two ranks under the launcher. script: train.py, or one that runs it."""
    config = ["--config_file", "launch/cpu.yaml", "--main_process_port", "0"]
    return launch(*config, script, *words(data, runs, *flags))


def ranks_of(launcher: Program) -> dict[int, int]:
    """Process ids by rank, of the launcher's own children (decoding processes are children of a rank)."""
    children = Path(f"/proc/{launcher.pid()}/task/{launcher.pid()}/children").read_text().split()
    found = {}
    for pid in map(int, children):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found |= {int(item[5:]): pid for item in environment if item.startswith(b"RANK=")}
    return found


def steps(runs: Path) -> int:
    log = runs / "run" / "metrics.jsonl"
    return log.read_text().count("train/loss") if log.exists() else 0


def weights(runs: Path) -> dict:
    newest = find(runs / "run" / "checkpoints")[0]
    return {**load_file(newest / "model.safetensors"), **load_file(newest / "objective.safetensors")}


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, never disturbed."""
    runs = tmp_path_factory.mktemp("straight")
    status, said = Program("train.py", *words(data, runs, "--optim.epochs=4"), ranks=2).end()
    assert status == 0, said
    return runs


def assert_resumed_as_undisturbed(start: Start, runs: Path, straight: Path, said: str) -> None:
    stopped = json.loads((runs / "run" / "stopped.json").read_text())
    assert stopped["checkpoint"] == find(runs / "run" / "checkpoints")[0].name
    assert (stopped["epoch"], stopped["step"]) < (4, 0) and "resume with --resume=auto" in said
    status, said = start("--optim.epochs=4", "--resume=auto", ranks=2).end()
    assert status == 0 and f"from epoch {stopped['epoch'] + 1} step {stopped['step'] + 1}" in said, said
    assert not (runs / "run" / "stopped.json").exists()
    ours, theirs = weights(runs), weights(straight)
    assert ours.keys() == theirs.keys() and all(bool((ours[name] == theirs[name]).all()) for name in theirs)
    logs = [[line for line in read_log(folder) if "train/loss" in line] for folder in (runs, straight)]
    assert [(line["step"], line["train/loss"]) for line in logs[0]] == [
        (line["step"], line["train/loss"]) for line in logs[1]
    ]


def test_a_signal_to_one_rank_stops_all_and_the_rest_is_the_same_to_the_last_bit(
    start: Start, straight: Path, tmp_path: Path
) -> None:
    run = start("--optim.epochs=4", ranks=2, prepare=wait_in_step_6, environment={"SIGNALLED": "1"})
    run.wait_for(lambda: WAITS in run.said())
    run.signal(signal.SIGUSR1, rank=1)
    status, said = run.end()
    assert status == STOPPED, said
    assert_resumed_as_undisturbed(start, tmp_path, straight, said)


def test_a_signal_to_the_launcher_stops_all_and_the_rest_is_the_same_to_the_last_bit(
    data: Path, start: Start, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNALLED", "0 1")
    run = launched(data, tmp_path, "tests/support/waiting.py", "--optim.epochs=4")
    run.wait_for(lambda: run.said().count(WAITS) == 2)
    run.signal(signal.SIGTERM)
    status, said = run.end()
    assert status != 0, said
    assert_resumed_as_undisturbed(start, tmp_path, straight, said)


def test_no_rank_trains_on_without_its_launcher(data: Path, tmp_path: Path) -> None:
    """A launcher that does not know a signal, or is killed, ends at once and tells its processes nothing."""
    run = launched(data, tmp_path, "train.py", FOREVER)
    run.wait_for(lambda: steps(tmp_path) >= 1)
    ranks = ranks_of(run)
    try:
        run.signal(signal.SIGUSR1)
        status, said = run.end()
        assert (status, len(ranks)) == (-signal.SIGUSR1, 2), said
        end = time.monotonic() + TIMEOUT_S
        while any(is_running(pid) for pid in ranks.values()):
            assert time.monotonic() < end, run.said()
            time.sleep(0.1)
    finally:
        for pid in ranks.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    stopped = json.loads((tmp_path / "run" / "stopped.json").read_text())
    assert stopped["checkpoint"] == find(tmp_path / "run" / "checkpoints")[0].name
    assert stopped["reason"] == "the launcher has ended" and "Traceback" not in run.said()


def is_running(pid: int) -> bool:
    """Whether a process has not ended; one that nobody waits for stays a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def read_log(runs: Path) -> list[dict]:
    return [json.loads(line) for line in (runs / "run" / "metrics.jsonl").read_text().splitlines()]


def test_a_stop_file_stops_a_run_and_one_process_goes_on_with_what_two_began(start: Start, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    run = start(FOREVER, f"--stop_file={stop}", ranks=2)
    run.wait_for(lambda: steps(tmp_path) >= 1)
    stop.touch()
    status, said = run.end()
    assert status == STOPPED and f"stopped ({stop} exists)" in said
    went = steps(tmp_path)
    status, said = start(f"--stop_file={stop}", "--resume=auto", FOREVER).end()
    assert status == STOPPED and steps(tmp_path) == went + 1  # the file is still there: one more step


def test_a_signal_without_a_launcher_gives_the_exit_status_that_asks_for_more(start: Start, tmp_path: Path) -> None:
    run = start(FOREVER)
    run.wait_for(lambda: steps(tmp_path) >= 1)
    run.signal(signal.SIGTERM)
    status, said = run.end()
    assert status == STOPPED == 75 and "stopped (SIGTERM) with checkpoint" in said, said


def test_the_first_ctrl_c_saves_a_checkpoint(data: Path, tmp_path: Path) -> None:
    """Under `reid train --processes 2`, whose processes do not belong to the terminal."""
    run = Program("reid", "train", "--processes", "2", *words(data, tmp_path, FOREVER))
    try:
        run.wait_for(lambda: steps(tmp_path) >= 1)
        run.signal(signal.SIGINT)
        status, said = run.end()
    finally:
        run.kill()
    assert status == STOPPED and "stopped (SIGINT) with checkpoint" in said and "Traceback" not in said, said
    assert (tmp_path / "run" / "stopped.json").exists()


def test_two_processes_train_without_a_cross_entropy(start: Start, tmp_path: Path) -> None:
    """Heads that no loss uses have no gradient: DDP must not wait for it, and nothing may shrink them."""
    raw = ("--loss.space=raw", "--loss.triplet_space=raw")
    status, said = start("--loss.cross_entropy=0", "--optim.epochs=1", *raw, ranks=2).end()
    assert status == 0, said
    assert len([line for line in read_log(tmp_path) if "train/loss" in line]) > 2
    assert bool((weights(tmp_path)["neck.weight"] == 1).all())


@pytest.fixture(scope="module")
def damaged(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shards, with the start of each image of one identity of the first overwritten."""
    root = tmp_path_factory.mktemp("damaged") / "shards"
    shutil.copytree(data, root)
    with tarfile.open(root / "train-0000.tar") as tar:
        members = [member for member in tar if member.name.endswith(".jpg")]
    identity = members[0].name.split(".")[0]
    with open(root / "train-0000.tar", "r+b") as file:
        for member in members:
            if member.name.split(".")[0] == identity:
                file.seek(member.offset_data)
                file.write(bytes(64))
    return root


def test_damage_stops_two_processes_with_the_place(start: Start, damaged: Path) -> None:
    status, said = start("--optim.epochs=1", ranks=2, root=damaged).end()
    assert status != 0 and "train-0000.tar" in said and "error: " in said, said


def test_damage_is_skipped_by_two_processes_and_counted(start: Start, damaged: Path, tmp_path: Path) -> None:
    flags = ["--optim.epochs=2", "--data.on_damage=skip"]
    status, said = start(*flags, ranks=2, root=damaged).end()
    assert status == 0 and "1 identities were left out of this epoch" in said, said
    dropped = [line["data/dropped_identities"] for line in read_log(tmp_path) if "data/dropped_identities" in line]
    assert dropped == [1.0, 1.0]
    state = json.loads((find(tmp_path / "run" / "checkpoints")[0] / "state.json").read_text())
    assert state["dropped_total"] == 2


def test_a_killed_rank_ends_the_others(data: Path, tmp_path: Path) -> None:
    run = launched(data, tmp_path, "train.py", FOREVER, "--timeout_s=30")
    run.wait_for(lambda: steps(tmp_path) >= 1)
    os.kill(ranks_of(run)[1], signal.SIGKILL)
    status, said = run.end()
    assert status != 0
    assert "SIGKILL" in said or "Signal 9" in said
    assert "error: another process of this program has ended" in said and "[rank0]: Traceback" not in said, said


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(start: Start, tmp_path: Path) -> None:
    run = start(FOREVER, "--track.checkpoint_steps=1")
    checkpoints = tmp_path / "run" / "checkpoints"
    run.wait_for(lambda: len(find(checkpoints)) >= 2 and list(checkpoints.glob(".*.writing")))
    run.kill()
    stop = tmp_path / "stop"
    stop.touch()
    status, said = start(FOREVER, "--resume=auto", f"--stop_file={stop}").end()
    assert status == STOPPED, said
    assert not list(checkpoints.glob(".*"))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "state.json"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    start: Start, straight: Path, tmp_path: Path, file: str
) -> None:
    shutil.copytree(straight / "run", tmp_path / "run")
    newest, before = find(tmp_path / "run" / "checkpoints")
    damaged = bytearray((newest / file).read_bytes())
    damaged[len(damaged) // 2] ^= 255
    (newest / file).write_bytes(damaged)
    status, said = start("--optim.epochs=4", "--resume=auto").end()
    assert status == 0, said
    assert f"warning: {newest}: damaged checkpoint" in said and f"resuming from {before}" in said
    assert "from epoch 4 step 1" in said


def test_a_loss_that_is_not_finite_stops_all_ranks_with_the_images(start: Start, tmp_path: Path) -> None:
    flags = ["--optim.lr=1e30", "--optim.warmup_epochs=0", "--track.checkpoint_steps=1"]
    status, said = start(*flags, ranks=2).end()
    assert status != 0
    (line,) = (line for line in said.splitlines() if line.startswith("error: "))
    for text in ("not finite: ", "first at step", "identity", "image", "lower optim.lr", "checkpoints"):
        assert text in line
    kept = find(tmp_path / "run" / "checkpoints")
    assert kept and all(bool(value.isfinite().all()) for value in load_file(kept[-1] / "model.safetensors").values())


def write_few_bytes() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


def test_a_full_disk_is_a_warning_and_at_the_end_an_error(start: Start, tmp_path: Path) -> None:
    status, said = start("--optim.epochs=2", prepare=write_few_bytes).end()
    assert status == 2, said
    assert "warning: " in said and "no checkpoint could be written: File too large; training continues" in said
    assert "error: " in said and "earlier ones are intact" in said
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_folder_that_cannot_be_written_is_said_first(data: Path) -> None:
    status, said = Program("train.py", *words(data, Path("/proc/nowhere"))).end()
    assert status == 2 and "error: /proc/nowhere/run cannot be written" in said and "give another --runs" in said


def take_the_lock_at_once() -> None:
    startup.time = SimpleNamespace(sleep=lambda seconds: None)  # type: ignore[assignment]


def test_a_second_run_in_the_same_folder_is_refused(start: Start, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with hold(tmp_path / "run" / ".lock"):
        status, said = start(prepare=take_the_lock_at_once).end()
    assert status == 2 and f"process {os.getpid()} on" in said and "is training in this folder" in said


def test_a_dry_run_makes_two_steps_and_writes_nothing(start: Start, tmp_path: Path) -> None:
    status, said = start("--dry_run=true", ranks=2).end()
    assert status == 0, said
    assert "dry run: 2 steps with 2 process(es), nothing written" in said
    assert not list(tmp_path.iterdir())


def test_held_out_identities_choose_the_best_checkpoint(start: Start, tmp_path: Path) -> None:
    flags = ["--data.val_identities=4", "--optim.epochs=3", "--eval.every_epochs=1", "--track.keep_checkpoints=1"]
    status, said = start(*flags).end()
    assert status == 0, said
    assert "12 identities, 72 images" in said and "4 identities held out" in said
    scores = [line for line in read_log(tmp_path) if "eval/val/mAP" in line]
    assert len(scores) == 3 and ["eval/image/mAP" in line for line in scores] == [False, False, True]
    best = max(line["eval/val/mAP"] for line in scores)
    assert scores[-1]["eval/best_mAP"] == best
    kept = find(tmp_path / "run" / "checkpoints")
    state = json.loads((kept[0] / "state.json").read_text())
    assert state["best"]["val/mAP"] == best and state["best_name"] in [path.name for path in kept]
    assert find_run(str(tmp_path / "run"), "best")[1].name == state["best_name"]
    assert find_run(str(tmp_path / "run"), "newest")[1] == kept[0]
