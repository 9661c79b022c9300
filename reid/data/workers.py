"""Decoding processes: started, ended with the program, and heard when they fail."""

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
    """An error on its way from a worker to the training process, without a worker's stack trace around it."""

    message: str


def start_workers(dataset: IterableDataset, workers: int) -> Iterator[Any]:
    """The dataset's items, made by so many decoding processes, which end with the iterator or with the program."""
    others = multiprocessing.active_children()
    parts = iter(
        DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),  # or it would take a number from the global one
        )
    )
    _started.update(process for process in multiprocessing.active_children() if process not in others)
    _kill_at_exit()
    return parts


_started: WeakSet[BaseProcess] = WeakSet()


@cache
def _kill_at_exit() -> None:
    """An error that ends the program keeps iterators alive, and so their processes. multiprocessing then sends SIGTERM,
    which they ignore, and waits for them for ever; what is registered last comes first."""

    def kill() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report their death
        for process in _started:
            process.kill()

    atexit.register(kill)


def begin_worker() -> None:
    """A decoding process uses one thread and leaves signals to the process that it serves: launchers and terminals send
    them to all, and the training could not end its step without data."""
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def receive(parts: Iterator[Any]) -> Any:
    """The next item of a DataLoader. DamagedData for damage that a worker met."""
    try:
        item = next(parts)
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        # A batch lies in memory that its worker hands over by a socket, if it is still there to do so.
        time.sleep(1)  # torch's own error, by the signal of a child's death, follows at once: here, and not later
        raise RuntimeError(f"DataLoader worker is gone: {error or type(error).__name__}") from error
    if isinstance(item, WorkerError):
        raise DamagedData(item.message)
    return item


def explain_killed_worker(error: RuntimeError) -> str | None:
    """What to say about an error with which torch reports that a decoding process died; None for any other error.

    torch raises it from a signal handler, at whatever line the program is: only the program's outermost lines can
    catch it.
    """
    if "DataLoader worker" not in str(error):
        return None
    return (
        f"a decoding process was killed ({error}); if the machine ran out of memory, lower data.workers or "
        "data.pool_images"
    )
