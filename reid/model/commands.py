"""The commands of `reid model`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from reid.config import DataConfig, ModelConfig
from reid.files import hash_file
from reid.model.contents import describe_file
from reid.model.encoders import ENCODERS, build_encoder
from reid.model.hub import resolve
from reid.model.preprocessing import own_preprocessing
from reid.model.published import cached_file, fetch, fix_of
from reid.model.timm_models import TIMM


def inspect_file(file: str, encoders: Sequence[str] | None, key: str) -> None:
    """Print what a file of weights holds. encoders: that it is compared with; None = all of ours. key: a part of it."""
    print(describe_file(Path(resolve(file)), encoders or ENCODERS, key))


def list_encoders() -> None:
    """Print all encoders, their parameters, and where their weights are."""
    height, width = DataConfig().image_size
    print(f"default size of all: {height} x {width} pixels (data.height, data.width)")
    print(f"{'encoder':<18}{'dim':>5}{'parameters':>13}  {'mean':<18}{'std':<18}{'resized':<10}ImageNet weights")
    for name in ENCODERS:
        with torch.device("meta"):
            encoder, dim = build_encoder(ModelConfig(encoder=name, weights="none"), (height, width))
        size = sum(parameter.numel() for parameter in encoder.parameters())
        own = own_preprocessing(name)
        mean, std = (" ".join(f"{value:.3f}" for value in values) for values in (own.mean, own.std))
        where = fix_of(name) or f"{cached_file(name)}{'' if cached_file(name).is_file() else ' (not fetched)'}"
        print(f"{name:<18}{dim:>5}{size:>13,}  {mean:<18}{std:<18}{own.interpolation:<10}{where}")
    print(
        f"{TIMM + '<name>':<18}  any model of timm (pip install timm); timm/hf-hub:ORG/NAME: one of Hugging Face's hub"
    )


def fetch_weights(name: str) -> None:
    """Download weights, and print their hash, with which a copy on another machine can be compared."""
    if name.startswith(TIMM):
        build_encoder(ModelConfig(encoder=name, weights="imagenet"), DataConfig().image_size)
        print(f"{name}: in the Hugging Face cache")
        return
    if name not in ENCODERS:
        raise ValueError(f"{name} is not an encoder; choose from {', '.join(ENCODERS)}, or timm/<a model of timm>")
    path = fetch(name)
    print(f"{path} sha256 {hash_file(path)}")
