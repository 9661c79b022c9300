"""Stop on request: after a signal to any rank, Ctrl-C, a stop file or the end of the launcher, all ranks stop together.

SLURM sends a signal some minutes before it ends or requeues a job; `kill` sends SIGTERM. A launcher that is killed
leaves its processes behind. The current step ends, a checkpoint is written, and the program ends with status STOPPED,
which means that it can be resumed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from reid.distributed import is_distributed, rank
from reid.program import SIGNALS

POLL_S = 1.0  # seconds between two checks for the stop file
TORCHRUN, ACCELERATE = "TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_MODE"  # variables that only these launchers set
NO_LAUNCHER = "the launcher has ended"


def find_launcher() -> int | None:
    """Return the process id of the launcher that started this process, or None for `python train.py`.

    A shell is no launcher and may end before the training.
    """
    return os.getppid() if {TORCHRUN, ACCELERATE} & set(os.environ) else None


LAUNCHER = find_launcher()  # at the import, because a process whose launcher has ended has another parent


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that request a stop. SIGHUP is one unless `nohup` told this process to ignore it.

    torchrun forwards SIGHUP even then, and kills a process that has not ended after 30 s.
    """
    hangs_up = TORCHRUN in os.environ or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return (*SIGNALS, signal.SIGINT, signal.SIGHUP) if hangs_up else (*SIGNALS, signal.SIGINT)


class StopRequest:
    """Collects requests to stop and shares them among ranks. `agreed` is called once a step on every rank.

    Args:
        file: rank 0 checks for it; the run stops when it exists.
        timeout_s: for the answer of the other ranks.
        launcher: process id, or None; the run stops when it has ended.
    """

    def __init__(self, file: Path | None = None, timeout_s: int = 600, launcher: int | None = LAUNCHER) -> None:
        self.reason = ""
        self.launcher = launcher
        self.on_signal: Callable[[str], None] | None = None
        self.file, self.checked = file, -POLL_S
        # A process group on the CPU: its collectives never wait for the device.
        self.group: Any = None
        if is_distributed():
            self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self.pending: tuple[dist.Work, torch.Tensor] | None = None
        if threading.current_thread() is threading.main_thread():
            self.previous_handlers = {number: signal.signal(number, self._handle_signal) for number in stop_signals()}

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        if number == signal.SIGINT:  # a second Ctrl-C ends the program
            signal.signal(number, signal.default_int_handler)
        if self.on_signal is not None:
            self.on_signal(self.reason)

    @contextlib.contextmanager
    def calling_on_signal(self, on_signal: Callable[[str], None]) -> Iterator[None]:
        """Call `on_signal` at once with the name of a signal to rank 0, in a long block without `agreed`."""
        self.on_signal = on_signal if rank() == 0 else None
        try:
            yield
        finally:
            self.on_signal = None

    def agreed(self) -> bool:
        """Return whether any rank had been asked at the last call: one step late, so that no rank waits."""
        self._check_file()
        if self.launcher not in (None, os.getppid()):
            self.reason = self.reason or NO_LAUNCHER
        if self.group is None:
            return bool(self.reason)
        answer = self._answer()
        mine = torch.tensor([int(bool(self.reason))])
        work = dist.all_reduce(mine, dist.ReduceOp.MAX, group=self.group, async_op=True)
        assert work is not None
        self.pending = work, mine
        return answer

    def _answer(self) -> bool:
        if self.pending is None:
            return False
        work, answer = self.pending
        work.wait()
        return bool(answer)

    def _check_file(self) -> None:
        if self.file is None or rank() or time.monotonic() - self.checked < POLL_S:
            return
        self.checked = time.monotonic()
        if not self.reason and self.file.exists():
            self.reason = f"{self.file} exists"

    def close(self) -> None:
        """Wait for the last collective, and restore the signal handlers."""
        self._answer()
        self.restore_handlers()

    def restore_handlers(self) -> None:
        for number, handler in getattr(self, "previous_handlers", {}).items():
            signal.signal(number, handler)
