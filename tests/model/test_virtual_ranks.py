"""reid/model/virtual_ranks.py: virtual ranks are as processes; computed twice they take less memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from reid.config import SpeedConfig
from reid.model.checkpointing import checkpoint_blocks
from reid.model.network import ReIDModel
from reid.model.sync_batchnorm import convert_sync
from reid.model.virtual_ranks import VirtualRanks
from tests.support.memory import peak
from tests.support.models import make_model

SIZES = (3, 2, 4)
ENCODER = "timm/test_resnet"


class Dropping(ReIDModel):
    """Draws on its way, as stochastic depth would."""

    def forward(self, images: Tensor):
        return super().forward(torch.nn.functional.dropout(images, 0.2, self.training))


def build(frozen_epochs: int = 0, sync: bool = False) -> ReIDModel:
    torch.manual_seed(0)
    model = make_model(5, ENCODER, image_size=(32, 16), frozen_epochs=frozen_epochs)
    model.__class__ = Dropping
    if sync:
        convert_sync(model)
    model.begin_epoch(0)
    return model


def step(model: ReIDModel, sizes: tuple[int, ...] = SIZES, first: int = 1, precision: str = "no", **speed: bool):
    """The outputs, the gradients and the buffers after one step."""
    images = torch.randn(sum(sizes), 3, 32, 16, generator=torch.Generator().manual_seed(1))
    ranks = VirtualRanks(model, SpeedConfig(**speed), seed=3)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        outputs = ranks(images, sizes, first, 7)
    sum(output.float().square().sum() for output in outputs).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return outputs, gradients, dict(model.named_buffers())


def assert_same(found, wanted, rtol: float = 0.0, atol: float = 0.0) -> None:
    for one, other in zip(found[0], wanted[0], strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)
    for one, other in zip(found[1:], wanted[1:], strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            torch.testing.assert_close(one[name], value, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("frozen_epochs", "precision"), [(0, "no"), (1, "no"), (0, "bf16")])
def test_virtual_ranks_are_processes_of_their_own(frozen_epochs: int, precision: str) -> None:
    """Outputs, draws and gradients of each alone, summed in float32; running statistics of the first."""
    whole = build(frozen_epochs)
    found = step(whole, precision=precision)
    alone = [copy.deepcopy(build(frozen_epochs)) for _ in SIZES]
    images = torch.randn(sum(SIZES), 3, 32, 16, generator=torch.Generator().manual_seed(1)).split(SIZES)
    parts = []
    for number, (model, part) in enumerate(zip(alone, images, strict=True), 1):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            parts.append(VirtualRanks(model, SpeedConfig(), seed=3)(part, (len(part),), number, 7))
        sum(output.float().square().sum() for output in parts[-1]).backward()
    outputs = [torch.cat(together) for together in zip(*parts, strict=True)]
    gradients = {}
    for name, p in alone[0].named_parameters():
        if p.grad is not None:
            gradients[name] = sum(dict(model.named_parameters())[name].grad for model in alone)
    assert_same(found, (outputs, gradients, dict(alone[0].named_buffers())), 1e-4, 1e-4)
    assert whole.neck.num_batches_tracked == 1
    assert all(torch.equal(one, other) for one, other in zip(found[2].values(), alone[0].buffers(), strict=True))


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("sizes", [SIZES, (9,)])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_what_is_computed_again_is_the_same(sizes: tuple[int, ...], sync: bool, precision: str) -> None:
    wanted = step(build(sync=sync), sizes, precision=precision)
    assert_same(step(build(sync=sync), sizes, precision=precision, recompute=True), wanted)


def test_stochastic_depth_is_drawn_for_each_virtual_rank_and_again_when_computed_again() -> None:
    torch.manual_seed(0)
    model = make_model(5, "timm/test_vit", image_size=(32, 16), drop_path=0.5)
    kept = {key: value.clone() for key, value in model.state_dict().items()}

    def computed(sizes: tuple[int, ...], first: int, recompute: bool = False):
        model.load_state_dict(kept)
        model.zero_grad()
        outputs, gradients, buffers = step(model, sizes, first, recompute=recompute)
        return outputs, {key: value.clone() for key, value in gradients.items()}, dict(buffers)

    together = computed(SIZES, 1)
    torch.testing.assert_close(together[0][0][:3], computed((3,), 1)[0][0][:3])
    assert not torch.allclose(together[0][0][:3], computed((3,), 2)[0][0][:3])
    assert_same(computed(SIZES, 1, recompute=True), together)
    checkpoint_blocks(model.encoder, "timm/test_vit")
    for recompute in (False, True):
        assert_same(computed(SIZES, 1, recompute), together)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_compiled_model_computes_the_same(recompute: bool) -> None:
    wanted = step(build())
    model = build()
    model.compile(backend="aot_eager")
    assert_same(step(model, compile=True, recompute=recompute), wanted, 1e-4, 1e-4)


def test_synchronized_layers_see_all_images() -> None:
    assert_same(step(build(sync=True)), step(build(sync=True), (sum(SIZES),)))


def test_the_memory_of_activations_is_that_of_one_virtual_rank() -> None:
    model, images = build(), torch.randn(32, 3, 128, 64)

    def train(number: int, recompute: bool) -> None:
        outputs = VirtualRanks(model, SpeedConfig(recompute=recompute))(images[: 4 * number], (4,) * number, 0, 0)
        sum(output.square().sum() for output in outputs).backward()

    train(1, False)  # makes the gradients, which stay
    one, eight, again = (peak(lambda n=n, r=r: train(n, r)) for n, r in ((1, False), (8, False), (8, True)))
    assert eight > 6 * one and again < 1.3 * one, (one, eight, again)
