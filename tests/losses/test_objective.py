"""The weighted objective: its sum, its centers, its unit of distance and what it says it saw."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from reid.config import Config, LossConfig
from reid.data.layout import Layout, build_layout
from reid.losses import centroid, identity, triplet
from reid.losses.anchors import Anchors
from reid.losses.objective import Objective, diagnose
from reid.model.network import Classifier
from reid.runs.logged import LOSSES, OF_CENTROIDS, OF_TRIPLETS, why_not_logged
from tests.support.batches import DIM, PIDS, split_batch
from tests.support.oracles import ORACLES, real_rows


def test_centers_move_by_the_features_and_not_by_a_scaled_gradient() -> None:
    features, labels = real_rows(ORACLES["full_groups"])
    moved = []
    for scale in (1.0, 65536.0):
        objective = Objective(LossConfig(triplet_margin=0.3), 10, 16, torch.Generator().manual_seed(0))
        single = features.detach().float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = objective(single, single, torch.zeros(16, 10), labels)
        (losses.total * scale).backward()
        objective.update_centers(losses)
        assert objective.center.centers.dtype == torch.float32
        moved.append(objective.state_dict()["center.centers"])
    assert torch.equal(moved[0], moved[1])
    untouched = identity.CenterLoss(10, 16, generator=torch.Generator().manual_seed(0))
    seen = labels.unique()
    assert not torch.isclose(moved[0][seen], untouched.centers[seen]).all(dim=1).any()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_logs_what_its_objective_measures(loss: str) -> None:
    """With one loss alone: neither less nor more than `why_not_logged` says."""
    config = Config()
    config.loss = LossConfig(**{name: float(name == loss) for name in LOSSES})
    features, labels = real_rows(ORACLES["full_groups"])
    features, logits = features.float(), torch.zeros(len(labels), 10)
    objective = Objective(config.loss, 10, features.shape[1])
    losses = objective(features, features, logits, labels)
    measured = {*losses.terms, *objective.diagnose(losses)}
    names = (*LOSSES, "feature_norm", *OF_TRIPLETS, *OF_CENTROIDS)
    assert measured == {name for name in names if why_not_logged(f"train/{name}", config) is None}


def test_the_objective_sums_its_weighted_terms_and_says_what_it_saw() -> None:
    features, labels = real_rows(ORACLES["full_groups"])
    features = features.float()
    logits = features @ torch.tensor(ORACLES["full_groups"]["fc_weight"]).T
    config = LossConfig(
        triplet=2.0,
        triplet_margin=0.3,
        mctl=0.5,
        ctl=0.25,
        center=0.01,
        margin=1.0,
        w1=0.1,
        space="raw",
        triplet_space="raw",
    )
    objective = Objective(config, 10, features.shape[1])
    losses = objective(features, features, logits, labels)
    terms = objective.diagnose(losses)
    expected = (
        identity.cross_entropy(logits, labels)
        + 2.0 * triplet.batch_hard_triplet(features, labels, 0.3)
        + 0.5 * centroid.modified_centroid_triplet(features, labels, 0.1, 1.0)
        + 0.25 * centroid.centroid_triplet(features, labels, 1.0)
        + 0.01 * objective.center(features, labels)
    )
    torch.testing.assert_close(losses.total, expected)
    anchors = centroid.centroid_anchors(features, labels)
    assert terms["d_ap"] == pytest.approx(anchors.d_ap.mean().item(), rel=1e-5)
    assert terms["d_an"] == pytest.approx(anchors.d_an.mean().item(), rel=1e-5)
    assert terms["hinge_active"] == pytest.approx((anchors.d_an < 1.0).float().mean().item())
    distances = torch.cdist(features.double(), features.double())
    same = labels[:, None] == labels
    farthest, nearest = distances.where(same, -1).amax(1), distances.where(~same, 1e9).amin(1)
    assert terms["triplet_d_ap"] == pytest.approx(farthest.mean().item(), rel=1e-5)
    assert terms["triplet_d_an"] == pytest.approx(nearest.mean().item(), rel=1e-5)
    assert terms["feature_norm"] == pytest.approx(features.norm(dim=1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("reading", centroid.READINGS)
def test_each_loss_compares_features_in_its_own_space(reading: str) -> None:
    features, labels = real_rows(ORACLES["full_groups"])
    after_neck = 3 * features.flip(0) - 1
    spaces = {"raw": (features, "raw"), "unit": (features, "unit"), "neck": (after_neck, "unit")}
    logits, unit = torch.zeros(16, 10, dtype=torch.float64), torch.nn.functional.normalize
    for space, triplet_space in itertools.product(spaces, spaces):
        config = LossConfig(
            space=space, triplet_space=triplet_space, margin=1.0, w1=0.1, ctl=0.5, reading=reading, triplet_margin=0.5
        )
        objective = Objective(config, 10, 16).double()
        losses = objective(features, after_neck, logits, labels)
        rows, kind = spaces[space]
        expected = centroid.modified_centroid_triplet(rows, labels, 0.1, 1.0, reading, kind)
        torch.testing.assert_close(losses.terms["mctl"], expected.detach())
        expected = centroid.centroid_triplet(rows, labels, 1.0, reading, kind)
        torch.testing.assert_close(losses.terms["ctl"], expected.detach())
        rows, kind = spaces[triplet_space]
        expected = triplet.batch_hard_triplet(rows if kind == "raw" else unit(rows), labels, 0.5)
        torch.testing.assert_close(losses.terms["triplet"], expected.detach())
        sums = torch.stack([features[labels == label].sum(dim=0) for label in losses.layout.labels])
        torch.testing.assert_close(losses.sums, sums.detach())


@pytest.mark.parametrize("head", ["linear", "cosine", "euclidean"])
def test_nested_lengths_are_the_mean_of_objectives_on_the_first_numbers(head: str) -> None:
    """Of features that are cut before they reach the objective, with a classifier that has the first columns."""
    features, labels = real_rows(ORACLES["full_groups"])
    after_neck = 3 * features.flip(0) - 1
    lengths = (16, 3, 5, 8)  # a quarter of the weights is exact, as they are float32
    config = LossConfig(triplet_space="raw", ctl=0.5, quadruplet=0.5, circle=0.1, contrastive=0.5, center=0.0)
    whole = Classifier(16, 10, head, nested=lengths[1:]).double()
    torch.nn.init.normal_(whole.weight)
    losses = Objective(config, 10, 16, nested=lengths[1:]).double()(features, after_neck, whole(after_neck), labels)
    (found,) = torch.autograd.grad(losses.total, features, retain_graph=True)
    parts = []
    for length in lengths:
        short = Classifier(length, 10, head).double()
        short.weight.data = whole.weight.data[:, :length]
        cut, neck = features[:, :length], after_neck[:, :length]
        parts.append(Objective(config, 10, length).double()(cut, neck, short(neck), labels))
    total = torch.stack([part.total for part in parts]).mean()
    (wanted,) = torch.autograd.grad(total, features)
    torch.testing.assert_close(losses.total, total, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    for name, term in losses.terms.items():
        torch.testing.assert_close(term, torch.stack([part.terms[name] for part in parts]).mean(), rtol=1e-12, atol=0)
    with_center = Objective(LossConfig(center=0.1), 10, 16, nested=(3,)).double()
    losses = with_center(features, after_neck, torch.zeros(16, 2, 10, dtype=torch.float64), labels)
    torch.testing.assert_close(losses.terms["center"], with_center.center(features, labels).detach())
    assert losses.sums is not None and losses.sums.shape == (4, 16)


def test_entropy_tells_whether_one_identity_attracts_everybody() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0], [11.0, 0.0]])
    star = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [-5.0, 0.0]])
    entropies = []
    for centers in (corners, star):
        anchors = centroid.centroid_anchors(centers[labels], labels)
        entropies.append(diagnose(anchors, 1.0)["negative_entropy"].item())
    assert entropies[0] == pytest.approx(np.log(4))
    shares = np.array([0.75, 0.25])
    assert entropies[1] == pytest.approx(-(shares * np.log(shares)).sum())


def test_a_weight_of_zero_switches_a_term_off() -> None:
    features, labels = real_rows(ORACLES["full_groups"])
    objective = Objective(LossConfig(cross_entropy=0, triplet=0, center=0), 10, 16)
    losses = objective(features, features, torch.zeros(16, 10), labels)
    assert set(losses.terms) == {"mctl"}
    assert set(objective.diagnose(losses)) == {"hinge_active", "d_ap", "d_an", "negative_entropy", "feature_norm"}
    with pytest.raises(ValueError, match="every loss weight is 0"):
        LossConfig(cross_entropy=0, triplet=0, center=0, mctl=0)


def test_a_compiled_objective_is_one_graph_for_any_size_of_a_batch() -> None:
    objective = Objective(LossConfig(), 20, 24)
    torch._dynamo.reset()  # sizes that are equal by chance would be taken for the same: 24 features, not 16
    objective.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (16, 15, 11, 14):
            features = torch.randn(rows, 24, generator=torch.Generator().manual_seed(rows)).requires_grad_()
            labels = torch.arange(rows) % 4
            layout = build_layout([labels.numpy()])
            found = objective(features, features, features[:, :20], labels, layout)
            expected = objective.forward(features, features, features[:, :20], labels, layout)
            torch.testing.assert_close(found.terms, expected.terms)
            found.total.backward()


@pytest.mark.parametrize("batch", list(PIDS))
def test_local_triplets_stay_within_virtual_ranks(batch: str) -> None:
    """Three virtual ranks of one process give the mean of the shares, and of the entropies, of three processes."""
    parts = split_batch(batch, 3)
    pids = [part.numpy() for _, part in parts]
    config = LossConfig(
        cross_entropy=0.0, mctl=0.0, center=0.0, quadruplet=0.5, quadruplet_margin2=0.25, triplet_margin=1.0
    )
    objective = Objective(config, 200, DIM)

    def compute(features: Tensor, rank: int, share: int) -> tuple[Tensor, Tensor]:
        features = features.clone().requires_grad_()
        layout = build_layout(pids, rank, dtype=features.dtype, share=share)
        logits = torch.zeros(len(features), 200)
        total = objective(features, features, logits, torch.zeros(len(features), dtype=torch.int64), layout).total
        return total.detach(), torch.autograd.grad(total, features)[0]

    found, gradient = compute(torch.cat([features for features, _ in parts]), 0, 3)
    shares, gradients = zip(*(compute(features, rank, 1) for rank, (features, _) in enumerate(parts)), strict=True)
    torch.testing.assert_close(found, torch.stack(shares).mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, torch.cat(gradients) / 3, rtol=1e-12, atol=1e-15)


def test_the_entropy_is_the_mean_of_those_of_virtual_ranks() -> None:
    nearest = [torch.tensor(part) for part in ([0, 0, 1], [2, 3, 3, 3], [4])]
    layout = build_layout([np.arange(3), np.arange(4), np.arange(1)], share=3)

    def entropy(nearest: Tensor, layout: Layout | None = None) -> Tensor:
        ones = torch.ones(len(nearest))
        return diagnose(Anchors(ones, ones, nearest, ones, ones), 1.0, layout=layout)["negative_entropy"]

    wanted = torch.stack([entropy(part) for part in nearest]).mean()
    torch.testing.assert_close(entropy(torch.cat(nearest), layout), wanted)
    torch.testing.assert_close(entropy(torch.cat([*nearest, *nearest]), layout), wanted)  # as in rounds
