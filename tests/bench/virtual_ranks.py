"""Virtual ranks on one process: peak memory with and without speed.recompute, and the time of a step.

python -m tests.bench.virtual_ranks                    five minutes on one core
python -m tests.bench.virtual_ranks memory 8 true      peak memory of one training, in this process
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from reid.config import Config
from tests.support.fake_device import make_step

IMAGES, ROUNDS = 8, 5
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory returns to the system, so that it is not counted


def make(ranks: int, recompute: bool, height: int) -> Callable[[], object]:
    """Return a training step of ResNet-50 with 8 images on each virtual rank."""
    config = Config()
    config.batch.identities, config.batch.images = 2 * ranks, IMAGES // 2
    config.data.height, config.data.width, config.speed.recompute = height, height // 2, recompute
    step, batch = make_step(config, "cpu", encoder="resnet50", share=ranks)
    return lambda: step.take(0, 0, batch)


def measure_memory(ranks: int, recompute: bool) -> None:
    """Print the peak resident memory of this process in MiB: before the first step, and after two."""
    take = make(ranks, recompute, height=256)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        take()
    print(before // 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def print_memory() -> None:
    print("ResNet-50, 256 x 128, 8 images on each virtual rank, one process, float32 on a CPU.\n")
    print("| virtual ranks | recompute | peak, MiB | of one |\n|---|---|---|---|")
    one = 0
    for ranks, recompute in ((1, False), (8, False), (8, True)):
        command = [sys.executable, "-m", "tests.bench.virtual_ranks", "memory", str(ranks), str(recompute).lower()]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | EXACT).stdout
        before, peak = map(int, said.split()[-2:])
        one = one or peak
        print(f"| {ranks} | {recompute} | {peak:,} ({before:,} before the first step) | {peak / one:.2f} |", flush=True)


def print_time() -> None:
    steps = {recompute: make(4, recompute, height=128) for recompute in (False, True)}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(ROUNDS + 1):
        for recompute, take in steps.items():
            begun = time.perf_counter()
            take()
            if number:  # the first step makes Adam's moments
                seconds[recompute].append(time.perf_counter() - begun)
    plain, again = (statistics.median(seconds[recompute]) for recompute in (False, True))
    print(
        f"\n128 x 64, 4 virtual ranks: {plain:.2f} s a step, with recompute {again:.2f} s: {again / plain:.2f} times."
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:]:
        measure_memory(int(sys.argv[2]), sys.argv[3] == "true")
    else:
        print_memory()
        print_time()
