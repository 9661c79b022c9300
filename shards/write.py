"""Writing of shards: many at once, in one process or several, with the same bytes; and errors of a full disk."""

import errno
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import starmap
from pathlib import Path

from tqdm import tqdm

from shards.boxes import Cropping
from shards.dealing import Layout
from shards.images import Encoding
from shards.pack import Group, Packed, pack_shard

_Job = tuple[Path, list[Group], Path, Encoding | None, Cropping]  # arguments of pack_shard


def write_shards(
    layout: Layout,
    root: Path,
    folder: Path,
    encoding: Encoding | None,
    cropping: Cropping,
    workers: int,
    progress: bool,
) -> dict[str, list[Packed]]:
    """Write the layout's shards into `folder` as <split>-<nnnn>.tar, with `workers` processes.

    Returns:
        What went into each shard, in order, per split. A shard without a readable image has no file and no number.

    Raises:
        ValueError: a worker process was killed.
    """
    plain = progress and not sys.stderr.isatty()
    total = sum(len(group.records) for shards in layout.values() for groups in shards for group in groups)
    bar = tqdm(total=total, desc="building", unit="image", disable=plain or not progress)
    packed: dict[str, list[Packed]] = {}
    workers = min(workers, max(map(len, layout.values()), default=1))
    with bar, _packer(workers) as pack:
        for split, shards in layout.items():
            packed[split], number = [], 0
            paths = (folder / f"{split}-{i:04d}.part" for i in range(len(shards)))
            parts = pack((path, groups, root, encoding, cropping) for path, groups in zip(paths, shards, strict=True))
            for groups, done in zip(shards, parts, strict=True):
                bar.update(sum(len(group.records) for group in groups))
                if done.shard is not None:
                    name = f"{split}-{number:04d}.tar"
                    (folder / done.shard.name).rename(folder / name)
                    done.shard, number = replace(done.shard, name=name), number + 1
                packed[split].append(done)
            if plain:
                images = sum(done.shard.images for done in packed[split] if done.shard)
                print(f"{split}: {images} images in {number} shards written", file=sys.stderr, flush=True)
    return packed


@contextmanager
def _packer(workers: int) -> Iterator[Callable[[Iterable[_Job]], Iterator[Packed]]]:
    """Yield a function that packs jobs and yields their results in order."""
    if workers == 1:
        yield lambda jobs: starmap(pack_shard, jobs)
        return
    # spawn: a forked child inherits the threads and locks of the caller's libraries
    context = multiprocessing.get_context("spawn")
    # Ctrl-C reaches all processes; the parent ends the workers
    pool = ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield lambda jobs: pool.map(partial(_pack_in_worker, os.getpid()), jobs)
    except BrokenProcessPool as error:
        raise ValueError(
            "a worker process was killed, perhaps for lack of memory; nothing was built. Build with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _pack_in_worker(parent: int, job: _Job) -> Packed:
    if os.getppid() != parent:  # the builder was killed, and the next one may already write into this folder
        os._exit(1)
    return pack_shard(*job)


def check_free_space(folder: Path, needed: int, fix: str) -> None:
    """Raise ValueError if fewer than `needed` bytes are free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        sizes = f"{needed / 2**20:,.1f} MiB are needed, {free / 2**20:,.1f} MiB are free"
        raise ValueError(f"{folder}: no space left: {sizes}; {fix}")


@contextmanager
def explain_full_disk(folder: Path, fix: str) -> Iterator[None]:
    """Raise ValueError with the fix instead of an OSError about a full disk or quota."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(f"{folder}: no space left ({error.strerror}); {fix}") from error
