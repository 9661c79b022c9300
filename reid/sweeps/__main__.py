"""A sweep without W&B's server: python launch/sweep.py configs/sweeps/w1_margin.yaml --runs 16

The same sweep file as `wandb sweep` takes. W&B's own engine proposes the runs, which are made here one after the other,
or as a Slurm job array (--slurm). The same command again continues where it was interrupted. Flags after `--` are given
to train.py.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from jsonargparse.typing import PositiveInt

from reid.config import Config, to_flags
from reid.data.joined import Joined
from reid.data.manifest import MANIFEST_NAME
from reid.data.storage import is_remote
from reid.files import Held, hold, make_folder
from reid.program import INTERRUPTED, SIGNALS, STOPPED, Parser, call, name_program
from reid.runs.folder import RunFolder
from reid.runs.logged import why_not_logged, without_dataset
from reid.sweeps.folder import DONE, SweepFolder, check_knobs, check_run, claim_folder
from reid.sweeps.spec import PROGRAM, Sweep, corners, propose, read_sweep, should_stop
from reid.sweeps.table import describe_states


def main(args: Sequence[str] | None = None) -> int:
    """Return 0 if all runs are done or queued, 1 if some failed, STOPPED after a signal. A user error exits with 2."""
    args = sys.argv[1:] if args is None else args
    end = args.index("--") if "--" in args else len(args)
    parser = Parser(
        prog=name_program("python launch/sweep.py"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("sweep", type=Path, nargs="?", help="sweep file, as for `wandb sweep`")
    source.add_argument("--collect", type=Path, metavar="FOLDER", help="only write the tables of an earlier --out")
    parser.add_argument("--runs", type=PositiveInt, metavar="N", help="number of all runs; default: the entire grid")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/sweeps/<the file's name>")
    parser.add_argument("--slurm", nargs="?", const="", metavar="FLAGS",
                        help='submit a job array; flags for sbatch: --slurm="--gpus-per-node=4 --nodes=2"')  # fmt: skip
    parser.add_argument("--check", action="store_true", help="only check the file, as before `wandb sweep`")
    options, extra = parser.parse_args(args[:end]), list(args[end + 1 :])
    try:
        return call(lambda: run_sweep(options, extra))
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            print("the same command continues", file=sys.stderr)
        raise


def run_sweep(options: argparse.Namespace, extra: list[str]) -> int:
    if options.collect:
        print(SweepFolder(options.collect).collect())
        return 0
    sweep = read_sweep(options.sweep)
    check_sweep(sweep, extra)
    if options.check:
        print(f"{options.sweep}: knobs, values and metric are known")
        return 0
    method = sweep.document["method"]
    if method == "bayes" and options.slurm is not None:
        raise ValueError(
            f"{sweep.path}: with method bayes a run needs the results of those before it, so a job array cannot make "
            "them; use method random or grid, or start this program without --slurm inside one job"
        )
    if method != "grid" and options.runs is None:
        raise ValueError(f"{sweep.path}: method {method} has no last run; give --runs N")
    out = options.out or Path("runs", "sweeps", options.sweep.stem)
    make_folder(out)
    try:
        with hold(out / ".lock"):
            folder = claim_folder(out, sweep, extra)
            if method != "bayes":
                runs = folder.runs()
                for knobs in propose(sweep, runs, max(0, (options.runs or 10**6) - len(runs))):
                    folder.add(knobs)
            return run_here(folder, options.runs) if options.slurm is None else submit(folder, options)
    except Held as error:
        raise ValueError(f"{out}: {error} is at work on this sweep; wait for it") from error


def check_sweep(sweep: Sweep, extra: Sequence[str]) -> None:
    """Check every knob and every value that the file lists, before any run starts. Raises ValueError."""
    found, seen = corners(sweep), set[tuple[str, ...]]()
    checked = check_run(sweep, [*sweep.flags, *extra, *to_flags(found[0])])
    for config in (check_knobs(sweep, checked, knobs) for knobs in found):
        if "early_terminate" in sweep.document and not config.eval.every_epochs:
            raise ValueError(f"{sweep.path}: early_terminate needs evaluations during a run: add --eval.every_epochs=1")
        if lacks := why_not_logged(sweep.metric, config):
            raise ValueError(
                f"{sweep.path}: {sweep.metric} is logged only with {lacks}; add it, or take another metric"
            )
        if (roots := tuple(config.data.roots)) not in seen:
            seen.add(roots)
            check_data(sweep, config)


def check_data(sweep: Sweep, config: Config) -> None:
    """Raise ValueError if the data cannot give the metric. Data that is not here yet is left to the runs."""
    metric, roots = sweep.metric, config.data.roots
    label = metric.split("/")[1] if without_dataset(metric) != metric else ""
    if missing := [root for root in roots if is_remote(root) or not (Path(root) / MANIFEST_NAME).is_file()]:
        if label:
            print(
                f"note: {sweep.path}: {missing[0]} is not here, so whether a dataset is called {label} is not checked"
            )
        return
    datasets = {dataset.label: dataset.manifest for dataset in Joined.load(roots).datasets}
    if label and label not in datasets:
        raise ValueError(f"{sweep.path}: {metric}: no dataset is called {label}; give one of {', '.join(datasets)}")
    of_test_set = without_dataset(metric).startswith(("eval/image/", "eval/centroid/"))
    if not config.data.val_identities:
        of_test_set |= metric in ("eval/best_mAP", "eval/last_mAP")
    if of_test_set and not any(datasets[name].has_test_set for name in ([label] if label else datasets)):
        raise ValueError(
            f"{sweep.path}: {metric} is never logged, because {label or ', '.join(roots)} has no query and gallery; "
            "take eval/val/mAP with --data.val_identities=N, or another metric"
        )


def run_here(folder: SweepFolder, total: int | None) -> int:
    """Make one run after the other; with method bayes, the results so far decide the next."""
    signals: list[int] = []  # a signal ends the current run with a checkpoint, and then the sweep
    for kind in SIGNALS:
        signal.signal(kind, lambda number, frame: signals.append(number))
    sweep, runs = folder.sweep, folder.runs()
    last = total if total is not None and sweep.document["method"] == "bayes" else len(runs[:total])
    for number in range(last):
        if number == len(runs):
            folder.add(propose(sweep, runs, 1)[0])
        if number == len(runs) or runs[number].state not in DONE:
            make_run(folder, number, signals)
            runs = folder.runs()
        run, log = runs[number], f"{folder.run_folder(number)}.log"
        if run.state == "finished" and run.metric is None:
            raise ValueError(
                f"run {number} finished without logging {sweep.metric}; does its data have query and gallery? See {log}"
            )
        if signals:
            print(f"stopped: {describe_states(runs)}; the same command continues", flush=True)
            return STOPPED
        if run.state == "failed" and not any(other.state in DONE for other in runs):
            raise ValueError(f"run {number} failed and none has succeeded yet; see {log}")
    print(folder.collect(), flush=True)
    return int(any(run.state == "failed" for run in runs))


def make_run(folder: SweepFolder, number: int, signals: Sequence[int]) -> None:
    """Train one run, from its newest checkpoint if there is one, and apply the sweep's early termination."""
    sweep, path, stop_file = folder.sweep, folder.run_folder(number), folder.path / f".stop-{number}"
    stop_file.unlink(missing_ok=True)
    folder.set_state(number, "running")
    command = [*sweep.launcher, PROGRAM, *folder.flags(number), f"--stop_file={stop_file}"]
    print(f"run {number}: {' '.join(to_flags(folder.run(number).knobs))}; its log: {path}.log", flush=True)
    started, ends_early = time.monotonic(), False
    with open(f"{path}.log", "a") as log, start(command, log) as process:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            ends_early = ends_early or should_stop(folder.sweep, folder.runs(), number)
            if ends_early or signals:
                stop_file.touch()
    stop_file.unlink(missing_ok=True)
    if process.returncode == 0:
        state = "finished"
    elif RunFolder(path).stopped.exists() and (ends_early or signals):
        state = "stopped" if ends_early else "running"  # the next call continues a running one
    else:
        state = "failed"
    folder.set_state(number, state)
    metric = folder.run(number).metric
    print(f"run {number}: {state}, {sweep.metric} {metric}, {time.monotonic() - started:.0f} s", flush=True)


def start(command: list[str], log: IO[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, stdout=log, stderr=log)
    except OSError as error:
        raise ValueError(f"{command[0]}: {error.strerror}; it is the first word of the file's `command`") from error


def submit(folder: SweepFolder, options: argparse.Namespace) -> int:
    """Submit a job array of the runs that are not done."""
    job_file = folder.path / "job"
    job = job_file.read_text().strip() if job_file.exists() else ""
    if job and call_slurm("squeue", "--noheader", "--jobs", job).stdout.strip():  # fails for a job long ended
        raise ValueError(f"{folder.path}: job {job} of this sweep is still in the queue; wait for it or scancel it")
    numbers = [str(run.number) for run in folder.runs()[: options.runs] if run.state not in DONE]
    if not numbers:
        print(folder.collect())
        return 0
    if "early_terminate" in folder.sweep.document:
        print("note: early_terminate has no effect in a job array: its runs do not see each other")
    array = f"--array={','.join(numbers)}"
    done = call_slurm(
        "sbatch", "--parsable", array, *shlex.split(options.slurm), "slurm/sweep.sbatch", str(folder.path)
    )
    if done.returncode:
        raise ValueError(f"{shlex.join(done.args)}: {done.stderr.strip()}")
    job = done.stdout.strip().split(";")[0]
    job_file.write_text(job + "\n")
    print(f"job {job}: {len(numbers)} runs; at any time: {sys.executable} launch/sweep.py --collect {folder.path}")
    return 0


def call_slurm(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ValueError(f"{command[0]} is not installed here; use a login node, or leave out --slurm") from None


if __name__ == "__main__":
    sys.exit(main())
