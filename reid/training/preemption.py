"""Stopping on request: a signal to any rank, or a stop file, and all ranks stop at the same step.

SLURM sends a signal some minutes before it ends or requeues a job; `kill` sends SIGTERM. The step under way ends, a
checkpoint is written, and the program ends with STOPPED, so that whoever started it knows that it wants to go on.
"""

from __future__ import annotations

import contextlib
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

POLL_S = 1.0  # seconds between two looks for the stop file


class StopRequest:
    """Whether somebody asked this run to stop. `agreed` is called once a step on every rank."""

    def __init__(self, file: Path | None = None, timeout_s: int = 600) -> None:
        """file: rank 0 looks for it; where it exists the run stops. timeout_s: for the others' answer."""
        self.reason = ""
        self.tell: Callable[[str], None] | None = None
        self.file, self.looked = file, -POLL_S
        # A group of its own, on the CPU: asking then never waits for the device.
        self.group: Any = None
        if is_distributed():
            self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self.asked: tuple[dist.Work, torch.Tensor] | None = None
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        if self.tell is not None:
            self.tell(self.reason)

    @contextlib.contextmanager
    def telling(self, tell: Callable[[str], None]) -> Iterator[None]:
        """While the block runs, which asks nobody for long, a signal to rank 0 calls `tell` with its name at once."""
        self.tell = tell if rank() == 0 else None
        try:
            yield
        finally:
            self.tell = None

    def agreed(self) -> bool:
        """Whether any rank had been asked by the last call: one step late, for an answer that nobody waits for."""
        self._look()
        if self.group is None:
            return bool(self.reason)
        answer = self._answer()
        mine = torch.tensor([int(bool(self.reason))])
        work = dist.all_reduce(mine, dist.ReduceOp.MAX, group=self.group, async_op=True)
        assert work is not None
        self.asked = work, mine
        return answer

    def _answer(self) -> bool:
        if self.asked is None:
            return False
        work, answer = self.asked
        work.wait()
        return bool(answer)

    def _look(self) -> None:
        if self.file is None or rank() or time.monotonic() - self.looked < POLL_S:
            return
        self.looked = time.monotonic()
        if not self.reason and self.file.exists():
            self.reason = f"{self.file} exists"

    def close(self) -> None:
        """Let the last question end, and give the signals back."""
        self._answer()
        for number, handler in getattr(self, "before", {}).items():
            signal.signal(number, handler)
