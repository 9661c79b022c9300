"""Start decoding processes, end them with the program, and report their errors."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing.process import BaseProcess
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, IterableDataset

from reid.data.shard_reader import DamagedData


@dataclass(frozen=True)
class WorkerError:
    """An error that a worker sends to the training process, without the worker's stack trace."""

    message: str


def start_workers(dataset: IterableDataset, workers: int) -> Iterator[Any]:
    """Return the dataset's items, made by `workers` decoding processes, which end with the iterator or the program."""
    others = multiprocessing.active_children()
    parts = iter(
        DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),  # otherwise it draws from the global one
        )
    )
    _started.update(process for process in multiprocessing.active_children() if process not in others)
    _kill_at_exit()
    return parts


_started: WeakSet[BaseProcess] = WeakSet()


@cache
def _kill_at_exit() -> None:
    """Kill the workers when the program ends with an error, which keeps iterators and so their processes alive.

    multiprocessing would send SIGTERM, which they ignore, and wait for ever. The handler registered last runs first.
    """

    def kill() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report that they died
        for process in _started:
            process.kill()

    atexit.register(kill)


def begin_worker() -> None:
    """Prepare a decoding process: one thread, and no reaction to signals.

    Launchers and terminals signal all processes, but the training process needs data to complete its step.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def receive(parts: Iterator[Any]) -> Any:
    """Return the next item of a DataLoader. Raises DamagedData for damage that a worker found."""
    try:
        item = next(parts)
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        # The worker ended before it handed over the memory of a batch. torch's own error, raised by the signal of a
        # child's death, follows at once; wait for it here, so that it is not raised later.
        time.sleep(1)
        raise RuntimeError(f"DataLoader worker is gone: {error or type(error).__name__}") from error
    if isinstance(item, WorkerError):
        raise DamagedData(item.message)
    return item


def explain_killed_worker(error: RuntimeError) -> str | None:
    """Return a message for torch's error about a killed decoding process, None for any other error.

    torch raises it from a signal handler, at any line of the program, so only the outermost lines can catch it.
    """
    if "DataLoader worker" not in str(error):
        return None
    return (
        f"a decoding process was killed ({error}); if the machine ran out of memory, lower data.workers or "
        "data.pool_images"
    )
