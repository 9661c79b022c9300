"""A sweep without W&B's server: python launch/sweep.py configs/sweeps/w1_margin.yaml --runs 16

The same sweep file as `wandb sweep` takes. W&B's own engine proposes the runs, which are made here one after the other,
or as a Slurm job array (--slurm). The same command again goes on where it was interrupted. Flags after `--` go to
train.py.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from reid.config import Config, check, parse, to_dict
from reid.files import Held, hold
from reid.program import SIGNALS, STOPPED
from reid.sweeps.folder import DONE, SweepFolder, to_flags
from reid.sweeps.spec import PROGRAM, Knobs, Sweep, check_knobs, corners, falls_behind, propose, read_sweep
from reid.sweeps.table import describe_states

POLL_S = 1.0


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0 all runs are done (or handed to Slurm), 1 some failed, 2 an error, 75 stopped before the end."""
    options, extra = parse_arguments(sys.argv[1:] if args is None else args)
    try:
        if options.collect:
            folder = SweepFolder(options.collect)
            print(folder.collect(folder.read()))
            return 0
        sweep = read_sweep(options.sweep)
        folder = SweepFolder(options.out or Path("runs", "sweeps", options.sweep.stem))
        check_sweep(sweep, extra)
        if options.check:
            print(f"{options.sweep}: knobs, values and metric are known")
            return 0
        folder.claim(sweep, extra)
        with hold(folder.path / ".lock"):
            if options.slurm is None:
                return run_here(sweep, folder, options.runs)
            return submit(sweep, folder, options.runs, options.slurm)
    except Held as error:
        print(f"error: {folder.path}: {error} is at work on this sweep; wait for it", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130


def parse_arguments(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    words = list(args)
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, nargs="?", help="sweep file, as for `wandb sweep`")
    parser.add_argument("--runs", type=int, metavar="N", help="runs in all; default: the whole grid")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/sweeps/<the file's name>")
    parser.add_argument(
        "--slurm", nargs="?", const="", metavar="FLAGS",
        help='submit a job array; its value goes to sbatch: --slurm="--gpus-per-node=4 --nodes=2"',
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true", help="check the file and start nothing, as before `wandb sweep`"
    )
    parser.add_argument("--collect", type=Path, metavar="FOLDER", help="tables and heat map of an earlier --out, only")
    options = parser.parse_args(words[:at])
    if (options.sweep is None) == (options.collect is None):
        parser.error("give a sweep file, or --collect with the folder of a sweep")
    if options.runs is not None and options.runs < 1:
        parser.error(f"--runs {options.runs}: give 1 or more")
    return options, words[at + 1 :]


def check_sweep(sweep: Sweep, extra: Sequence[str]) -> None:
    """Every knob and every value that the file lists, before any run starts. ValueError."""
    check_knobs(sweep, list_knobs(to_dict(Config())))
    for knobs in corners(sweep):
        config = check_run(sweep, [*sweep.flags, *extra, *to_flags(knobs)])
        if sweep.stops_early and not config.eval.every_epochs:
            raise ValueError(f"{sweep.path}: early_terminate needs evaluations on the way: add --eval.every_epochs=1")
        if sweep.metric.startswith("eval/val/") and not config.data.val_identities:
            raise ValueError(f"{sweep.path}: {sweep.metric} is logged with held-out identities: --data.val_identities")


def check_run(sweep: Sweep, flags: Sequence[str]) -> Config:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            config = parse(Config, flags)
        check(config, 1)
    except SystemExit:
        reason = said.getvalue().split("error: ", 1)[-1].strip()
        raise ValueError(f"{sweep.path}: {' '.join(flags)}: {reason}") from None
    except ValueError as error:
        raise ValueError(f"{sweep.path}: {error}") from error
    return config


def list_knobs(config: dict[str, object], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from list_knobs(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def plan_runs(sweep: Sweep, folder: SweepFolder, total: int | None) -> None:
    """Write all runs down that do not depend on the results of others. ValueError without an end."""
    method = sweep.document["method"]
    if total is None and method != "grid":
        raise ValueError(f"method {method} has no end of its own; give --runs N")
    if method == "bayes":
        return
    runs = folder.read()
    missing = 10**6 if total is None else total - len(runs)
    for knobs in propose(sweep, runs, missing) if missing > 0 else []:
        add(sweep, folder, knobs)


def add(sweep: Sweep, folder: SweepFolder, knobs: Knobs) -> None:
    """Write one more run down, unless the trainer would refuse it: then ValueError."""
    check_run(sweep, folder.flags_of(sweep, 0, knobs))
    folder.add(sweep, knobs)


def run_here(sweep: Sweep, folder: SweepFolder, total: int | None) -> int:
    """One run after the other, Bayes's proposals between them."""
    plan_runs(sweep, folder, total)
    stop = Stop()
    number = 0
    while True:
        runs = folder.read()
        if number == len(runs):
            if sweep.document["method"] != "bayes" or number >= (total or 0):
                break
            add(sweep, folder, propose(sweep, runs, 1)[0])
        elif total is not None and number >= total:
            break
        if folder.state(number) not in DONE:
            make_run(sweep, folder, number, stop)
        now = folder.read()[number]
        if now.state == "finished" and now.metric is None:
            raise ValueError(
                f"run {number} finished without logging {sweep.metric}; does its data have query and gallery? Its log: "
                f"{folder.run_folder(number)}.log"
            )
        if stop.asked:
            print(f"stopped: {describe_states(folder.read())}; the same command goes on", flush=True)
            return STOPPED
        if folder.state(number) == "failed" and not any(run.state in DONE for run in folder.read()):
            raise ValueError(
                f"run {number} failed and none has succeeded yet; its log: {folder.run_folder(number)}.log"
            )
        number += 1
    runs = folder.read()
    print(folder.collect(runs), flush=True)
    return int(any(run.state == "failed" for run in runs))


class Stop:
    """SIGTERM and SIGUSR1 end the run under way with a checkpoint, and the sweep after it."""

    def __init__(self) -> None:
        self.asked = False
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.asked = True


def make_run(sweep: Sweep, folder: SweepFolder, number: int, stop: Stop) -> None:
    """One training, from its newest checkpoint if there is one, watched for the sweep's early termination."""
    run, stop_file = folder.run_folder(number), folder.path / f".stop-{number}"
    stop_file.unlink(missing_ok=True)
    folder.note(number, "running")
    command = [*sweep.launcher, PROGRAM, *folder.flags(number), f"--stop_file={stop_file}"]
    knobs = folder.read()[number].knobs
    print(f"run {number}: {' '.join(to_flags(knobs))}; its log: {run}.log", flush=True)
    started, behind, evaluations = time.monotonic(), False, 0
    with open(f"{run}.log", "a") as log, start(command, log) as process:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
            runs = folder.read()
            if len(runs[number].history) > evaluations and not behind:
                evaluations = len(runs[number].history)
                behind = falls_behind(sweep, runs, number)
            if behind or stop.asked:
                stop_file.touch()
    stop_file.unlink(missing_ok=True)
    stopped = (run / "stopped.json").exists()
    if process.returncode == 0:
        folder.note(number, "finished")
    elif stopped and behind:
        folder.note(number, "stopped")
    elif not (stopped and stop.asked):  # then it stays `running`: the next call goes on with it
        folder.note(number, "failed")
    now = folder.read()[number]
    print(f"run {number}: {now.state}, {sweep.metric} {now.metric}, {time.monotonic() - started:.0f} s", flush=True)


def start(command: list[str], log: IO[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, stdout=log, stderr=log)
    except OSError as error:
        raise ValueError(f"{command[0]}: {error.strerror}; it stands first in the sweep file's `command`") from error


def submit(sweep: Sweep, folder: SweepFolder, total: int | None, words: str) -> int:
    """A job array of the runs that are not done."""
    if sweep.document["method"] == "bayes":
        raise ValueError(
            f"{sweep.path}: with method bayes a run waits for those before it, so there is no array of them; use "
            "method random or grid, or start this program without --slurm inside one job"
        )
    plan_runs(sweep, folder, total)
    job_file = folder.path / "job"
    if job_file.exists() and (waiting := queued(job_file.read_text().strip())):
        raise ValueError(f"{folder.path}: job {waiting} of this sweep is still in the queue; wait for it or scancel it")
    runs = [run.number for run in folder.read()[:total] if run.state not in DONE]
    if not runs:
        print(folder.collect(folder.read()))
        return 0
    if sweep.stops_early:
        print("note: early_terminate has no effect in a job array: its runs do not see each other")
    array = f"--array={','.join(map(str, runs))}"
    command = ["sbatch", "--parsable", array, *shlex.split(words), "slurm/sweep.sbatch", str(folder.path)]
    job = call_slurm(command).split(";")[0]
    job_file.write_text(job + "\n")
    print(f"job {job}: {len(runs)} runs; at any time: {sys.executable} launch/sweep.py --collect {folder.path}")
    return 0


def queued(job: str) -> str:
    """The job's id if Slurm still holds tasks of it."""
    with contextlib.suppress(ValueError):  # a job that Slurm has forgotten is an error of squeue
        return job if call_slurm(["squeue", "--noheader", "--jobs", job]) else ""
    return ""


def call_slurm(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    except FileNotFoundError:
        raise ValueError(
            f"there is no {command[0]} here: not a login node of a Slurm cluster; leave out --slurm"
        ) from None
    if done.returncode:
        raise ValueError(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
