"""Start decoding processes, end them with the program, and report their errors."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from reid.config.schema import AUTO
from reid.data.shard_reader import DamagedData
from reid.data.transfer import map_leaves

SHARED_MEMORY = "/dev/shm"
SMALL_BYTES = 65_536
AHEAD = 4  # batches that a worker prepares
LITTLE_BYTES = 1 << 26  # of shared memory: what a container has by default


def count_workers(wanted: int | str, most: int) -> int:
    """Return the number of decoding processes of this rank.

    Args:
        wanted: `data.workers`; auto is this rank's share of the CPUs that it may use, by its affinity and the quota of
            its container, less one for itself, but at least 1.
        most: parts that they share.
    """
    if wanted == AUTO:
        from joblib import cpu_count

        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of this machine, by the launcher
        wanted = max(1, cpu_count() // ranks - 1)
    return min(int(wanted), most)


class _Items(IterableDataset):
    """The items that one worker reads. An error is the last item: raised here, it would bring its stack trace along."""

    def __init__(self, read: Callable[[int, int], Iterator[Any]]) -> None:
        self.read = read

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        try:
            if worker is None:
                yield from self.read(0, 1)
            else:
                for item in self.read(worker.id, worker.num_workers):
                    yield map_leaves(item, Tensor, _hand_over)
        except (ValueError, OSError) as error:
            yield DamagedData(str(error))


def _hand_over(tensor: Tensor) -> Tensor | np.ndarray:
    """Return what the queue sends for a tensor: an array by value if it is small, otherwise shared memory.

    Each tensor in shared memory costs a file handle and about 0.3 ms. It is shared here, because the queue's own thread
    would lose the item if the memory is full.
    """
    return tensor.numpy() if tensor.nbytes <= SMALL_BYTES else tensor.share_memory_()


def start_workers(read: Callable[[int, int], Iterator[Any]], workers: int) -> Iterator[Any]:
    """Return the items of read(worker, number of workers) of all workers in turn, to be taken by `receive`.

    The workers are decoding processes, which end with the iterator or the program. With 0, this process reads.
    """
    if not workers:
        return iter(_Items(read))
    others = multiprocessing.active_children()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than CPUs wait for each other
        parts = iter(
            DataLoader(
                _Items(read),
                batch_size=None,
                num_workers=workers,
                prefetch_factor=AHEAD,
                worker_init_fn=_ignore_signals,
                generator=torch.Generator(),  # otherwise it draws from the global one
            )
        )
    _started.update(process for process in multiprocessing.active_children() if process not in others)
    return map(_take_over, parts)


def _take_over(item: Any) -> Any:
    return map_leaves(item, np.ndarray, torch.from_numpy)


_started: WeakSet[BaseProcess] = WeakSet()


@atexit.register  # after the import of torch, which registers multiprocessing's handler: the last one runs first
def _kill_workers() -> None:
    """Kill the workers when the program ends with an error, which keeps iterators and so their processes alive.

    multiprocessing would send SIGTERM, which they ignore, and wait forever.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report that they died
    for process in _started:
        process.kill()


def _ignore_signals(worker: int) -> None:
    """Launchers and terminals signal all processes, but the training process needs data to complete its step."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
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
    if isinstance(item, DamagedData):
        raise DamagedData(str(item))
    return item


def describe_full_memory(needed: int = 0) -> str:
    """Return an error for shared memory that is too small for the images of decoding processes.

    Args:
        needed: bytes that they need in it; 0 = unknown.
    """
    usage = shutil.disk_usage(SHARED_MEMORY)
    need = f"need {needed / 2**20:,.1f} MiB of it and " if needed else ""
    return (
        f"{SHARED_MEMORY} (shared memory, {usage.free / 2**20:,.1f} of {usage.total / 2**20:,.1f} MiB free) is too "
        f"small: decoding processes {need}hand over images in it; set data.workers=0 (--workers=0), which needs none, "
        "lower data.workers, or enlarge it (docker run --shm-size=8g)"
    )


def explain_killed_worker(error: RuntimeError) -> str | None:
    """Return a message for torch's error about a lost decoding process, None for any other error.

    torch raises it from a signal handler, at any line of the program, so only the outermost lines can catch it.
    """
    text = str(error).strip()
    if "DataLoader worker" not in text:
        return None
    if "No space left" in text or "Bus error" in text:
        return describe_full_memory()
    if text.startswith("Caught ") and "MemoryError" not in text:
        return None  # an error of the program: its stack trace is shown
    killed = f"a decoding process was killed ({text.splitlines()[-1]}); "
    if shutil.disk_usage(SHARED_MEMORY).free < LITTLE_BYTES:
        return f"{killed}{describe_full_memory()}"
    return f"{killed}if the machine ran out of memory, lower data.workers or data.pool_images"
