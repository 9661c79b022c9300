"""How deep in its encoder a parameter lies, for learning rates that fall from the last layers to the first."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from reid.model.timm_models import TIMM, import_timm, is_timm_resnet

# Of our encoders: the stages of ResNets and OSNets, the blocks of Swin, ConvNeXt, SOLIDER's Swin and ViT. What follows
# one of them and is none itself, such as the merging of patches or the last normalization, belongs to it.
LAYER = re.compile(r"layer\d|conv\d|features\.[1357]\.\d+|stages\.\d+\.blocks\.\d+|encoder\.layers\.\w+")


def find_depths(encoder: nn.Module, name: str) -> Mapping[str, int]:
    """Return the distance of each parameter from the heads: 1 in the last layer of the encoder, more before.

    A layer is a block of a transformer or ConvNeXt, or a stage of a ResNet or OSNet, with the stem as the first. Models
    of timm are cut as timm cuts them.

    Args:
        encoder: as `build_encoder` returns it.
        name: its `model.encoder`.

    Raises:
        ValueError: names a model of timm that cannot be cut into layers.
    """
    layers = _layers_of_timm(encoder, name) if name.startswith(TIMM) else _layers_by_name(encoder)
    last = max(layers.values())
    if not last:
        raise ValueError(f"optim.layer_decay: {name} has no layers that can be told apart; set it to 1")
    return {parameter: last + 1 - layer for parameter, layer in layers.items()}


def _layers_of_timm(encoder: nn.Module, name: str) -> dict[str, int]:
    match = getattr(encoder, "group_matcher", None)
    if match is None:
        raise ValueError(f"optim.layer_decay: timm does not say what the layers of {name} are; set it to 1")
    matcher = match(coarse=is_timm_resnet(name))
    layers: dict[str, int] = import_timm().models.group_parameters(encoder, matcher, reverse=True)
    return layers


def _layers_by_name(encoder: nn.Module) -> dict[str, int]:
    layers: dict[str, int] = {}
    current, number = "", 0
    for parameter, _ in encoder.named_parameters():
        found = LAYER.match(parameter)
        if found and found[0] != current:
            number += bool(layers)
            current = found[0]
        layers[parameter] = number
    return layers
