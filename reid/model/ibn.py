"""IBN-a: instance and batch normalization side by side in a ResNet (Pan et al., "Two at Once", ECCV 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import ResNet


class InstanceBatchNorm(nn.Module):
    """Instance normalization of the first half of the channels, batch normalization of the rest; (B, C, H, W).

    `IN` and `BN` are their names in published files.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_instance = channels // 2
        self.IN = nn.InstanceNorm2d(self.num_instance, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.num_instance)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.IN(x[:, : self.num_instance]), self.BN(x[:, self.num_instance :])], dim=1)


def add_instance_norm(resnet: ResNet) -> None:
    """Replace the first normalization of each block but those of the last stage: shallow layers see style, the last
    ones tell identities apart."""
    for stage in (resnet.layer1, resnet.layer2, resnet.layer3):
        for block in stage:
            block.bn1 = InstanceBatchNorm(block.bn1.num_features)
