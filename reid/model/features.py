"""The feature of an image, computed from a model: after the neck, of the image alone or also of its mirror image."""

from __future__ import annotations

from torch import Tensor, nn

FLIP_TEST = "flip test"  # its name in reports


def compute_features(model: nn.Module, images: Tensor, flip: bool = False) -> Tensor:
    """Return the features (B, D) float32 of normalized images (B, 3, H, W), not normalized themselves.

    flip: return the mean of the features of each image and of its mirror image. Two forward passes, one after another,
        need the memory of one.
    """
    features: Tensor = model(images).float()
    return (features + model(images.flip(3)).float()) / 2 if flip else features
