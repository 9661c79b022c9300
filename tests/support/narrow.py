"""A ResNet-10 with an eighth of the channels, where a test is about what happens to a network and not in it."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from reid.model import encoders

SHARE = 8


class NarrowResNet10(ResNet):
    """The layers and names of resnet10 with 80 thousand parameters instead of 5 million; 64 features instead of 512."""

    def __init__(self) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 1])
        self.fc = nn.Linear(self.fc.in_features // SHARE, 1)

    def _make_layer(self, block: type[BasicBlock], planes: int, *rest: Any, **knobs: Any) -> nn.Sequential:
        if not hasattr(self, "layer1"):  # the stem is there, as wide as torchvision makes it
            self.inplanes //= SHARE
            self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(self.inplanes)
        return super()._make_layer(block, planes // SHARE, *rest, **knobs)


def use_narrow_resnet10(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `model.encoder = resnet10` build the narrow one in this process."""
    monkeypatch.setattr(encoders, "resnet10", NarrowResNet10)
