"""The mean, standard deviation and interpolation that an encoder was pre-trained with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple, cast

from reid.config import DataConfig
from reid.data.normalization import IMAGENET_MEAN, IMAGENET_STD, Colour
from reid.model.solider import SIZES
from reid.model.timm_models import TIMM, read_card

HALF: Colour = (0.5, 0.5, 0.5)


class Preprocessing(NamedTuple):
    """As of `data.mean`, `data.std` and `data.interpolation`."""

    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


def own_preprocessing(encoder: str) -> Preprocessing:
    """Return that of an encoder by its name: ImageNet's, unless timm or SOLIDER state another.

    Raises ValueError if timm does not know the model.
    """
    if encoder in SIZES:
        return Preprocessing(HALF, HALF, "bicubic")
    if not encoder.startswith(TIMM):
        return Preprocessing()
    card: dict[str, Any] = read_card(encoder)
    mean, std = (
        tuple(map(float, card.get(name) or own)) for name, own in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))
    )
    is_bilinear = card.get("interpolation") == "bilinear"
    return Preprocessing(cast(Colour, mean), cast(Colour, std), "bilinear" if is_bilinear else "bicubic")


def complete(data: DataConfig, encoder: str) -> DataConfig:
    """Return the section with the encoder's own mean, std and interpolation where it has none."""
    own = own_preprocessing(encoder)
    return replace(
        data,
        mean=data.mean or own.mean,
        std=data.std or own.std,
        interpolation=data.interpolation or own.interpolation,
    )
