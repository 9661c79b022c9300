"""reid/training/terms.py: the values of each dataset, compared with loops over the images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reid.config import LossConfig
from reid.losses.gather import find_layout
from reid.losses.objective import Objective
from reid.training.monitors import mean_over_ranks
from reid.training.terms import DatasetTerms

CLASSES = np.array([0, 1, 0, 1, 1, 0])  # the dataset of each identity; that of the last is not in the batch


@pytest.mark.parametrize("reading", ["paper", "rounds"])
def test_values_are_those_of_the_images_of_a_dataset(reading):
    rng = torch.Generator().manual_seed(0)
    labels = torch.tensor([3, 3, 3, 0, 0, 1, 1, 1, 2, 2, 4])  # the last identity has one image, so no anchor
    features, logits = (torch.randn(len(labels), width, generator=rng) for width in (8, len(CLASSES)))
    config = LossConfig(reading=reading, space="raw", triplet_space="raw", margin=5.0)
    objective = Objective(config, len(CLASSES), 8)
    losses = objective(features, features, logits, labels, find_layout(labels))
    terms = DatasetTerms(["a", "b"], CLASSES, torch.device("cpu"))
    found = terms.finish(mean_over_ranks(terms.measure(objective, losses)))
    assert set(found) == {
        f"{d}/{n}" for d in "ab" for n in ("cross_entropy", "triplet_d_ap", "triplet_d_an", "d_ap", "d_an")
    }
    for number, dataset in enumerate("ab"):
        rows = torch.from_numpy(CLASSES)[labels] == number
        wanted = F.cross_entropy(logits[rows], labels[rows], label_smoothing=config.smoothing)
        assert found[f"{dataset}/cross_entropy"] == pytest.approx(wanted.item(), rel=1e-5)
        pulls = []
        for i in rows.nonzero().flatten().tolist():
            others = [j for j in range(len(labels)) if labels[j] == labels[i] and j != i]
            pulls += [(features[i] - features[others].mean(dim=0)).norm().item()] if others else []
        if reading == "paper":
            assert found[f"{dataset}/d_ap"] == pytest.approx(np.mean(pulls), rel=1e-5)


def test_one_dataset_and_a_dataset_without_an_anchor_have_no_values():
    labels = torch.tensor([0, 0, 2, 2, 1])
    objective = Objective(LossConfig(), len(CLASSES), 4)
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    losses = objective(features, features, torch.zeros(5, len(CLASSES)), labels, find_layout(labels))
    assert DatasetTerms(["a"], 0 * CLASSES, torch.device("cpu")).measure(objective, losses) == {}
    terms = DatasetTerms(["a", "b"], CLASSES, torch.device("cpu"))
    found = terms.finish(mean_over_ranks(terms.measure(objective, losses)))
    assert [name for name in found if name.startswith("b/")] == ["b/cross_entropy"]
