"""Packing many shards, in this process or in several: the same bytes either way, numbered when all are there."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from shards.dealing import Layout
from shards.images import Encoding
from shards.pack import Group, Packed, pack_shard

OnImages = Callable[[int], object]  # called with a number of images that are done


@dataclass(frozen=True)
class _Job:
    path: Path
    groups: list[Group]
    root: Path
    encoding: Encoding | None


def write_shards(
    layout: Layout, root: Path, folder: Path, encoding: Encoding | None, workers: int, progress: bool
) -> dict[str, list[Packed]]:
    """Write the layout's shards into `folder` as <split>-<nnnn>.tar; returns what went into each, in order.

    A shard without a readable image leaves no file and no gap in the numbers. workers > 1: that many processes.
    ValueError when one of them is killed; otherwise whatever stopped one of them.
    """
    jobs = {
        split: [
            _Job(folder / f"{split}-{number:04d}.part", groups, root, encoding) for number, groups in enumerate(many)
        ]
        for split, many in layout.shards.items()
    }
    total = sum(len(group.records) for many in jobs.values() for job in many for group in job.groups)
    plain = progress and not sys.stderr.isatty()
    packed: dict[str, list[Packed]] = {}
    workers = min(workers, max(map(len, jobs.values()), default=1))
    with (
        tqdm(total=total, desc="building", unit="image", disable=plain or not progress) as bar,
        _packer(workers) as run,
    ):
        for split, many in jobs.items():
            packed[split] = _number(run(many, bar.update), split, folder)
            if plain:
                images = sum(sum(done.images) for done in packed[split])
                print(f"{split}: {images} images in {len(many)} shards written", file=sys.stderr, flush=True)
    return packed


def _number(parts: list[Packed], split: str, folder: Path) -> list[Packed]:
    """Give the shards that hold anything their final names."""
    number = 0
    for part in parts:
        if part.shard is not None:
            name = f"{split}-{number:04d}.tar"
            (folder / part.shard.name).rename(folder / name)
            part.shard = replace(part.shard, name=name)
            number += 1
    return parts


@contextmanager
def _packer(workers: int) -> Iterator[Callable[[list[_Job], OnImages], list[Packed]]]:
    """A function that packs jobs and returns their results in order."""
    if workers == 1:
        yield lambda jobs, on_images: [
            pack_shard(job.path, job.groups, job.root, lambda: on_images(1), job.encoding) for job in jobs
        ]
        return
    # spawn: a forked child would inherit whatever threads and locks the caller's libraries hold
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(os.getpid(),))
    try:
        yield lambda jobs, on_images: _pack_in(pool, jobs, on_images)
    except BrokenProcessPool as error:
        raise ValueError(
            "a worker process was killed, perhaps for want of memory; nothing was built. Build with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _pack_in(pool: ProcessPoolExecutor, jobs: list[_Job], on_images: OnImages) -> list[Packed]:
    results = []
    for job, packed in zip(jobs, pool.map(_pack, jobs), strict=True):
        on_images(sum(len(group.records) for group in job.groups))
        results.append(packed)
    return results


_parent = 0


def _begin_worker(parent: int) -> None:
    global _parent
    _parent = parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides


def _pack(job: _Job) -> Packed:
    if os.getppid() != _parent:  # the builder was killed: its successor may already be writing in this folder
        os._exit(1)
    return pack_shard(job.path, job.groups, job.root, lambda: None, job.encoding)
