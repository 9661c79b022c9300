"""Stochastic depth: residual branches that are left out by chance in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Leaves out a branch (B, ...) for each image with probability `p` in training, and divides the others by 1 - p.

    Huang et al., "Deep Networks with Stochastic Depth", 2016. It draws from torch's generator of the device, which
    `VirtualRanks` seeds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.p = 0.0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        kept = torch.empty(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(1 - self.p)
        return x * (kept / (1 - self.p))


def set_drop_path(encoder: nn.Module, name: str, rate: float) -> None:
    """Let the probability rise linearly from 0 in the first block of an encoder to `rate` in the last.

    Args:
        encoder: ours or torchvision's.
        name: its `model.encoder`.
        rate: `model.drop_path`.

    Raises:
        ValueError: the encoder has no blocks that can be left out.
    """
    from torchvision.ops import StochasticDepth

    blocks = [module for module in encoder.modules() if isinstance(module, DropPath | StochasticDepth)]
    if rate and not blocks:
        raise drop_path_error(name, rate)
    for number, block in enumerate(blocks):
        block.p = rate * number / max(len(blocks) - 1, 1)


def drop_path_error(name: str, rate: float) -> ValueError:
    """Return the error for an encoder without stochastic depth."""
    return ValueError(
        f"model.drop_path = {rate}: {name} has no residual blocks that can be left out; leave it at null, or choose a "
        "transformer, a ConvNeXt or a ResNet of timm"
    )
