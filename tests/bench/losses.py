"""Time and bytes of the losses on gloo ranks, beside gathering all features, the loop over rounds and a ResNet-50 step.

python -m tests.bench.losses          prints Markdown tables; a few minutes on two cores
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from reid.config import LossConfig
from reid.data.layout import build_layout
from reid.losses import centroid, triplet
from reid.losses.anchors import find_anchors
from reid.losses.gather import find_global_batch
from reid.losses.objective import Objective
from tests.support.batches import KnownSums
from tests.support.models import make_model
from tests.support.pool import Pool

P, K, DIM = 16, 4, 2048
REPEATS = 7
BANDWIDTH, LATENCY = 25e9, 20e-6  # assumed for the projection: bytes a second and seconds a collective, each way


def make_batch(rank: int) -> tuple[Tensor, Tensor]:
    """P x K features of norm about 24 with identities that no other rank has."""
    generator = torch.Generator().manual_seed(rank)
    features = torch.randn(P * K, DIM, generator=generator) * 24 / DIM**0.5
    return features, torch.arange(P).repeat_interleave(K) + P * rank


def whole_objective(features: Tensor, pids: Tensor) -> Tensor:
    """Centroid gather and every loss of the recipe, forward and backward, with the update of the centers."""
    objective = Objective(LossConfig(), 1000, DIM)
    logits = features[:, :1000]
    losses = objective(features, features, logits, pids)
    losses.total.backward()
    objective.update_centers(losses)
    return losses.total


def mctl_from_all_features(features: Tensor, pids: Tensor) -> Tensor:
    """MCTL as one would first write it: gather every feature, then sum them up."""
    batch = find_global_batch(features, pids, shares_images=True)
    anchors = find_anchors(batch, centroids="raw")["centroids"]
    loss = centroid.modified_centroid_triplet_of(anchors, w1=0.1, margin=5.0)
    loss.backward()
    return loss


def mctl(features: Tensor, pids: Tensor) -> Tensor:
    loss = centroid.modified_centroid_triplet(features, pids, margin=5.0)
    loss.backward()
    return loss


def rounds(features: Tensor, pids: Tensor) -> Tensor:
    loss = centroid.centroid_triplet(features, pids, reading="rounds")
    loss.backward()
    return loss


def rounds_loop(features: Tensor, pids: Tensor) -> Tensor:
    """The K rounds one after another, with a Python loop over identities, as published code does; one rank alone."""
    total = features.new_zeros(())
    for i in range(K):
        queries, centroids, labels = [], [], []
        for pid in pids.unique().tolist():
            own = (pids == pid).nonzero().flatten()
            queries.append(features[own[i]])
            centroids.append(features[own[torch.arange(K) != i]].mean(dim=0))
            labels.append(pid)
        both = torch.stack(queries + centroids)
        total = total + triplet.batch_hard_triplet(both, torch.tensor(labels * 2), 0.5) / K
    total.backward()
    return total


def measure(function: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, int]:
    """Median seconds of a call on this rank, and floats that this rank puts into collectives."""
    sent = _count_sent()
    features, pids = make_batch(dist.get_rank() if dist.is_initialized() else 0)
    times = []
    for _ in range(REPEATS):
        own = features.clone().requires_grad_()
        if dist.is_initialized():
            dist.barrier()
        sent.clear()
        start = time.perf_counter()
        function(own, pids)
        times.append(time.perf_counter() - start)
    return statistics.median(times), sum(sent)


def _count_sent() -> list[int]:
    """Record the number of elements of every tensor that a collective takes in."""
    sent: list[int] = []
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce"):
        original = getattr(dist, name)
        original = getattr(original, "counted", original)

        def counting(*args, _original=original, _in_place=name == "all_reduce", **kwargs):
            sent.append(args[0 if _in_place else 1].numel())
            return _original(*args, **kwargs)

        counting.counted = original  # type: ignore[attr-defined]
        setattr(dist, name, counting)
    return sent


def resnet50_step(images: int = 8) -> float:
    """Seconds of a training step of ResNet-50 (256x128, last stride 1) for P x K images, from a batch of `images`."""
    model = make_model(751, "resnet50")
    batch = torch.randn(images, 3, 256, 128)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        features, _, logits = model(batch)
        (features.square().mean() + logits.square().mean()).backward()
        times.append(time.perf_counter() - start)
    return min(times) * P * K / images


def candidates_time(identities: int) -> float:
    """Seconds of MCTL on one rank against `identities` centroids, forward and backward, without communication."""
    features, pids = make_batch(0)
    others = torch.randn(identities, DIM) * 24 / DIM**0.5
    layout = build_layout([pids.numpy(), np.arange(identities).repeat(2) + P])
    times = []
    for _ in range(5):
        own = features.clone().requires_grad_()
        everyone = torch.cat([own, others.repeat_interleave(2, dim=0)])
        start = time.perf_counter()
        sums = everyone.new_zeros((identities + P, DIM)).index_add(0, layout.row_identity, everyone)
        anchors = find_anchors(KnownSums(own, layout, sums), centroids="raw")["centroids"]
        centroid.modified_centroid_triplet_of(anchors, 0.1, 5.0).backward()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    torch.set_num_threads(1)
    pool = Pool(4)
    print(f"P x K = {P} x {K} a rank, D = {DIM}, float32, one thread a rank; median of {REPEATS}.\n")
    print("| what | ranks | ms | floats sent a rank, forward + backward |")
    print("|---|---|---|---|")
    timed = {}
    for function in (mctl, mctl_from_all_features, rounds, whole_objective):
        for ranks in (1, 2, 4):
            answers = pool.run(ranks, measure, function)
            timed[function.__name__, ranks] = max(seconds for seconds, _ in answers)
            sent = max(floats for _, floats in answers)
            print(f"| {function.__name__} | {ranks} | {1e3 * timed[function.__name__, ranks]:.1f} | {sent:,} |")
    loop, _ = measure(rounds_loop)
    print(f"| rounds_loop | 1 | {1e3 * loop:.1f} | 0 |\n")
    print(f"P·D = {P * DIM:,} floats; P·K·D = {P * K * DIM:,}.")
    print(f"The loop over rounds takes {loop / timed['rounds', 1]:.1f} times as long as the vectorised rounds.")
    step = resnet50_step()
    share = timed["whole_objective", 1] / step
    print(f"A ResNet-50 step of {P * K} images takes {step:.2f} s on one core; the objective is {share:.2%} of it.\n")
    print(
        f"Projection, assuming {BANDWIDTH / 1e9:.0f} GB/s and {1e6 * LATENCY:.0f} µs a collective for each rank; the "
        "computation is measured, one CPU thread:\n"
    )
    print("| ranks | centroids | MB received a rank and step | ms of transfer | ms of computation |")
    print("|---|---|---|---|---|")
    for ranks in (8, 64, 512):
        received = 2 * 4 * (ranks - 1) * P * DIM
        transfer = received / BANDWIDTH + 4 * LATENCY
        compute = candidates_time((ranks - 1) * P)
        print(f"| {ranks} | {ranks * P} | {received / 1e6:.1f} | {1e3 * transfer:.2f} | {1e3 * compute:.1f} |")
    pool.close()


if __name__ == "__main__":
    main()
