"""The job files on a real Slurm of two virtual nodes: train, stop, requeue, resume, evaluate, sweep; and failures."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from shards.__main__ import main as shards_main
from tests.support.programs import ROOT, TIMEOUT_S
from tests.support.slurm_cluster import ENDED, Cluster, slurm_cluster, why_not

SMALL = [
    "--config=configs/quickstart.yaml", "--data.height=32", "--data.width=16", "--batch.identities=4",
    "--batch.streams=2", "--optim.milestones=[1]", "--optim.warmup_epochs=1", "--track.every_steps=1",
]  # fmt: skip

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to submit from, with the repository in it and built shards; logs and runs land there."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "train.py").symlink_to(ROOT / "tests" / "support" / "waiting.py")
    for name in ("evaluate.py", "slurm", "launch", "configs", "reid", "shards"):
        (folder / name).symlink_to(ROOT / name)
    sizes = ["--identities-train=16", "--identities-test=6", "--images-per-identity=6", "--distractors=5", "--junk=3"]
    drawn = ["synth", "--out", str(folder / "drawn"), *sizes, "--cameras=3", "--height=64", "--width=32"]
    assert shards_main(drawn) == 0
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm") / "files") as running:
        yield running


def submit(cluster: Cluster, site: Path, *words: str, **extra: str) -> str:
    environment = {"BIN": str(Path(sys.executable).parent), "LOCAL_SCRATCH": str(site / "scratch"), **extra}
    return cluster.call("sbatch", "--parsable", *words, cwd=site, extra=environment)


def logs(site: Path) -> str:
    return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(site.glob("slurm-*.log")))


def lines_of(run: Path) -> list[dict[str, float]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition, what: str) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def wait_for_lines(cluster: Cluster, site: Path, job: str, run: Path, number: int) -> None:
    """Until the run has logged so many lines; its job must not end before."""

    def logged() -> bool:
        assert cluster.state(job) not in ENDED, logs(site)
        return len(lines_of(run)) >= number

    wait_until(logged, f"no step: {logs(site)}")


@pytest.fixture(scope="module")
def built(cluster: Cluster, site: Path) -> Path:
    job = submit(cluster, site, "slurm/shards.sbatch", "market1501", "--root=drawn", "--out=built", "--shards=4")
    assert cluster.wait(job)["JobState"] == "COMPLETED", logs(site)
    assert (site / "built" / "manifest.json").is_file()
    return site / "built"


def test_two_nodes_stop_requeue_resume_and_evaluate(cluster: Cluster, site: Path, built: Path) -> None:
    """Shards are staged; the job's own port is taken; a full training, in two goes, then its evaluation."""
    run = site / "runs" / "two"
    flags = [*SMALL, f"--data.root={built}", "--name=two", "--optim.epochs=3",
             "--batch.steps_per_epoch=6", "--track.wandb=off"]  # fmt: skip
    blockers = [port_server(15000 + number) for number in range(1, 9)]  # jobs of a fresh cluster have small numbers
    job = submit(cluster, site, "--nodes=2", "slurm/train.sbatch", *flags, STAGE=str(built), SIGNALLED="0")
    evaluation = submit(cluster, site, f"--dependency=afterok:{job}", "slurm/evaluate.sbatch", f"--run={run}",
                        "--wandb=off", STAGE=str(built))  # fmt: skip
    wait_for_lines(cluster, site, job, run, 5)
    cluster.call("scancel", "--signal=USR1", "--batch", job)
    wait_until(lambda: cluster.facts(job)["Restarts"] == "1", f"not requeued: {logs(site)}")
    stopped = json.loads((run / "stopped.json").read_text())
    steps = 6  # of an epoch
    went = stopped["epoch"] * steps + stopped["step"]
    assert 5 < went < 3 * steps
    assert [line["step"] for line in lines_of(run) if "train/loss" in line] == list(range(went))
    assert (run / "checkpoints" / stopped["checkpoint"]).is_dir()

    start_again(cluster, job)
    assert cluster.wait(job)["JobState"] == "COMPLETED", logs(site)
    for blocker in blockers:
        blocker.close()
    assert not (run / "stopped.json").exists()
    assert [line["step"] for line in lines_of(run) if "train/loss" in line] == list(range(3 * steps))
    head = (site / f"slurm-reid-train-{job}-node0.log").read_text()
    assert f"from epoch {stopped['epoch'] + 1} step {stopped['step'] + 1}" in head
    assert head.count("over 2 process(es)") == 2
    assert (site / f"slurm-reid-train-{job}-node1.log").exists()
    said = (site / f"slurm-reid-train-{job}.log").read_text()
    assert "start 1: train.py" in said and "start 2: train.py" in said and said.count("requeue: ") == 1
    assert not re.search(r"meeting at 127\.0\.0\.1:1500[1-8];", said)

    assert cluster.wait(evaluation)["JobState"] == "COMPLETED", logs(site)
    metrics = json.loads((run / "eval" / "pedestrians" / "metrics.json").read_text())
    assert metrics["image"]["mAP"] == pytest.approx(lines_of(run)[-1]["eval/image/mAP"], abs=1e-6)


def start_again(cluster: Cluster, job: str) -> None:
    """Skip the two minutes that Slurm lets a requeued job wait, but not all: nodes refuse its number for a while."""
    wait_until(lambda: cluster.state(job) == "PENDING", "still ending")
    time.sleep(4)
    cluster.call("scontrol", "update", f"JobId={job}", "StartTime=now")


def port_server(port: int) -> socket.socket:
    """Something that listens there; if something does already, that is as good."""
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with contextlib.suppress(OSError):
        server.bind(("127.0.0.1", port))
        server.listen()
    return server


def test_a_job_that_fails_is_not_requeued(cluster: Cluster, site: Path, built: Path) -> None:
    knob = submit(cluster, site, "slurm/train.sbatch", *SMALL, "--loss.marign=1")
    data = submit(cluster, site, "slurm/train.sbatch", *SMALL, "--data.root=nowhere", "--name=nodata")
    assert exit_of(cluster.wait(knob)) == ("FAILED", "2:0", "0")
    assert "The nearest known knob is --loss.margin" in (site / f"slurm-reid-train-{knob}.log").read_text()
    state, code, restarts = exit_of(cluster.wait(data))
    assert (state, restarts) == ("FAILED", "0") and code != "0:0"
    assert "nowhere: no such folder" in (site / f"slurm-reid-train-{data}.log").read_text()


def exit_of(facts: dict[str, str]) -> tuple[str, str, str]:
    return facts["JobState"], facts["ExitCode"], facts["Restarts"]


def test_requeues_have_a_limit(cluster: Cluster, site: Path, built: Path) -> None:
    run = site / "runs" / "limited"
    flags = [*SMALL, f"--data.root={built}", "--name=limited", "--optim.epochs=1000", "--track.wandb=off"]
    job = submit(cluster, site, "slurm/train.sbatch", *flags, MAX_REQUEUES="0")
    wait_for_lines(cluster, site, job, run, 2)
    cluster.call("scancel", "--signal=USR1", "--batch", job)
    assert exit_of(cluster.wait(job)) == ("FAILED", "2:0", "0")
    assert "it was requeued 0 times already" in (site / f"slurm-reid-train-{job}.log").read_text()
    assert (run / "stopped.json").is_file()


def test_too_slow_a_stop_and_a_preemption_requeue_and_a_cancellation_does_not(
    cluster: Cluster, site: Path, built: Path
) -> None:
    """One job three times: Slurm's signal while the run may not take any time; SIGTERM to the step; scancel."""
    run = site / "runs" / "often"
    flags = [*SMALL, f"--data.root={built}", "--name=often", "--optim.epochs=1000", "--track.wandb=off",
             "--track.checkpoint_steps=1"]  # fmt: skip
    job = submit(cluster, site, "slurm/train.sbatch", *flags, STOP_WAIT="0")
    log = site / f"slurm-reid-train-{job}.log"

    wait_for_lines(cluster, site, job, run, 2)
    cluster.call("scancel", "--signal=USR1", "--batch", job)
    wait_until(lambda: cluster.facts(job)["Restarts"] == "1", f"not requeued: {logs(site)}")
    assert f"{run.relative_to(site)} has not ended 0 s after it was asked to" in log.read_text()
    start_again(cluster, job)

    went = len(lines_of(run))
    wait_for_lines(cluster, site, job, run, went + 2)
    cluster.call("scancel", "--signal=TERM", job)  # as Slurm preempts: not to the job's shell
    wait_until(lambda: cluster.facts(job)["Restarts"] == "2", f"not requeued: {logs(site)}")
    assert json.loads((run / "stopped.json").read_text())["reason"] == "SIGTERM"
    start_again(cluster, job)

    went = len(lines_of(run))
    wait_for_lines(cluster, site, job, run, went + 2)
    cluster.call("scancel", job)
    assert cluster.wait(job)["JobState"] == "CANCELLED"
    time.sleep(8)  # longer than its shell lives
    assert (cluster.state(job), cluster.facts(job)["Restarts"]) == ("CANCELLED", "2")
    steps = [line["step"] for line in lines_of(run) if "train/loss" in line]
    assert steps == list(range(len(steps)))


def test_a_sweep_as_an_array(cluster: Cluster, site: Path, built: Path) -> None:
    """Two runs without a server, one of them preempted; the last to end leaves the entire table."""
    document = {
        "method": "grid",
        "metric": {"name": "eval/best_mAP", "goal": "maximize"},
        "parameters": {"loss.w1": {"values": [0.1, 0.3]}, "loss.margin": {"values": [0.5]}},
        "command": ["python", "train.py", "--config=configs/quickstart.yaml", "${args}"],
    }
    (site / "sweep.yaml").write_text(yaml.safe_dump(document))
    out = site / "runs" / "sweep"
    flags = [*SMALL, f"--data.root={built}", "--batch.steps_per_epoch=6", "--optim.epochs=2", "--data.workers=0"]
    words = [sys.executable, "launch/sweep.py", "sweep.yaml", "--out", str(out), "--slurm=--cpus-per-task=4"]
    environment = {"BIN": str(Path(sys.executable).parent), "PROCESSES": "1", "SIGNALLED": "0"}
    cluster.call(*words, "--", *flags, cwd=site, extra=environment)
    job = (out / "job").read_text().strip()
    first = out / "run-0000"
    wait_for_lines(cluster, site, f"{job}_0", first, 2)
    # Slurm 22.05 delivers a signal to a task of an array, says that it could not, and scancel tries for a minute more.
    with subprocess.Popen(["scancel", "--signal=USR1", "--batch", f"{job}_0"], env=cluster.environment) as scancel:
        wait_until(lambda: cluster.facts(f"{job}_0")["Restarts"] == "1", f"not requeued: {logs(site)}")
        scancel.kill()
    again = subprocess.run([*words, "--", *flags], cwd=site, env=cluster.environment, capture_output=True, text=True,
                           timeout=TIMEOUT_S, check=False)  # fmt: skip
    assert again.returncode == 2 and f"job {job} of this sweep is still in the queue" in again.stderr
    start_again(cluster, f"{job}_0")
    for task in range(2):
        assert cluster.wait(f"{job}_{task}")["JobState"] == "COMPLETED", logs(site)
    rows = list(csv.DictReader((out / "runs.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["finished"] * 2
    assert {(row["loss.w1"], row["loss.margin"]) for row in rows} == {("0.1", "0.5"), ("0.3", "0.5")}
    for row in rows:
        lines = lines_of(out / f"run-000{row['run']}")
        loss = yaml.safe_load((out / f"run-000{row['run']}" / "config.yaml").read_text())["loss"]
        assert (str(loss["w1"]), str(loss["margin"])) == (row["loss.w1"], row["loss.margin"])
        assert float(row["eval/best_mAP"]) == lines[-1]["eval/best_mAP"]
        assert [line["step"] for line in lines if "train/loss" in line] == list(range(12))
    assert (out / "settings.txt").is_file()
