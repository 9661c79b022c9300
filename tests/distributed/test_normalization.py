"""reid/model/sync_batchnorm.py and the frozen encoder under DDP: gloo ranks against one process on the whole batch."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reid.distributed import rank, world_size
from reid.model.network import ReIDModel, drop_frozen_gradients
from reid.model.sync_batchnorm import SyncBatchNorm, convert_sync
from tests.support.models import make_model

SIZES = {2: [3, 5], 3: [4, 1, 3]}  # images of each rank


def build_model(seed: int, norm: str = "batch", frozen_epochs: int = 0) -> ReIDModel:
    torch.manual_seed(seed)
    model = make_model(5, norm=norm, frozen_epochs=frozen_epochs).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight.uniform_(0.5, 1.5)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


def share_of_loss(feature: Tensor, after_neck: Tensor, logits: Tensor) -> Tensor:
    """This rank's share of a mean over the images of all ranks."""
    each = feature.square().mean(dim=1) + logits.sin().sum(dim=1)
    return each.sum() * world_size() / sum(SIZES[2])


def images_of_ranks(world: int) -> list[Tensor]:
    images = torch.randn(8, 3, 32, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(images.split(SIZES[world]))


def two_steps(norm: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """On a rank: gradients of the first step, and the state after two steps of SGD."""
    bare = build_model(0, norm)
    convert_sync(bare)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in bare.modules())
    model = DistributedDataParallel(bare)
    return train_twice(model, bare, images_of_ranks(world_size())[rank()])


def train_twice(model: nn.Module, bare: ReIDModel, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    optimizer = torch.optim.SGD([p for p in bare.parameters() if p.requires_grad], lr=0.01)
    gradients = {}
    for _ in range(2):
        optimizer.zero_grad()
        share_of_loss(*model(images)).backward()
        gradients = gradients or {n: p.grad.clone() for n, p in bare.named_parameters() if p.grad is not None}
        optimizer.step()
    return gradients, {name: value.clone() for name, value in bare.state_dict().items()}


@pytest.mark.parametrize(("world", "norm"), [(2, "batch"), (3, "batch"), (2, "frozen")])
def test_synchronized_ranks_are_one_process(pool, world, norm):
    """Gradients, weights and running statistics, with unequal ranks, one of a single image; frozen: the neck alone."""
    whole = build_model(0, norm)
    wanted = train_twice(whole, whole, torch.cat(images_of_ranks(world)))
    for found in pool.run(world, two_steps, norm):
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in theirs.items():
                torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_plain_batchnorm_is_not_one_process(pool):
    """The comparison above can fail."""
    whole = build_model(0)
    wanted, _ = train_twice(whole, whole, torch.cat(images_of_ranks(2)))
    found, _ = pool.run(2, without_conversion)[0]
    assert (found["encoder.conv1.weight"] - wanted["encoder.conv1.weight"]).norm() > 0.1 * wanted[
        "encoder.conv1.weight"
    ].norm()


def without_conversion() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    bare = build_model(0)
    return train_twice(DistributedDataParallel(bare), bare, images_of_ranks(2)[rank()])


def normalize_far_from_zero() -> Tensor:
    layer = SyncBatchNorm(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    return layer(images_far_from_zero()[rank() * 3 : rank() * 3 + 3]).detach()


def images_far_from_zero() -> Tensor:
    return 1000 + 0.1 * torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(3))


def test_large_means_in_float32(pool):
    """E[x^2] - E[x]^2 would lose all of a deviation of 0.1 around 1000; here what is left is float32's own grain."""
    images = images_far_from_zero().double()
    wanted = (images - images.mean(dim=(0, 2, 3), keepdim=True)) / images.std(dim=(0, 2, 3), correction=0, keepdim=True)
    assert (torch.cat(pool.run(2, normalize_far_from_zero)) - wanted).abs().max() < 0.01


def test_conversion_keeps_parameters_names_and_modes():
    model = build_model(0, "frozen")
    twin = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    convert_sync(model)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert list(model.state_dict()) == list(twin.state_dict())
    assert not model.encoder.bn1.training and model.neck.training and not model.eval().neck.training
    images = images_of_ranks(2)[0]
    with torch.no_grad():
        torch.testing.assert_close(model(images), twin.eval()(images), rtol=0, atol=0)


def test_layers_that_are_more_than_a_batchnorm():
    class Activated(nn.BatchNorm2d):
        pass

    with pytest.raises(ValueError, match=r"model\.sync_batchnorm: 0 is a Activated.*sync_batchnorm = false"):
        convert_sync(nn.Sequential(Activated(3)))


# The frozen encoder


def freeze_and_free() -> list[dict[str, Tensor]]:
    """On a rank: the state after each of four steps of Adam with decay, two of them with the encoder frozen."""
    bare = build_model(5, frozen_epochs=2)
    convert_sync(bare)  # so that one process is what the ranks must equal
    return train_frozen(DistributedDataParallel(bare), bare, images_of_ranks(2)[rank()])


def train_frozen(model: nn.Module, bare: ReIDModel, images: Tensor) -> list[dict[str, Tensor]]:
    optimizer = torch.optim.Adam([p for p in bare.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)
    states = []
    for step in range(4):
        bare.begin_epoch(step)
        share_of_loss(*model(images)).backward()
        drop_frozen_gradients(bare)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        states.append({name: value.clone() for name, value in bare.state_dict().items()})
    return states


def test_freezing_during_training_under_ddp(pool):
    """Ranks stay one process while the encoder is frozen and after it is freed."""
    whole = build_model(5, frozen_epochs=2)
    before = copy.deepcopy(whole.state_dict())
    wanted = train_frozen(whole, whole, torch.cat(images_of_ranks(2)))
    encoder = [name for name in before if name.startswith("encoder.")]
    for found in pool.run(2, freeze_and_free):
        for step, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
            for name, value in theirs.items():
                torch.testing.assert_close(ours[name], value, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
            assert all(torch.equal(ours[name], before[name]) for name in encoder) == (step < 2)
            assert not torch.equal(ours["classifier.weight"], before["classifier.weight"])


def free_by_requires_grad() -> Tensor:
    """What begin_epoch does not do: DDP wraps an encoder without requires_grad, which gets it later."""
    bare = build_model(5).requires_grad_(False)
    bare.classifier.requires_grad_(True)
    model = DistributedDataParallel(bare)
    bare.encoder.requires_grad_(True)
    share_of_loss(*model(images_of_ranks(2)[rank()])).backward()
    return bare.encoder.conv1.weight.grad


def test_why_requires_grad_is_left_alone(pool):
    """What DDP did not see when it wrapped the model it does not average: every rank has a gradient of its own."""
    first, second = pool.run(2, free_by_requires_grad)
    assert (first - second).norm() > 0.1 * first.norm()
