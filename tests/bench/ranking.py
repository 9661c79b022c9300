"""Time and memory of ranking and re-ranking beside the bare matrix product and the algorithms of other evaluators.

python -m tests.bench.ranking            prints Markdown tables; under four minutes on two idle cores
python -m tests.bench.ranking --device cuda    on a GPU
python -m tests.bench.ranking --large    a gallery of 10 million streamed from a file of 10 GB, deleted at the end

Every part runs in a process of its own, so that its peak memory is its own; ratios are medians over rounds in which
both sides run one after the other.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reid.metrics import scores, top_k
from reid.metrics.features import Features
from reid.metrics.rerank import Reranked
from reid.metrics.retrieval import evaluate, evaluate_search

MARKET = 3368, 15_913, 751  # queries, gallery, identities
MSMT17 = 11_659, 82_161, 3060
LATENT = 64  # what trained features mostly vary in
ROUNDS = 3
LARGE, LARGE_DIM, LARGE_QUERIES = 10_000_000, 256, 512
LARGE_IDENTITIES = 250_000  # 40 images each
GB = 1e9


def make_split(size: int, identities: int, dim: int, trained: bool, seed: int, centres_seed: int = 0) -> Features:
    """Random features, or trained-like ones: noise around a centre per identity, matches near the top."""
    generator = torch.Generator().manual_seed(seed)
    pids, cameras = torch.arange(size) % identities, torch.randint(0, 6, (size,), generator=generator)
    if not trained:
        return Features(torch.randn(size, dim, generator=generator), pids, cameras)
    shared = torch.Generator().manual_seed(centres_seed)
    centres = torch.randn(identities, LATENT, generator=shared)
    mix = torch.randn(LATENT, dim, generator=shared) / LATENT**0.5
    latent = centres[pids] + 0.95 * torch.randn(size, LATENT, generator=generator)
    return Features(latent @ mix, pids, cameras)


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def move(features: Features, device: str) -> Features:
    return Features(features.embeddings.to(device), features.pids, features.camids)


class PeakMemory:
    """Peak of this process's own memory (RssAnon: pages of mapped files, which the system may drop, do not count) over
    what it was at the start, in bytes, read every 5 ms."""

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = self._read()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def extra(self) -> int:
        return self.peak - self.start

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, self._read())

    @staticmethod
    def _read() -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return 1024 * int(line.split()[1])
        raise RuntimeError("/proc/self/status has no RssAnon; this bench needs Linux")


def multiply(query: Tensor, gallery: Tensor) -> None:
    """The bare product, in the blocks that ranking uses; every score is computed and dropped."""
    vectors = scores.Vectors(gallery)
    for part in scores.cut(len(gallery)):
        for i in range(0, len(query), scores.PRODUCT_ROWS):
            vectors.scores(query[i : i + scores.PRODUCT_ROWS], part)


def multiply_all(query: Tensor, gallery: Tensor) -> None:
    nodes = torch.cat([query, gallery])
    multiply(nodes, nodes)


def sort_each_query(query: Features, gallery: Features) -> float:
    """Return mAP as the evaluators of torchreid and fast-reid compute it: the full matrix, then query after query an
    argsort of its row, the removal of its identity's images by its camera, and cumulative sums."""
    distances = (1 - F.normalize(query.embeddings) @ F.normalize(gallery.embeddings).T).cpu().numpy()
    pids, cameras = gallery.pids.cpu().numpy(), gallery.camids.cpu().numpy()
    precisions = []
    for row, pid, camera in zip(distances, query.pids.tolist(), query.camids.tolist(), strict=True):
        order = np.argsort(row)
        kept = order[(pids[order] != pid) | (cameras[order] != camera)]
        match = pids[kept] == pid
        if match.any():
            precision = match.cumsum() / np.arange(1, len(match) + 1)
            precisions.append(precision[match].mean())
    return float(np.mean(precisions))


def sort_all_queries(query: Features, gallery: Features) -> float:
    """Return mAP from the full matrix and its full argsort, all queries together in torch."""
    distances = 1 - F.normalize(query.embeddings) @ F.normalize(gallery.embeddings).T
    order = distances.argsort(dim=1)
    match = gallery.pids[order] == query.pids[:, None]
    kept = ~match | (gallery.camids[order] != query.camids[:, None])
    match &= kept
    precision = match.cumsum(1) / kept.cumsum(1).clamp(min=1)
    number = match.sum(1)
    return float(((precision * match).sum(1) / number)[number > 0].mean())


def multiply_at_once(query: Features, gallery: Features) -> None:
    query.embeddings @ gallery.embeddings.T


OTHERS: dict[str, Callable[[Features, Features], float | None]] = {
    "product without blocks": multiply_at_once,
    "argsort of each query": sort_each_query,
    "argsort of the full matrix": sort_all_queries,
}


def beside_the_product(
    queries: int, entries: int, identities: int, dim: int, trained: bool, rounds: int, device: str, others: bool
) -> dict:
    """With `others`, the algorithms of OTHERS are timed as well."""
    query = move(make_split(queries, identities, dim, trained, seed=1), device)
    gallery = move(make_split(entries, identities, dim, trained, seed=2), device)
    found: dict[str, list[float]] = {"product": [], "evaluate": [], "top_k": []}
    results: list[float] = []
    multiply(query.embeddings[:256], gallery.embeddings)  # the first pass over fresh memory is slow
    extra = 0
    for _ in range(rounds):
        with PeakMemory() as memory:
            product = seconds(lambda: multiply(query.embeddings, gallery.embeddings))
            found["product"].append(product)
            found["evaluate"].append(seconds(lambda: results.append(evaluate(query, gallery).mAP)) / product)
            found["top_k"].append(seconds(lambda: top_k(query, gallery, 50)) / product)
        extra = max(extra, memory.extra)
        for name, other in OTHERS.items() if others else ():
            start = time.perf_counter()
            mean_precision = other(query, gallery)
            found.setdefault(name, []).append((time.perf_counter() - start) / product)
            assert mean_precision is None or abs(mean_precision - results[-1]) < 1e-4, name
    medians = {name: statistics.median(values) for name, values in found.items()}
    medians["ns"] = 1e9 * medians["evaluate"] * medians["product"] / (queries * entries)
    return medians | {"memory": extra, "mAP": results[-1]}


def dense_classic(query: Tensor, gallery: Tensor, k1: int = 20, k2: int = 6, lambda_: float = 0.3) -> np.ndarray:
    """Re-ranking as it is commonly written: N x N arrays of float32, one node after another in numpy."""
    nodes = torch.nn.functional.normalize(torch.cat([query, gallery])).numpy()
    distances = np.maximum(2 - 2 * nodes @ nodes.T, 0)
    distances /= distances.max(axis=1, keepdims=True)
    nearest = np.argsort(distances, axis=1)
    weights = np.zeros_like(distances)

    def reciprocal(i: int, k: int) -> np.ndarray:
        near = nearest[i, : k + 1]
        return near[(nearest[near, : k + 1] == i).any(1)]

    for i in range(len(nodes)):
        base = reciprocal(i, k1)
        members = [base]
        for j in base:
            other = reciprocal(j, round(k1 / 2))
            if np.isin(other, base).sum() > 2 / 3 * len(other):
                members.append(other)
        columns = np.unique(np.concatenate(members))
        weight = np.exp(-distances[i, columns])
        weights[i, columns] = weight / weight.sum()
    weights = np.stack([weights[near].mean(0) for near in nearest[:, :k2]])
    rows_of = [np.flatnonzero(column) for column in weights[len(query) :].T]
    final = lambda_ * distances[: len(query), len(query) :]
    for i in range(len(query)):
        shared = np.zeros(len(gallery), np.float32)
        for column in np.flatnonzero(weights[i]):
            rows = rows_of[column]
            shared[rows] += np.minimum(weights[i, column], weights[len(query) + rows, column])
        final[i] += (1 - lambda_) * (1 - shared / (2 - shared))
    return final


def rerank(queries: int, entries: int, identities: int, how: str, device: str = "cpu") -> dict:
    query, gallery = (
        move(make_split(n, identities, 2048, True, seed), device) for n, seed in ((queries, 1), (entries, 2))
    )
    multiply(query.embeddings[:256], gallery.embeddings)  # the first pass over fresh memory is slow
    product = seconds(lambda: multiply_all(query.embeddings, gallery.embeddings))
    with PeakMemory() as memory:
        if how == "dense":
            took = seconds(lambda: dense_classic(query.embeddings, gallery.embeddings))
        else:
            took = seconds(lambda: evaluate_search(Reranked(query, gallery)))
    return {"seconds": took, "product": product, "memory": memory.extra}


def stream(folder: str) -> dict:
    """Write the file in blocks of one image per identity, then rank it through a read-only memory map."""
    path = Path(folder) / "gallery.npy"
    file = np.lib.format.open_memmap(path, "w+", np.float32, (LARGE, LARGE_DIM))
    for i in range(0, LARGE, LARGE_IDENTITIES):
        file[i : i + LARGE_IDENTITIES] = make_split(
            LARGE_IDENTITIES, LARGE_IDENTITIES, LARGE_DIM, True, i + 1
        ).embeddings
    file.flush()
    del file
    pids, camids = torch.arange(LARGE) % LARGE_IDENTITIES, torch.arange(LARGE) // LARGE_IDENTITIES % 6
    query = make_split(LARGE_QUERIES, LARGE_IDENTITIES, LARGE_DIM, True, seed=LARGE)
    product = seconds(lambda: multiply(query.embeddings, open_cold(path)))
    with PeakMemory() as memory:
        took = seconds(lambda: evaluate(query, Features(open_cold(path), pids, camids)))
    return {"seconds": took, "product": product, "memory": memory.extra}


def open_cold(path: Path) -> Tensor:
    """A memory map of the file, which the system is asked to drop from its cache first."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns that a read-only array must not be written to
        return torch.from_numpy(np.load(path, mmap_mode="r"))


def alone(function: Callable[..., dict], *arguments: object) -> dict:
    """Run in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def print_ranking(device: str) -> list[dict]:
    print("`image` ranking (cosine, D = 2,048), times over the bare product with the same blocks:\n")
    print(
        "| size | features | mAP | product, s | evaluate | top_k (k = 50) | evaluate, ns a score | extra memory, MB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    queries, entries, identities = MARKET
    for trained in (True, False):
        found = alone(beside_the_product, queries, entries, identities, 2048, trained, ROUNDS, device, trained)
        kind = "trained-like" if trained else "random"
        rows.append(print_row(f"Market-1501, {queries:,} x {entries:,}", kind, found))
    entries, identities = MSMT17[1:]
    sizes = ((256, entries, ROUNDS), (512, entries, ROUNDS), (512, entries // 2, ROUNDS), (4096, entries, 1))
    for queries, gallery_size, rounds in sizes:
        others = (queries, gallery_size) == (512, entries)
        found = alone(beside_the_product, queries, gallery_size, identities, 2048, True, rounds, device, others)
        size = f"MSMT17, {queries:,} of {MSMT17[0]:,} queries x {gallery_size:,}"
        rows.append(print_row(size, "trained-like", found))
    took = found["product"] * found["evaluate"]  # a whole reading of the gallery, ranking.QUERY_BLOCK queries
    whole = took * MSMT17[0] / queries
    print(f"\nMSMT17's {MSMT17[0]:,} queries, projected from {queries:,} in {took:.1f} s: {whole:.1f} s")
    print("\nOther algorithms, in the same runs, times over the same product:\n")
    print(f"| size | evaluate | {' | '.join(OTHERS)} |")
    print("|---|---|" + "---|" * len(OTHERS))
    for row in rows:
        if OTHERS.keys() <= row.keys():
            print(f"| {row['size']} | {' | '.join(f'{row[name]:.2f}' for name in ('evaluate', *OTHERS))} |")
    return rows


def print_row(size: str, kind: str, found: dict) -> dict:
    ratios = f"{found['evaluate']:.2f} | {found['top_k']:.2f} | {found['ns']:.1f}"
    print(f"| {size} | {kind} | {found['mAP']:.3f} | {found['product']:.3g} | {ratios} | {found['memory'] / 1e6:.0f} |")
    return {"size": size, "features": kind, **found}


def rank_one_identity(queries: int, equal: bool, device: str) -> dict:
    """Rank a gallery of which 100,000 images are the identity of all queries, with different or with equal features."""
    query, gallery = (
        move(make_split(size, 1, 512, False, seed), device) for size, seed in ((queries, 1), (120_000, 2))
    )
    gallery.pids[100_000:] = 1 + torch.arange(20_000) % 1000
    for split in (query, gallery) if equal else ():
        split.embeddings.fill_(1)
    evaluate(query.take(slice(0, 1)), gallery, partial=True)  # the first pass over fresh memory is slow
    return {"seconds": statistics.median(seconds(lambda: evaluate(query, gallery)) for _ in range(ROUNDS))}


def print_one_identity(device: str) -> None:
    print("\n100,000 of 120,000 images are of one identity, D = 512:\n")
    print("| queries | features | seconds |")
    print("|---|---|---|")
    for queries in (1, 32):
        for kind in ("random", "equal"):
            found = alone(rank_one_identity, queries, kind == "equal", device)
            print(f"| {queries} | {kind} | {found['seconds']:.2f} |")


def print_reranking(device: str) -> list[dict]:
    print("\nk-reciprocal re-ranking (k1 20, k2 6), trained-like, D = 2,048; product: all nodes with all nodes:\n")
    print("| size | implementation | seconds | over the product | extra memory, MB | N x N float32, MB |")
    print("|---|---|---|---|---|---|")
    rows = []
    sizes = ((1000, 4000, "dense"), (1000, 4000, "sparse"), (*MARKET[:2], "sparse"))
    for queries, entries, how in sizes if device == "cpu" else sizes[1:]:
        found = alone(rerank, queries, entries, entries // 21, how, device)
        ratio = found["seconds"] / found["product"]
        print(
            f"| {queries:,} + {entries:,} | {how} | {found['seconds']:.1f} | {ratio:.2f} | "
            f"{found['memory'] / 1e6:.0f} | {4 * (queries + entries) ** 2 / 1e6:.0f} |"
        )
        rows.append({"queries": queries, "entries": entries, "how": how, **found})
    return rows


def print_large() -> None:
    need = 4 * LARGE * LARGE_DIM
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < 1.5 * need:
        raise SystemExit(f"{tempfile.gettempdir()} has {free / GB:.0f} GB free; --large needs {1.5 * need / GB:.0f}")
    with tempfile.TemporaryDirectory() as folder:
        found = alone(stream, folder)
    print(f"{LARGE_QUERIES} queries x {LARGE:,} entries of D = {LARGE_DIM}, a file of {need / GB:.1f} GB, `image`:\n")
    print("| seconds | over the product from the same file | extra memory, MB |")
    print("|---|---|---|")
    print(f"| {found['seconds']:.0f} | {found['seconds'] / found['product']:.2f} | {found['memory'] / 1e6:.0f} |\n")
    queries, flops, counted_per_s, bandwidth = 100_000, 20e12, 1e9, 2e9
    scores = queries / 8 * LARGE
    print(
        f"Projection, measured on no GPU, for {queries:,} queries on 8 GPUs, each with an eighth of them and the whole "
        f"gallery in its memory: {need / bandwidth:.0f} s to load it at {bandwidth / GB:.0f} GB/s, "
        f"{2 * scores * LARGE_DIM / flops:.0f} s of products at {flops / 1e12:.0f} TFLOP/s of float32, "
        f"{scores / counted_per_s:.0f} s of counting ranks at {counted_per_s:.0e} scores a second."
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--large", action="store_true", help="10 million entries from disk instead of the tables")
    parser.add_argument("--device", default="cpu", help="where features lie")
    options = parser.parse_args()
    print(f"{options.device}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, float32.\n")
    if options.large:
        print_large()
        return
    print_ranking(options.device)
    print_one_identity(options.device)
    print_reranking(options.device)


if __name__ == "__main__":
    main()
