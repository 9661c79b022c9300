"""Losses against numbers of an independent implementation, float64 loops from the definitions, and their properties."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reid.losses import centroid, identity, triplet
from reid.losses.distances import euclidean
from reid.losses.gather import find_global_batch
from reid.losses.pairs import circle, supervised_contrastive
from tests.support.gpu_only import needs_cuda
from tests.support.oracles import ORACLES, real_rows

MARGINS = [0.3, 0.5, 1.0, 5.0, 20.0]


def assert_agrees(
    loss: Tensor, features: Tensor, oracle: dict[str, np.ndarray], value: str, gradient: str = ""
) -> None:
    assert loss.item() == pytest.approx(float(oracle[value]), rel=1e-5)
    if gradient in oracle:
        (found,) = torch.autograd.grad(loss, features)
        np.testing.assert_allclose(found, oracle[gradient][oracle["is_real"]], atol=1e-6)


@pytest.mark.parametrize("name", list(ORACLES))
@pytest.mark.parametrize("margin", MARGINS)
def test_mctl_in_rounds_agrees_with_the_oracle(name: str, margin: float) -> None:
    oracle = ORACLES[name]
    features, pids = real_rows(oracle)
    loss = centroid.modified_centroid_triplet(features, pids, 0.1, margin, reading="rounds")
    assert_agrees(loss, features, oracle, f"cand_loss_mctl_dropin_m{margin}", f"cand_gradfeat_mctl_dropin_m{margin}")


@pytest.mark.parametrize("margin", MARGINS)
def test_mctl_of_the_paper_agrees_with_the_oracle(margin: float) -> None:
    oracle = ORACLES["full_groups"]
    features, pids = real_rows(oracle)
    loss = centroid.modified_centroid_triplet(features, pids, 0.1, margin)
    key = f"mctl_literal_fullneg_m{margin}"
    assert_agrees(loss, features, oracle, f"cand_loss_{key}", f"cand_gradfeat_{key}")


@pytest.mark.parametrize("margin", MARGINS)
def test_mctl_of_the_paper_with_short_groups_differs_from_the_oracle_by_its_mean_alone(margin: float) -> None:
    """The oracle averages over the anchors of a round, then over rounds; the paper over anchors. The terms agree."""
    oracle = ORACLES["short_groups"]
    features, pids = real_rows(oracle)
    anchors = centroid.centroid_anchors(features, pids)
    rounds = torch.tensor([int((pids[:i] == pids[i]).sum()) for i in range(len(pids))])
    per_round = torch.bincount(rounds)
    weight = (1.0 / (per_round[rounds] * len(per_round))).double()
    anchors = replace(anchors, weight=weight, push_weight=weight)
    key = f"mctl_literal_fullneg_m{margin}"
    loss = centroid.modified_centroid_triplet_of(anchors, 0.1, margin)
    assert_agrees(loss, features, oracle, f"cand_loss_{key}", f"cand_gradfeat_{key}")


@pytest.mark.parametrize("name", list(ORACLES))
@pytest.mark.parametrize(("margin", "suffix"), [(0.3, "_m0.3"), (0.5, ""), (1.0, "_m1.0")])
def test_ctl_in_rounds_agrees_with_the_oracle(name: str, margin: float, suffix: str) -> None:
    features, pids = real_rows(ORACLES[name])
    loss = centroid.centroid_triplet(features, pids, margin, reading="rounds")
    gradient = "grad_feat_ctl" if margin == 0.5 else ""
    assert_agrees(loss, features, ORACLES[name], f"loss_ctl{suffix}", gradient)


@pytest.mark.parametrize(("margin", "suffix"), [(0.3, "_m0.3"), (0.5, ""), (1.0, "_m1.0")])
def test_triplet_agrees_with_the_oracle(margin: float, suffix: str) -> None:
    oracle = ORACLES["full_groups"]  # in the other one the padded rows were candidates
    features, pids = real_rows(oracle)
    loss = triplet.batch_hard_triplet(features, pids, margin)
    assert_agrees(loss, features, oracle, f"loss_triplet{suffix}", "grad_feat_triplet" if margin == 0.5 else "")


@pytest.mark.parametrize("name", list(ORACLES))
def test_center_loss_agrees_with_the_oracle(name: str) -> None:
    oracle = ORACLES[name]
    features, labels = real_rows(oracle)
    center = identity.CenterLoss(int(oracle["num_classes"]), features.shape[1], lr=0.5)
    center.centers = torch.tensor(oracle["centers_init"], dtype=torch.float64)
    assert_agrees(center(features, labels), features, oracle, "loss_center_raw", "grad_feat_center_raw")
    batch = find_global_batch(features, labels)
    center.update(batch.sums["raw"], batch.layout)
    np.testing.assert_allclose(center.centers, oracle["centers_after_sgd"], atol=1e-6)


@pytest.mark.parametrize("name", list(ORACLES))
def test_cross_entropy_agrees_with_the_oracle(name: str) -> None:
    oracle = ORACLES[name]
    features, labels = real_rows(oracle)
    after_neck = torch.nn.functional.batch_norm(features, None, None, training=True)
    loss = identity.cross_entropy(after_neck @ torch.tensor(oracle["fc_weight"]).double().T, labels, smoothing=0.1)
    assert_agrees(loss, features, oracle, "loss_xent", "grad_feat_xent")


def all_distances(anchor: Tensor, others: Tensor) -> Tensor:
    """(N,) from one row (D,) to each of (N, D); the gradient at distance 0 is 0."""
    squares = ((anchor - others) ** 2).sum(dim=1)
    return torch.where(squares > 0, squares.where(squares > 0, 1.0).sqrt(), 0.0)


Anchors = list[tuple[Tensor, Tensor]]  # (d_ap, d_an) of each anchor; d_an is infinite without negatives


def nearest(to_negatives: Tensor) -> Tensor:
    return to_negatives.min() if len(to_negatives) else torch.tensor(torch.inf, dtype=to_negatives.dtype)


def loop_of_the_paper(features: Tensor, pids: Tensor) -> list[Anchors]:
    """One round with samples as anchors, one anchor at a time."""
    anchors: Anchors = []
    people = pids.unique()
    means = torch.stack([features[pids == p].mean(dim=0) for p in people])
    for i, pid in enumerate(pids):
        others = pids == pid
        others[i] = False
        if others.any():
            (d_ap,) = all_distances(features[i], features[others].mean(dim=0, keepdim=True))
            anchors.append((d_ap, nearest(all_distances(features[i], means[people != pid]))))
    return [anchors]


def loop_of_rounds(features: Tensor, pids: Tensor) -> list[Anchors]:
    """K rounds: each identity's i-th image is the query, the mean of its others the centroid; both are anchors."""
    rows = {p: [j for j in range(len(pids)) if pids[j] == p] for p in sorted(set(pids.tolist()))}
    rounds = []
    for i in range(max(len(own) for own in rows.values())):
        entries: list[tuple[int, Tensor, bool]] = []
        for p, own in rows.items():
            if len(own) <= i:
                continue
            entries.append((p, features[own[i]], len(own) > 1))
            if len(own) > 1:
                entries.append((p, features[[j for j in own if j != own[i]]].mean(dim=0), True))
        people, vectors = torch.tensor([p for p, _, _ in entries]), torch.stack([vector for _, vector, _ in entries])
        anchors: Anchors = []
        for p, anchor, is_anchor in entries:
            if is_anchor:
                to_all = all_distances(anchor, vectors)
                anchors.append((to_all[people == p].max(), nearest(to_all[people != p])))
        rounds.append(anchors)
    return rounds


def losses_of(rounds: list[Anchors], features: Tensor, w1: float, margin: float) -> dict[str, Tensor]:
    """The mean of the rounds' means, of the rounds that have anchors."""
    means: dict[str, list[Tensor]] = {"ctl": [], "mctl": []}
    for anchors in rounds:
        if anchors:
            d_ap, d_an = (torch.stack(column) for column in zip(*anchors, strict=True))
            means["ctl"].append(torch.relu(d_ap - d_an + margin).mean())
            means["mctl"].append((w1 * d_ap**2 + (1 - w1) * torch.relu(margin - d_an) ** 2).mean())
    return {name: torch.stack(of).mean() if of else features.sum() * 0 for name, of in means.items()}


def loop_of_triplet(features: Tensor, pids: Tensor, margin: float) -> Tensor:
    terms = []
    for i, pid in enumerate(pids):
        to_all, is_other = all_distances(features[i], features), torch.arange(len(pids)) != i
        positives, negatives = to_all[(pids == pid) & is_other], to_all[pids != pid]
        if len(positives) and len(negatives):
            terms.append(torch.relu(positives.max() - negatives.min() + margin))
    return torch.stack(terms).mean() if terms else features.sum() * 0


def loop_of_quadruplet(features: Tensor, pids: Tensor, margin: float, margin2: float) -> Tensor:
    terms = []
    for i, pid in enumerate(pids):
        to_all, is_other = all_distances(features[i], features), torch.arange(len(pids)) != i
        positives = to_all[(pids == pid) & is_other]
        if not len(positives) or not (pids != pid).any():
            continue
        n1 = to_all.detach().masked_fill(pids == pid, torch.inf).argmin()
        thirds = all_distances(features[n1], features)[(pids != pid) & (pids != pids[n1])]
        quadruplet = torch.relu(positives.max() - to_all[n1] + margin)
        terms.append(quadruplet + (torch.relu(positives.max() - thirds.min() + margin2) if len(thirds) else 0.0))
    return torch.stack(terms).mean() if terms else features.sum() * 0


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """2 to 12 identities with 1 to 7 images each, in random order, as random features."""
    counts = draw(st.lists(st.integers(1, 7), min_size=2, max_size=12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    pids = torch.repeat_interleave(torch.arange(len(counts)) * 3 + 5, torch.tensor(counts))
    pids = pids[torch.randperm(len(pids), generator=generator)]
    scale = draw(st.sampled_from([0.1, 1.0, 5.0]))
    return torch.randn(len(pids), 5, generator=generator, dtype=torch.float64) * scale, pids


def with_gradient(loss: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(loss, features, retain_graph=True)
    return loss.detach(), gradient


@settings(max_examples=40)
@given(batch=batches(), margin=st.sampled_from([0.5, 2.0, 8.0]), w1=st.sampled_from([0.0, 0.1, 0.6, 1.0]))
def test_losses_equal_loops_from_the_definitions(batch: tuple[Tensor, Tensor], margin: float, w1: float) -> None:
    features, pids = batch[0].requires_grad_(), batch[1]
    pairs = [
        (triplet.batch_hard_triplet(features, pids, margin), loop_of_triplet(features, pids, margin)),
        (
            triplet.quadruplet(features, pids, margin, margin / 2),
            loop_of_quadruplet(features, pids, margin, margin / 2),
        ),
    ]
    for reading, loop in (("paper", loop_of_the_paper), ("rounds", loop_of_rounds)):
        expected = losses_of(loop(features, pids), features, w1, margin)
        pairs.append((centroid.centroid_triplet(features, pids, margin, reading), expected["ctl"]))
        pairs.append((centroid.modified_centroid_triplet(features, pids, w1, margin, reading), expected["mctl"]))
    for found, by_loop in pairs:
        torch.testing.assert_close(
            with_gradient(found, features), with_gradient(by_loop, features), rtol=1e-9, atol=1e-10
        )


ALL = {
    "mctl": lambda f, p: centroid.modified_centroid_triplet(f, p, 0.3, 3.0),
    "mctl rounds": lambda f, p: centroid.modified_centroid_triplet(f, p, 0.3, 3.0, "rounds"),
    "ctl": lambda f, p: centroid.centroid_triplet(f, p, 3.0),
    "ctl rounds": lambda f, p: centroid.centroid_triplet(f, p, 3.0, "rounds"),
    "triplet": lambda f, p: triplet.batch_hard_triplet(f, p, 3.0),
    "soft triplet": lambda f, p: triplet.batch_hard_triplet(f, p, None),
    "quadruplet": lambda f, p: triplet.quadruplet(f, p, 3.0, 1.5),
}


@settings(max_examples=30)
@given(batch=batches(), seed=st.integers(0, 1000))
def test_order_names_and_place_do_not_matter(batch: tuple[Tensor, Tensor], seed: int) -> None:
    features, pids = batch
    generator = torch.Generator().manual_seed(seed)
    # Rounds depend on the order of an identity's images, so only whole identities may move there.
    order = torch.randperm(len(pids), generator=generator)
    shift = torch.randn(features.shape[1], generator=generator, dtype=torch.float64)
    for name, loss in ALL.items():
        value = loss(features, pids)
        torch.testing.assert_close(loss(features, 1000 - 7 * pids), value, msg=f"{name} under new names")
        torch.testing.assert_close(loss(features + shift, pids), value, msg=f"{name} under translation")
        if "rounds" not in name:
            torch.testing.assert_close(loss(features[order], pids[order]), value, msg=f"{name} under a new order")


@pytest.mark.parametrize("name", list(ALL))
def test_no_nan_at_zero_distance_or_with_one_identity(name: str) -> None:
    same = torch.ones(6, 4, dtype=torch.float64)
    for pids in (torch.tensor([0, 0, 0, 1, 1, 1]), torch.zeros(6, dtype=torch.int64), torch.arange(6)):
        features = same.clone().requires_grad_()
        value, gradient = with_gradient(ALL[name](features, pids), features)
        assert torch.isfinite(value) and torch.isfinite(gradient).all()


def test_one_identity_keeps_the_pull_alone() -> None:
    features = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    assert centroid.modified_centroid_triplet(features, torch.tensor([4, 4]), w1=0.1, margin=5.0) == pytest.approx(0.4)


def test_a_single_image_is_no_anchor_but_a_negative() -> None:
    features = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
    pids = torch.tensor([1, 1, 2])
    loss = centroid.modified_centroid_triplet(features, pids, w1=0.1, margin=3.0)
    assert loss == pytest.approx(0.9 * (3.0 - 1.0) ** 2)


def test_w2_is_the_complement_of_w1_unless_given() -> None:
    features, pids = real_rows(ORACLES["full_groups"])
    default = centroid.modified_centroid_triplet(features, pids, w1=0.3, margin=5.0)
    assert centroid.modified_centroid_triplet(features, pids, w1=0.3, margin=5.0, w2=0.7) == default
    assert centroid.modified_centroid_triplet(features, pids, w1=0.3, margin=5.0, w2=0.1) < default


def test_distances_of_large_features_keep_their_digits() -> None:
    """At norm 24 and 2,048 dimensions, as raw ResNet-50 features are, float32 against float64."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(64, 2048, generator=generator, dtype=torch.float64)
    a = 24 * a / a.norm(dim=1, keepdim=True)
    b = a + 1e-3 * torch.randn(64, 2048, generator=generator, dtype=torch.float64)
    exact = (a - b).norm(dim=1)
    a32, b32 = a.float(), b.float()
    ours = euclidean(a32, b32).double()
    expanded = (a32.square().sum(1) + b32.square().sum(1) - 2 * (a32 * b32).sum(1)).clamp(min=0).sqrt().double()
    assert ((ours - exact).abs() / exact).max() < 1e-4
    assert ((expanded - exact).abs() / exact).max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_float32_islands_under_autocast(dtype: torch.dtype) -> None:
    features, pids = real_rows(ORACLES["full_groups"])
    single = features.detach().float()
    with torch.autocast("cpu", dtype=dtype):
        half = single.to(dtype)
        for name, loss in ALL.items():
            assert loss(half, pids).dtype == torch.float32, name
            torch.testing.assert_close(loss(half, pids), loss(half.float(), pids))
        logits = single @ torch.ones(single.shape[1], 20)
        assert identity.cross_entropy(logits, pids).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, p: centroid.modified_centroid_triplet(f, p, w1=1.5), r"w1 = 1.5 lies outside \[0, 1\]"),
        (lambda f, p: centroid.modified_centroid_triplet(f, p, w2=-0.1), "w2 = -0.1 must not be below 0"),
        (lambda f, p: centroid.modified_centroid_triplet(f, p, margin=0.0), "margin = 0.0 must be greater than 0"),
        (lambda f, p: centroid.centroid_triplet(f, p, margin=-1.0), "margin = -1.0 must be greater than 0"),
        (lambda f, p: centroid.centroid_triplet(f, p, reading="loop"), "reading = 'loop'; choose one of paper, rounds"),
        (lambda f, p: triplet.batch_hard_triplet(f, p, scope="world"), "scope = 'world'; choose one of local, global"),
        (lambda f, p: triplet.quadruplet(f, p, 0.5, 0.5), "margin2 = 0.5 must lie between 0 and margin = 0.5"),
        (lambda f, p: circle(f, p, margin=1.5), r"margin = 1.5 lies outside \[0, 1\]"),
        (lambda f, p: circle(f, p, scale=0.0), "scale = 0.0 must be greater than 0"),
        (lambda f, p: supervised_contrastive(f, p, temperature=0.0), "temperature = 0.0 must be greater than 0"),
        (lambda f, p: centroid.centroid_triplet(f[:3], p), "with the same B"),
        (lambda f, p: triplet.batch_hard_triplet(f[0], p), "features must be"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.randn(4, 3), torch.tensor([0, 0, 1, 1]))


def test_features_that_overflowed_leave_their_center_where_it_is() -> None:
    loss = identity.CenterLoss(3, 2, generator=torch.Generator().manual_seed(0))
    before = loss.centers.clone()
    features = torch.tensor([[1.0, 2.0], [torch.inf, 0.0], [3.0, 4.0]])
    batch = find_global_batch(features, torch.tensor([0, 1, 2]))
    loss.update(batch.sums["raw"], batch.layout)
    assert torch.equal(loss.centers[1], before[1])
    assert loss.centers.isfinite().all() and not torch.isclose(loss.centers[[0, 2]], before[[0, 2]]).all(dim=1).any()


@needs_cuda
def test_rounds_use_deterministic_kernels_alone() -> None:
    features = torch.randn(12, 4, device="cuda", requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        centroid.centroid_triplet(features, torch.arange(4, device="cuda").repeat(3), reading="rounds").backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_rounds_do_not_call_what_is_not_deterministic_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "bincount")
    centroid.centroid_triplet(torch.randn(12, 4), torch.arange(4).repeat(3), reading="rounds")
