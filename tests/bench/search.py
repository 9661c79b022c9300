"""Time and memory of an index: made, opened, appended to and searched, with random features.

python -m tests.bench.search            100,000 entries of 2,048 numbers (0.8 GB in the temporary folder)
python -m tests.bench.search --large    a million (9.3 GB)
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from reid.search.index import Entry, Index
from reid.search.index_files import Meta, Source
from reid.search.writer import append, create

DIM, IMAGES_EACH, BLOCK = 2048, 20, 4096
SOURCE = Source("/photos")


def fill(path: Path, size: int, rng: np.random.Generator) -> None:
    with create(path, Meta("0" * 64, DIM, (256, 128))) as appender:
        for begin in range(0, size, BLOCK):
            rows = range(begin, min(begin + BLOCK, size))
            names = [f"p{row // IMAGES_EACH}" for row in rows]  # one after another, as a folder or shards list them
            entries = [
                Entry(f"{name}/{row}.jpg", name, f"c{row % 6}", source=SOURCE)
                for row, name in zip(rows, names, strict=True)
            ]
            appender.add(rng.standard_normal((len(rows), DIM), dtype=np.float32), entries)


def add_some(path: Path, rng: np.random.Generator) -> None:
    with append(path) as appender:
        entries = [Entry(f"new/{i}.jpg", "new", source=SOURCE) for i in range(64)]
        appender.add(rng.standard_normal((64, DIM), dtype=np.float32), entries)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--large", action="store_true")
    size = 1_000_000 if parser.parse_args().large else 100_000
    rng = np.random.default_rng(0)

    def show(what: str, action: Callable[[], object]) -> None:
        begin = time.perf_counter()
        action()
        print(f"| {what} | {time.perf_counter() - begin:.2f} |", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        print(f"\n{size:,} entries x {DIM} numbers, {size // IMAGES_EACH:,} identities\n\n| | seconds |\n|---|---|")
        show("make", lambda: fill(path, size, rng))
        show("append 64", lambda: add_some(path, rng))
        show("open", lambda: Index(path))
        index = Index(path)
        for queries in (1, 1, 10, 100):
            asked = rng.standard_normal((queries, DIM), dtype=np.float32)
            show(f"{queries} against images", lambda asked=asked: index.search(asked, 10))  # type: ignore[misc]
        for _ in range(2):
            show("1 against centroids", lambda: index.search(asked[:1], 10, "centroids"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\npeak memory {peak:.1f} GiB, pages of the mapped file among it")


if __name__ == "__main__":
    main()
