"""Start the processes of a program on this machine, for `reid train --processes N`.

torchrun, which `accelerate launch` calls, starts and watches them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import psutil

from reid.program import SIGNALS

FLAG = "--processes"


def take_processes(flags: Sequence[str]) -> tuple[int, list[str]]:
    """Return the N of `--processes N` or `--processes=N`, 1 without the flag, and the other flags.

    Raises:
        ValueError: N is not a number of 1 or more.
    """
    others = list(flags)
    number = "1"
    for place, flag in enumerate(flags):
        if flag == FLAG or flag.startswith(f"{FLAG}="):
            end = place + 1 if "=" in flag else place + 2
            number = flag.partition("=")[2] if "=" in flag else "".join(flags[place + 1 : end])
            others[place:end] = []
            break
    if not number.isdecimal() or int(number) < 1:
        raise ValueError(f"{FLAG} {number or 'without a number'}: give the number of processes, 1 or more")
    return int(number), others


def launch(module: str, flags: Sequence[str], processes: int) -> int:
    """Run `python -m module` in several processes of this machine.

    A process that fails has said why, so torchrun's own report of 10 to 30 lines is left out. One that was killed has
    not; then this prints a line.

    Args:
        module: name of the module.
        flags: its flags.
        processes: their number; with GPUs, each uses one.

    Returns:
        The exit status, that of the process that failed first: 2 for an error of the user, 75 for a stop on request,
        128 plus the number of the signal if it was killed.

    Raises:
        ValueError: the machine has GPUs, but fewer than processes.
    """
    import torch
    from joblib import cpu_count
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        raise ValueError(f"{FLAG} {processes}: this machine has {gpus} GPU(s); give at most {gpus}")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // processes)))
    words = ["--standalone", "--nproc-per-node", str(processes), "--module", module]
    arguments = torchrun.get_args_parser().parse_args(words)
    arguments.training_script_args = [*flags]  # not parsed: torchrun would take --run for an abbreviation of its own
    arguments.signals_to_handle = "SIGQUIT"  # torchrun kills processes 30 s after a signal that it handles
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    forward_signals()
    try:
        torchrun.run(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode >= 0 else _describe_kill(rank, -failure.exitcode)
    return 0


def _describe_kill(rank: int, number: int) -> int:
    """Print which signal killed a process, and return the exit status of shells for it."""
    why = " (the machine may be out of memory)" if number == signal.SIGKILL else ""
    name = signal.Signals(number).name
    print(f"error: process {rank} was killed by {name}{why}; see its last lines above", file=sys.stderr, flush=True)
    return 128 + number


def forward_signals() -> None:
    """Send the signals to this process that request a stop on to the processes that it starts.

    Not SIGHUP if `nohup` told this process to ignore it.
    """
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    for number in (signal.SIGINT, *SIGNALS, *([signal.SIGHUP] if hangs_up else [])):
        signal.signal(number, _forward)


def _forward(number: int, frame: FrameType | None) -> None:
    """Send a signal to the processes, which torchrun started in sessions of their own."""
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
