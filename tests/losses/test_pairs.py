"""Losses on pairs, and margins of the classifier, against loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reid.config import LossConfig
from reid.losses import pairs
from reid.losses.identity import with_margin
from reid.losses.objective import Objective

LABELS = [0, 0, 0, 1, 1, 2, 3, 3, 3, 3]  # one identity has a single image


def circle(positives: list[float], negatives: list[float]) -> float:
    pull = sum(math.exp(-8 * max(0, 1.25 - c) * (c - 0.75)) for c in positives)
    return math.log1p(pull * sum(math.exp(8 * max(0, c + 0.25) * (c - 0.25)) for c in negatives))


def contrastive(positives: list[float], negatives: list[float]) -> float:
    total = sum(math.exp(c / 0.1) for c in positives + negatives)
    return -sum(math.log(math.exp(c / 0.1) / total) for c in positives) / len(positives)


def multi_similarity(positives: list[float], negatives: list[float]) -> float:
    hard_positives = [c for c in positives if c - 0.1 < max(negatives)]
    hard_negatives = [c for c in negatives if c + 0.1 > min(positives)]
    pull = math.log1p(sum(math.exp(-2 * (c - 0.5)) for c in hard_positives)) / 2
    return pull + math.log1p(sum(math.exp(50 * (c - 0.5)) for c in hard_negatives)) / 50


@pytest.mark.parametrize(
    ("function", "of_row"),
    [
        (lambda *batch: pairs.circle(*batch, scale=8.0), circle),
        (pairs.supervised_contrastive, contrastive),
        (pairs.multi_similarity, multi_similarity),
    ],
    ids=["circle", "contrastive", "multi-similarity"],
)
def test_a_loss_on_pairs_is_its_formula(
    function: Callable[[Tensor, Tensor], Tensor], of_row: Callable[[list[float], list[float]], float]
) -> None:
    labels = torch.tensor(LABELS)
    features = 5 * torch.randn(len(LABELS), 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features += 4 * torch.nn.functional.one_hot(labels, 6)
    cosines = torch.nn.functional.cosine_similarity(features[:, None], features, dim=2).tolist()
    values = []
    for i, label in enumerate(LABELS):
        positives = [cosines[i][j] for j, other in enumerate(LABELS) if other == label and j != i]
        negatives = [cosines[i][j] for j, other in enumerate(LABELS) if other != label]
        values += [of_row(positives, negatives)] if positives else []
    assert function(features, labels).item() == pytest.approx(sum(values) / len(values), rel=1e-12)
    assert function(3 * features, labels).item() == pytest.approx(sum(values) / len(values), rel=1e-9)


def test_rows_without_pairs_have_no_gradient_and_no_nan() -> None:
    for function in (pairs.circle, pairs.supervised_contrastive, pairs.multi_similarity):
        for labels in (torch.zeros(4, dtype=torch.int64), torch.arange(4)):
            features = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
            function(features, labels).backward()
            assert features.grad is not None and not features.grad.any()


@pytest.mark.parametrize(("angular", "cosine"), [(0.5, 0.0), (0.0, 0.35), (0.3, 0.2)])
def test_margins_lower_the_logit_of_the_identity(angular: float, cosine: float) -> None:
    angles = torch.linspace(0.01, 3.13, 40, dtype=torch.float64)
    logits = torch.stack([angles.cos(), 0.3 * torch.ones(40)], dim=1) / 0.05
    found = with_margin(logits, torch.zeros(40, dtype=torch.int64), angular, cosine, 0.05)
    inside = angles + angular < math.pi
    expected = ((angles + angular).cos() - cosine) / 0.05
    torch.testing.assert_close(found[inside, 0], expected[inside])
    assert (found[:, 0].diff() < 0).all() and torch.equal(found[:, 1], logits[:, 1])


def test_the_objective_takes_pairs_and_margins() -> None:
    features = torch.randn(len(LABELS), 6, generator=torch.Generator().manual_seed(0))
    after_neck, labels, logits = features.flip(0), torch.tensor(LABELS), features.cos() / 0.1
    config = LossConfig(
        triplet=0, mctl=0, circle=0.5, contrastive=1, multi_similarity=2, cosine_margin=0.2, pair_space="neck"
    )
    losses = Objective(config, 6, 6, temperature=0.1)(features, after_neck, logits, labels)
    functions = {
        "circle": pairs.circle,
        "contrastive": pairs.supervised_contrastive,
        "multi_similarity": pairs.multi_similarity,
    }
    for name, function in functions.items():
        torch.testing.assert_close(losses.terms[name], function(after_neck, labels))
    without = Objective(LossConfig(triplet=0, mctl=0), 6, 6)(features, after_neck, logits, labels)
    assert losses.terms["cross_entropy"] > without.terms["cross_entropy"]
