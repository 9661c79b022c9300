"""Loss and gradient of W ranks equal those of one process on the concatenated batch."""

import functools

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reid.config import LossConfig
from reid.distributed import gather_padded, gather_sizes, world_size
from reid.losses import centroid, pairs, triplet
from reid.losses.gather import find_global_batch, find_layout
from reid.losses.objective import Objective
from reid.model.network import Classifier
from tests.support.batches import DIM, PIDS, split_batch
from tests.support.pool import Pool

LOSSES = {
    "mctl": functools.partial(centroid.modified_centroid_triplet, margin=2.0),
    "mctl rounds": functools.partial(centroid.modified_centroid_triplet, margin=2.0, reading="rounds"),
    "mctl normalized": functools.partial(centroid.modified_centroid_triplet, margin=1.0, space="unit"),
    "ctl": functools.partial(centroid.centroid_triplet, margin=1.0),
    "ctl rounds": functools.partial(centroid.centroid_triplet, margin=1.0, reading="rounds"),
    "triplet": functools.partial(triplet.batch_hard_triplet, margin=1.0, scope="global"),
    "soft triplet": functools.partial(triplet.batch_hard_triplet, margin=None, scope="global"),
    "circle": functools.partial(pairs.circle, scale=8.0),
    "contrastive": pairs.supervised_contrastive,
    "multi-similarity": pairs.multi_similarity,
    "quadruplet": functools.partial(triplet.quadruplet, margin=1.0, margin2=0.5, scope="global"),
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def loss_and_gradients(name: str, batch: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """On one rank: its share of the loss and the gradient of its own features."""
    features, pids = split_batch(batch, world_size(), dtype)[dist.get_rank()]
    features.requires_grad_()
    share = LOSSES[name](features, pids)
    share.backward()
    assert features.grad is not None
    return {"loss": share.detach(), "gradient": features.grad}


@pytest.mark.parametrize("batch", list(PIDS))
@pytest.mark.parametrize("name", list(LOSSES))
def test_any_number_of_ranks_equals_one_process(pool: Pool, name: str, batch: str) -> None:
    for ranks in (2, 3, 4):
        for dtype, tolerance in TOLERANCE.items():
            parts = split_batch(batch, ranks, dtype)
            features = torch.cat([f for f, _ in parts]).requires_grad_()
            expected = LOSSES[name](features, torch.cat([p for _, p in parts]))
            (gradient,) = torch.autograd.grad(expected, features)

            answers = pool.run(ranks, loss_and_gradients, name, batch, dtype)
            shares = torch.stack([answer["loss"] for answer in answers])
            # DDP averages over ranks: the gradient it makes of each rank's own rows is 1 / W of what the rank holds.
            gathered = torch.cat([answer["gradient"] for answer in answers]) / ranks
            scale = gradient.abs().max().clamp(min=1e-30)
            assert abs(shares.mean() - expected) <= tolerance * abs(expected)
            assert (gathered - gradient).abs().max() <= tolerance * scale


def gather_with_weights() -> tuple[Tensor, Tensor, Tensor]:
    """gather_padded of unequal rows under a rank-dependent function of everything gathered."""
    rank = dist.get_rank()
    local = (torch.arange(2 * (rank + 1), dtype=torch.float64).reshape(-1, 2) + 100 * rank).requires_grad_()
    gathered = gather_padded(local, gather_sizes(len(local), local.device))
    ((rank + 1) * gathered.square()).sum().backward()
    assert local.grad is not None
    return local.detach(), gathered.detach(), local.grad


def test_gather_is_the_transpose_of_its_backward(pool: Pool) -> None:
    answers = pool.run(3, gather_with_weights)
    everything = torch.cat([local for local, _, _ in answers])
    for local, gathered, gradient in answers:
        assert torch.equal(gathered, everything)
        assert torch.equal(gradient, 2 * local * (1 + 2 + 3))


def gather_sums(batch: str) -> tuple[Tensor, Tensor, Tensor]:
    found = find_global_batch(*split_batch(batch, world_size())[dist.get_rank()])
    return found.sums["raw"], found.layout.counts, found.layout.labels


@pytest.mark.parametrize("batch", list(PIDS))
def test_centroids_are_merged_by_pid_and_equal_on_every_rank(pool: Pool, batch: str) -> None:
    parts = split_batch(batch, 3)
    features, pids = torch.cat([f for f, _ in parts]), torch.cat([p for _, p in parts])
    for sums, counts, found in pool.run(3, gather_sums, batch):
        assert sorted(found.tolist()) == sorted(set(pids.tolist()))
        for row, pid in enumerate(found.tolist()):
            torch.testing.assert_close(sums[row], features[pids == pid].sum(dim=0))
            assert counts[row] == (pids == pid).sum()


CLASSES, STEPS, ROWS = 12, 5, 6
SPACES = ({"space": "raw"}, {"space": "neck"}, {"space": "unit", "triplet_space": "neck"})


class Net(nn.Module):
    """A model small enough for float64: features through a layer, logits through a neck without batch statistics."""

    def __init__(self, nested: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(DIM, 16), nn.Tanh(), nn.Linear(16, DIM))
        self.classifier = Classifier(DIM, CLASSES, nested=nested)
        nn.init.normal_(self.classifier.weight)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = 3 * self.encoder(images)
        return features, features - 1, self.classifier(features)


def train_net(
    reading: str, spaces: dict[str, str], compiled: bool = False, nested: tuple[int, ...] = ()
) -> dict[str, Tensor]:
    """Five optimizer steps of the whole objective, on this rank's part of each batch; also without a process group."""
    torch.manual_seed(3)
    torch.set_default_dtype(torch.float64)
    try:
        net = Net(nested)
        config = LossConfig(
            triplet_margin=0.3, triplet_scope="global", quadruplet=0.3, margin=2.0, ctl=0.5, center=0.01,
            reading=reading, circle=0.1 if nested else 0.0, **spaces,
        )  # fmt: skip
        objective = Objective(config, CLASSES, DIM, nested=nested)
        if compiled:
            net.compile(dynamic=True, backend="aot_eager")  # traces like any backend, and starts no C++ compiler
            objective.compile(fullgraph=True, dynamic=True, backend="aot_eager")
        model = DistributedDataParallel(net) if dist.is_initialized() else net
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            labels = torch.randint(0, CLASSES, (4 * ROWS,), generator=generator)
            images = torch.randn(4 * ROWS, DIM, generator=generator)
            # Unequal parts: the first rank of several gets a quarter of what it would have.
            bounds = [0] + [ROWS * 4 * (r + 1) // world_size() - (r == 0 and world_size() > 1) * 4 for r in range(4)]
            own = slice(bounds[_rank()], bounds[_rank() + 1])
            outputs = model(images[own])
            losses = objective(*outputs, labels[own], find_layout(labels[own], torch.float64))
            losses.total.backward()
            optimizer.step()
            optimizer.zero_grad()
            objective.update_centers(losses)
        return {**net.state_dict(), **objective.state_dict()}
    finally:
        torch.set_default_dtype(torch.float32)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


@pytest.mark.parametrize("spaces", SPACES, ids=lambda spaces: " ".join(spaces.values()))
@pytest.mark.parametrize("reading", centroid.READINGS)
def test_five_steps_of_ddp_equal_one_process(pool: Pool, reading: str, spaces: dict[str, str]) -> None:
    expected = train_net(reading, spaces)
    for ranks in (2, 3, 4):
        for state in pool.run(ranks, train_net, reading, spaces):
            assert_same_state(state, expected, f"{ranks} ranks")


@pytest.mark.parametrize("reading", centroid.READINGS)
def test_nested_lengths_equal_one_process(pool: Pool, reading: str) -> None:
    expected = train_net(reading, SPACES[1], nested=(2, 4))
    assert not torch.equal(expected["encoder.0.weight"], train_net(reading, SPACES[1])["encoder.0.weight"])
    for ranks in (2, 3):
        for state in pool.run(ranks, train_net, reading, SPACES[1], False, (2, 4)):
            assert_same_state(state, expected, f"{ranks} ranks")


def test_a_compiled_model_and_objective_train_the_same(pool: Pool) -> None:
    expected = train_net("paper", SPACES[1])
    for state in pool.run(2, train_net, "paper", SPACES[1], True):
        assert_same_state(state, expected, "compiled")


def assert_same_state(state: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-11, msg=f"{name}, {where}")
