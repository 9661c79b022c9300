"""Small models, and models and encoders by their knobs."""

from typing import Any

import torch
from torch import nn
from torchvision.models import VisionTransformer

from reid.config import ModelConfig
from reid.model.encoders import build_encoder
from reid.model.network import ReIDModel
from reid.model.pretrained import initialize


def make_model(
    num_classes: int, encoder: str = "resnet10", *, image_size: tuple[int, int] = (256, 128), **knobs: Any
) -> ReIDModel:
    return ReIDModel(num_classes, model_config(encoder, **knobs), image_size)


def make_encoder(
    encoder: str, weights: str = "none", *, image_size: tuple[int, int] = (256, 128), **knobs: Any
) -> tuple[nn.Module, int]:
    built, dim, _ = load_encoder(encoder, weights, image_size=image_size, **knobs)
    return built, dim


def load_encoder(
    encoder: str, weights: str = "none", *, image_size: tuple[int, int] = (256, 128), **knobs: Any
) -> tuple[nn.Module, int, str]:
    """An encoder, its dimension, and what its weights are said to be."""
    config = model_config(encoder, weights, **knobs)
    built, dim = build_encoder(config, image_size)
    return built, dim, initialize(built, config)


def model_config(encoder: str = "resnet10", weights: str = "none", **knobs: Any) -> ModelConfig:
    config = ModelConfig(encoder=encoder, weights=weights)
    for name, value in knobs.items():  # set later, because ModelConfig refuses to freeze an encoder without weights
        assert hasattr(config, name), name
        setattr(config, name, value)
    return config


def small_vit(image_size: int = 32) -> VisionTransformer:
    torch.manual_seed(0)
    vit = VisionTransformer(image_size, patch_size=8, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=20)
    nn.init.normal_(vit.class_token)
    nn.init.normal_(vit.conv_proj.bias)
    nn.init.normal_(vit.encoder.pos_embedding)
    return vit
