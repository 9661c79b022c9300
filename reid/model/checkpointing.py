"""Gradient checkpointing: what a block computes inside is computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from reid.model.solider import Block
from reid.model.timm_models import TIMM


class Checkpointed(nn.Sequential):
    """Blocks one after another, of which only the inputs are kept. Draws (stochastic depth) are repeated."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = checkpoint(block, x, use_reentrant=False) if torch.is_grad_enabled() else block(x)
        return x


def checkpoint_blocks(encoder: nn.Module, name: str) -> None:
    """Make an encoder keep only the inputs of its blocks. Parameters, their names and all results stay the same.

    Args:
        encoder: as `build_encoder` returns it.
        name: its `model.encoder`.

    Raises:
        ValueError: it has no blocks that can be computed again, or BatchNorm, whose statistics would move twice.
    """
    has_batch_norm = any(isinstance(module, _BatchNorm) for module in encoder.modules())
    if has_batch_norm or not (_checkpoint_timm(encoder) if name.startswith(TIMM) else _checkpoint_ours(encoder)):
        raise ValueError(
            f"speed.gradient_checkpointing = true: {name} is no transformer with blocks that can be computed again; "
            "use speed.recompute, which computes the entire model again"
        )


def _checkpoint_timm(encoder: nn.Module) -> bool:
    try:
        encoder.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError):  # the second is timm's way to say that a model does not support it
        return False
    return True


def _checkpoint_ours(encoder: nn.Module) -> bool:
    from torchvision.models.convnext import CNBlock
    from torchvision.models.swin_transformer import SwinTransformerBlock
    from torchvision.models.vision_transformer import EncoderBlock

    kinds = Block | CNBlock | SwinTransformerBlock | EncoderBlock
    stages = [
        (path, module)
        for path, module in encoder.named_modules()
        if isinstance(module, nn.Sequential) and len(module) and all(isinstance(block, kinds) for block in module)
    ]
    for path, stage in stages:
        encoder.set_submodule(path, Checkpointed(OrderedDict(stage.named_children())))
    return bool(stages)
