"""The feature of an image, computed from a model: after the neck, of the image alone or also of its mirror image, and
all its numbers or the first ones."""

from __future__ import annotations

from torch import Tensor, nn

from reid.model.network import ReIDModel

FLIP_TEST = "flip test"  # its name in reports


class WrongDimensionsError(ValueError):
    """The model was not trained for features of this length."""


def compute_features(model: nn.Module, images: Tensor, flip: bool = False, dimensions: int = 0) -> Tensor:
    """Return the features (B, D) float32 of images, not normalized themselves.

    Args:
        model: in evaluation mode.
        images: (B, 3, H, W) float, normalized.
        flip: return the mean of the features of each image and of its mirror image. Two forward passes, one after
            another, need the memory of one.
        dimensions: D, return the first ones of all numbers; 0 = all. See `check_dimensions`.
    """
    features: Tensor = model(images).float()
    features = (features + model(images.flip(3)).float()) / 2 if flip else features
    return features[:, :dimensions] if dimensions else features


def check_dimensions(dimensions: int, model: ReIDModel, where: str) -> None:
    """Raise WrongDimensionsError if the first numbers of the model's features are no features.

    Args:
        dimensions: how many of the first ones; 0 = all numbers.
        where: name of the model in the error.
    """
    if dimensions in (0, model.dim, *model.nested):
        return
    has = f"dimensions = {dimensions}: the features of {where} have {model.dim} numbers, and"
    if not model.nested:
        raise WrongDimensionsError(
            f"{has} were trained as one; leave it out, or train with model.nested = [{dimensions}]"
        )
    raise WrongDimensionsError(f"{has} were trained at {', '.join(map(str, model.nested))}, too; choose one of these")
