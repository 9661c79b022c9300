"""reid/model/drop_path.py and checkpointing.py: what is left out and computed again, and in which encoders."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ConvNeXt, SwinTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.ops import StochasticDepth

from reid.model.checkpointing import checkpoint_blocks
from reid.model.drop_path import DropPath, set_drop_path
from reid.model.encoders import ImageTransformer
from reid.model.solider import SoliderSwin
from tests.support.models import make_encoder, small_vit


def test_branches_are_left_out_for_some_images_and_the_others_grow() -> None:
    branch = DropPath()
    x = torch.ones(2000, 3, 1)
    assert branch(x) is x
    branch.p = 0.2
    assert branch.eval()(x) is x
    out = branch.train()(x)
    assert torch.equal(out, out[:, :1].expand_as(out)) and out.unique().tolist() == [0.0, 1.25]
    assert (out == 0).float().mean().item() == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("name", ["solider_swin_t", "swin_t", "convnext_tiny", "timm/test_vit", "timm/test_resnet"])
def test_the_chance_rises_from_the_first_block_to_the_last(name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="timm, an optional dependency, is not installed")
    with torch.device("meta"):
        encoder, _ = make_encoder(name, drop_path=0.3, image_size=(32, 32))
        own, _ = make_encoder(name, image_size=(32, 32))
    # timm has no module where the chance is 0
    found = [c for module in encoder.modules() if (c := getattr(module, "drop_prob", getattr(module, "p", None)))]
    assert found == sorted(found) and found[-1] == pytest.approx(0.3) and len(set(found)) > 2
    # null leaves the chances of torchvision as they are
    assert max((module.p for module in own.modules() if isinstance(module, StochasticDepth)), default=0) == {
        "swin_t": 0.2, "convnext_tiny": 0.1,
    }.get(name, 0)  # fmt: skip


@pytest.mark.parametrize("name", ["resnet18", "resnet50_ibn_a", "osnet_x0_25", "vit_b_16", "timm/vgg11"])
def test_encoders_without_stochastic_depth_are_refused(name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="timm, an optional dependency, is not installed")
    words = rf"model\.drop_path = 0\.3: {name} has no residual .*leave it at null"
    with torch.device("meta"), pytest.raises(ValueError, match=words):
        make_encoder(name, drop_path=0.3)


def test_zero_is_allowed_for_each_of_our_encoders() -> None:
    with torch.device("meta"):
        make_encoder("resnet18", drop_path=0.0)


def small_swin() -> nn.Module:
    return SwinTransformer([4, 4], 8, [2, 2], [1, 2], [7, 7], num_classes=4)


def small_convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 3)], num_classes=4)


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "solider": lambda: SoliderSwin(8, (2, 2), (1, 2)),
    "swin": small_swin,
    "convnext": small_convnext,
    "vit": lambda: ImageTransformer(small_vit(), 64, 32),
    "timm/test_vit": lambda: make_encoder("timm/test_vit", drop_path=0.5, image_size=(64, 32))[0],
}


@pytest.mark.parametrize("name", ENCODERS)
def test_checkpointed_blocks_give_the_same_numbers_and_keep_less(name: str) -> None:
    """Outputs and gradients bit by bit, with the same draws."""
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="timm, an optional dependency, is not installed")
    torch.manual_seed(0)
    encoder = ENCODERS[name]()
    if name in ("solider", "swin", "convnext"):
        set_drop_path(encoder, name, 0.5)
    images = torch.randn(4, 3, 64, 32)

    def compute() -> tuple[list[Tensor], int]:
        kept: list[Tensor] = []
        torch.manual_seed(1)
        encoder.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            out = encoder(images)
            out.square().sum().backward()
        gradients = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
        return [out.detach(), *gradients], sum(value.nbytes for value in kept)

    wanted, all_bytes = compute()
    names = list(encoder.state_dict())
    checkpoint_blocks(encoder, name)
    found, bytes_kept = compute()
    assert list(encoder.state_dict()) == names and bytes_kept < 0.6 * all_bytes
    assert len(found) == len(wanted) > 10
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    with torch.inference_mode():
        assert encoder.eval()(images).isfinite().all()


@pytest.mark.parametrize(
    "name", ["resnet18", "osnet_x0_25", "timm/test_resnet", "timm/vgg11", "timm/crossvit_tiny_240"]
)
def test_encoders_without_blocks_to_compute_again_are_refused(name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="timm, an optional dependency, is not installed")
    with torch.device("meta"):
        encoder, _ = make_encoder(name, image_size=(240, 240), last_stride=2 if "resnet" in name else 1)
    with pytest.raises(ValueError, match=rf"gradient_checkpointing = true: {name} is no .*use speed\.recompute"):
        checkpoint_blocks(encoder, name)
