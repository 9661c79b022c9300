"""The mean and standard deviation with which pixels become the encoder's input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from reid.config import DataConfig

Colour = tuple[float, float, float]  # of red, green and blue; 1 is the brightest
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)
BILINEAR = "bilinear"


@dataclass(frozen=True)
class Normalization:
    """To mean 0 and standard deviation 1 of each channel, over the pictures that an encoder was pre-trained on."""

    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD

    @classmethod
    def from_config(cls, data: DataConfig) -> Normalization:
        """Return that of a run; without one in its configuration (in earlier versions), ImageNet's."""
        return cls(data.mean or IMAGENET_MEAN, data.std or IMAGENET_STD)

    def apply(self, images: Tensor) -> Tensor:
        """Return uint8 images (B, 3, H, W) as normalized float32."""
        mean, std = _to_device(self, images.device)
        return (images.float() - mean) / std

    def invert(self, pixels: Tensor) -> Tensor:
        """Return the inverse of `apply`, rounded and clipped to uint8."""
        mean, std = _to_device(self, pixels.device)
        return (pixels * std + mean).round().clamp(0, 255).to(torch.uint8)


IMAGENET = Normalization()


@cache
def _to_device(normalization: Normalization, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (1, 3, 1, 1) of pixel values 0 to 255, on the device."""
    with torch.inference_mode(False):
        colours = (normalization.mean, normalization.std)
        mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in colours)
        return mean * 255, std * 255


def describe_pixels(data: DataConfig) -> dict[str, Any]:
    """Return how pictures become the encoder's input, by knob; JSON. Earlier versions: that of `DataConfig()`."""
    normalization = Normalization.from_config(data)
    return {
        "data.mean": list(normalization.mean),
        "data.std": list(normalization.std),
        "data.interpolation": data.interpolation or BILINEAR,
    }
