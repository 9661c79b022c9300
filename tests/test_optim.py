"""reid/optim.py: the learning rate against a table made by hand, Adam against its equations."""

import numpy as np
import pytest
import torch
from torch import nn

from reid.optim import Schedule, build_optimizer


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.02), (1, 0.515), (2, 1.01), (3, 1.505), (4, 2.0), (7, 2.0), (8, 0.2), (13, 0.2), (14, 0.02), (999, 0.02)],
)
def test_rate_of_each_step(step, rate):
    """Two steps an epoch, warm-up over epochs 0 and 1 (2 * (0.01 + 0.99 * step / 4)), milestones at steps 8 and 14."""
    schedule = Schedule(2.0, steps_per_epoch=2, warmup_epochs=2, warmup_factor=0.01, milestones=(4, 7), gamma=0.1)
    assert schedule.at(step) == pytest.approx(rate)


def test_bag_of_tricks_recipe():
    schedule = Schedule(3.5e-4, steps_per_epoch=100)
    assert schedule.at(0) == pytest.approx(3.5e-6)
    assert schedule.at(500) == pytest.approx(3.5e-4 * 0.505)
    assert [schedule.at(step) for step in (1000, 3999, 4000, 6999, 7000)] == pytest.approx(
        [3.5e-4, 3.5e-4, 3.5e-5, 3.5e-5, 3.5e-6]
    )


def test_no_warmup_and_milestones_in_any_order():
    schedule = Schedule(1.0, steps_per_epoch=1, warmup_epochs=0, milestones=[5, 2], gamma=0.5)
    assert [schedule.at(step) for step in range(7)] == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_a_milestone_inside_the_warmup_scales_it():
    schedule = Schedule(1.0, steps_per_epoch=1, warmup_epochs=4, warmup_factor=0.0, milestones=[2], gamma=0.1)
    assert [schedule.at(step) for step in range(5)] == pytest.approx([0, 0.25, 0.05, 0.075, 0.1])


def test_apply_sets_every_group():
    layers = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": layer.parameters()} for layer in layers], lr=9.0)
    schedule = Schedule(1.0, steps_per_epoch=1, warmup_epochs=0, milestones=[1])
    assert schedule.apply(optimizer, 1) == pytest.approx(0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.1])


def test_adam_with_l2_penalty_step_by_step():
    model = nn.Linear(3, 2).double()
    weight = model.weight.detach().numpy().copy()
    optimizer = build_optimizer(model, lr=0.01, weight_decay=0.1)
    first, second, rng = np.zeros_like(weight), np.zeros_like(weight), np.random.default_rng(0)
    for t in range(1, 4):
        gradient = rng.normal(size=weight.shape)
        model.weight.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        gradient = gradient + 0.1 * weight
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weight = weight - 0.01 * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(model.weight.detach().numpy(), weight, rtol=1e-10)


def test_frozen_parameters_are_left_out():
    model = nn.BatchNorm1d(4)
    model.bias.requires_grad_(False)
    (group,) = build_optimizer(model, 1.0, 0.0).param_groups
    assert group["params"] == [model.weight]
