"""reid/training/optim.py: the learning rate against a table made by hand, Adam against its equations."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from torch import nn

from reid.config import OptimConfig
from reid.model.network import ReIDModel
from reid.training.optim import Schedule, build_optimizer, take_step
from tests.support.gpu_only import needs_cuda
from tests.support.models import make_model


def make_schedule(steps_per_epoch: int, **knobs) -> Schedule:
    return Schedule(OptimConfig(**knobs), steps_per_epoch, identities=16)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.02), (1, 0.515), (2, 1.01), (3, 1.505), (4, 2.0), (7, 2.0), (8, 0.2), (13, 0.2), (14, 0.02), (999, 0.02)],
)
def test_rate_of_each_step(step, rate):
    """Two steps an epoch, warm-up over epochs 0 and 1 (2 * (0.01 + 0.99 * step / 4)), milestones at steps 8 and 14."""
    schedule = make_schedule(2, lr=2.0, warmup_epochs=2, warmup_factor=0.01, milestones=[4, 7], gamma=0.1)
    assert schedule.at(step) == pytest.approx(rate)


def test_bag_of_tricks_recipe():
    schedule = make_schedule(100)
    assert schedule.at(0) == pytest.approx(3.5e-6)
    assert schedule.at(500) == pytest.approx(3.5e-4 * 0.505)
    assert [schedule.at(step) for step in (1000, 3999, 4000, 6999, 7000)] == pytest.approx(
        [3.5e-4, 3.5e-4, 3.5e-5, 3.5e-5, 3.5e-6]
    )


def test_no_warmup_and_milestones_in_any_order():
    schedule = make_schedule(1, lr=1.0, warmup_epochs=0, milestones=[5, 2], gamma=0.5)
    assert [schedule.at(step) for step in range(7)] == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_a_milestone_inside_the_warmup_scales_it():
    schedule = make_schedule(1, lr=1.0, warmup_epochs=4, warmup_factor=0.0, milestones=[2], gamma=0.1)
    assert [schedule.at(step) for step in range(5)] == pytest.approx([0, 0.25, 0.05, 0.075, 0.1])


def test_apply_sets_every_group():
    layers = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": layer.parameters()} for layer in layers], lr=9.0)
    schedule = make_schedule(1, lr=1.0, warmup_epochs=0, milestones=[1])
    assert schedule.apply(optimizer, 1) == pytest.approx(0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.1])


def test_adam_with_l2_penalty_step_by_step():
    model = nn.Linear(3, 2).double()
    weight = model.weight.detach().numpy().copy()
    optimizer = build_optimizer(model, OptimConfig(lr=0.01, weight_decay=0.1))
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
    (group,) = build_optimizer(model, OptimConfig()).param_groups
    assert group["params"] == [model.weight]


# The other schedule, and rules for the rate


def test_cosine_after_the_warmup():
    """10 epochs of 2 steps, 2 of warm-up: 16 steps of cosine; a quarter, half and three quarters of the way."""
    schedule = make_schedule(2, lr=2.0, warmup_epochs=2, warmup_factor=0.0, schedule="cosine", epochs=10)
    assert [schedule.at(step) for step in (0, 2, 4)] == pytest.approx([0, 1, 2])
    assert [schedule.at(step) for step in (8, 12, 16)] == pytest.approx([1 + 0.5**0.5, 1, 1 - 0.5**0.5])
    assert 0 < schedule.at(19) < 0.03
    assert schedule.at(20) == schedule.at(99) == pytest.approx(0)


def test_cosine_against_torch():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    wanted, theirs = make_schedule(4, lr=0.3, warmup_epochs=0, schedule="cosine", epochs=5), []
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for _ in range(20):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert [wanted.at(step) for step in range(20)] == pytest.approx(theirs)


def test_cosine_of_a_run_that_only_warms_up():
    schedule = make_schedule(5, lr=1.0, warmup_epochs=4, warmup_factor=0.0, schedule="cosine", epochs=2)
    assert schedule.at(9) == pytest.approx(9 / 20)


@pytest.mark.parametrize(("rule", "rate"), [("none", 0.5), ("linear", 2.0), ("sqrt", 1.0)])
def test_rate_for_a_batch_four_times_as_large(rule, rate):
    config = OptimConfig(lr=0.5, lr_rule=rule, reference_identities=16)
    assert Schedule(config, 1, identities=64).lr == pytest.approx(rate)
    assert Schedule(config, 1, identities=16).lr == 0.5


# Groups


def rates_and_decays(model: nn.Module, **knobs) -> dict[str, tuple[float, float]]:
    """(learning rate, decay) of each trainable parameter by name, after the schedule has set a rate of 1."""
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.1, **knobs))
    make_schedule(1, lr=1.0, warmup_epochs=0).apply(optimizer, 0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.fixture(scope="module")
def model() -> ReIDModel:
    return make_model(5, pool="gem")


def test_one_group_by_default_in_the_order_of_the_model(model):
    (group,) = build_optimizer(model, OptimConfig()).param_groups
    assert all(a is b for a, b in zip(group["params"], [p for p in model.parameters() if p.requires_grad], strict=True))


def test_factors_of_heads_and_biases(model):
    found = rates_and_decays(model, head_lr_factor=10.0, bias_lr_factor=2.0)
    assert len(found) == len(list(model.parameters())) - 1
    assert found["encoder.conv1.weight"] == found["encoder.bn1.weight"] == found["encoder.avgpool.p"] == (1, 0.1)
    assert found["encoder.bn1.bias"] == (2, 0.1)
    assert found["neck.weight"] == found["classifier.weight"] == (10, 0.1)
    heads = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    assert rates_and_decays(heads, head_lr_factor=10.0, bias_lr_factor=2.0)["head.bias"] == (20, 0.1)


def test_no_decay_on_norms_and_biases(model):
    found = rates_and_decays(model, decay_norm=False)
    spared = {name for name, (_, decay) in found.items() if decay == 0}
    wanted = {"neck.weight", "encoder.avgpool.p", "encoder.bn1.weight", "encoder.bn1.bias"}
    assert wanted < spared and {decay for _, decay in found.values()} == {0, 0.1}
    assert all(".bn" in name or ".downsample.1." in name for name in spared - wanted)


@pytest.mark.parametrize(
    ("encoder", "at"),
    [
        ("resnet18", {"layer4.0.conv1.weight": 1, "layer4.1.bn2.bias": 1, "layer3.1.bn2.weight": 2, "bn1.weight": 5}),
        ("osnet_ain_x1_0", {"fc.0.weight": 1, "conv4.0.IN.weight": 2, "pool3.0.bn.bias": 3, "conv1.bn.bias": 5}),
        (
            "swin_t",
            {"norm.bias": 1, "features.7.0.norm1.weight": 2, "features.6.norm.bias": 3, "features.0.2.bias": 13},
        ),
        ("convnext_tiny", {"classifier.0.bias": 1, "features.6.1.weight": 4, "features.0.0.weight": 19}),
        ("vit_b_16", {"encoder.ln.bias": 1, "encoder.layers.encoder_layer_9.ln_1.bias": 3, "class_token": 13}),
        ("solider_swin_t", {"norm3.bias": 1, "stages.2.downsample.norm.bias": 3, "patch_embed.norm.bias": 13}),
        ("timm/test_vit", {"norm.weight": 1, "blocks.4.norm1.bias": 2, "pos_embed": 7}),
        ("timm/resnet18", {"layer4.1.bn2.bias": 1, "layer3.1.bn2.weight": 2, "conv1.weight": 5}),
    ],
)
def test_rates_fall_from_the_heads_down(encoder, at):
    """By layer_decay for each block or stage, times the other factors, in a few groups."""
    if encoder.startswith("timm"):
        pytest.importorskip("timm", reason="timm, an optional dependency, is not installed")
    with torch.device("meta"):
        model = make_model(5, encoder, image_size=(224, 224))
    knobs = {"layer_decay": 0.5, "head_lr_factor": 10.0, "bias_lr_factor": 3.0, "decay_norm": False}
    found = rates_and_decays(model, **knobs)
    assert found["neck.weight"] == (10, 0) and found["classifier.weight"] == (10, 0.1)
    for name, depth in at.items():
        bias, decays = 3 if name.endswith("bias") else 1, dict(model.encoder.named_parameters())[name].ndim > 1
        assert found[f"encoder.{name}"] == (bias * 0.5**depth, 0.1 * decays), name
    encoders = {rate for name, (rate, _) in found.items() if name.startswith("encoder.") and not name.endswith("bias")}
    assert encoders == {0.5**depth for depth in range(1, max(at.values()) + 1)}
    assert len(build_optimizer(model, OptimConfig(**knobs)).param_groups) <= 3 * max(at.values()) + 2


def test_layers_that_timm_does_not_name(model, monkeypatch):
    monkeypatch.setattr(model, "encoder_name", "timm/x")
    with pytest.raises(ValueError, match=r"optim\.layer_decay: timm does not say what the layers of timm/x are"):
        build_optimizer(model, OptimConfig(layer_decay=0.5))


def test_groups_saved_without_factors_are_read():
    """Checkpoints of one group, from before there were factors."""
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig())
    old = torch.optim.Adam(nn.Linear(2, 2).parameters(), lr=3.0)
    optimizer.load_state_dict(old.state_dict())
    make_schedule(1, lr=1.0, warmup_epochs=0).apply(optimizer, 0)
    assert optimizer.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize(("algorithm", "nesterov"), [("adamw", False), ("sgd", False), ("sgd", True)])
def test_other_algorithms_step_by_step(algorithm, nesterov):
    model = nn.Linear(3, 2, bias=False).double()
    weight = model.weight.detach().numpy().copy()
    knobs = {"algorithm": algorithm, "momentum": 0.8, "nesterov": nesterov}
    optimizer = build_optimizer(model, OptimConfig(lr=0.01, weight_decay=0.1, **knobs))
    first, second, rng = np.zeros_like(weight), np.zeros_like(weight), np.random.default_rng(0)
    for t in range(1, 4):
        gradient = rng.normal(size=weight.shape)
        model.weight.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        if algorithm == "adamw":
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            update = (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
            weight = weight - 0.01 * 0.1 * weight - 0.01 * update
        else:
            gradient = gradient + 0.1 * weight
            first = 0.8 * first + gradient
            weight = weight - 0.01 * (gradient + 0.8 * first if nesterov else first)
    np.testing.assert_allclose(model.weight.detach().numpy(), weight, rtol=1e-10)


@needs_cuda
@pytest.mark.parametrize("algorithm", ["adam", "adamw", "sgd"])
def test_one_fused_kernel_on_cuda(algorithm):
    optimizer = build_optimizer(nn.Linear(2, 2).cuda(), OptimConfig(algorithm=algorithm))
    assert optimizer.defaults["fused"] is True


@pytest.mark.parametrize("algorithm", ["adam", "adamw", "sgd"])
def test_torchs_own_choice_elsewhere(algorithm):
    assert build_optimizer(nn.Linear(2, 2), OptimConfig(algorithm=algorithm)).defaults["fused"] is None


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_overflowed_is_not_taken_and_said(fused):
    """As accelerate makes fp16's steps on CUDA; its own answer is wrong for fused optimizers."""
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(cpu=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    optimizer = AcceleratedOptimizer(torch.optim.Adam(model.parameters(), fused=fused), scaler=scaler)
    scaler.scale(model(torch.full((1, 2), 1e38)).sum() * 1e38).backward()
    assert not take_step(optimizer, scaler)
    assert torch.equal(model.weight, before)
    optimizer.zero_grad()
    scaler.scale(model(torch.ones(1, 2)).sum()).backward()
    assert take_step(optimizer, scaler)
    assert not torch.equal(model.weight, before)
    assert take_step(torch.optim.SGD(model.parameters(), lr=1.0))
    AcceleratorState._reset_state(reset_partial_state=True)
