"""Encoders: images (B, 3, H, W) to one vector (B, D) each; torchvision's models without classifier, or any of timm.

Modules keep torchvision's (or timm's) names, so published files load as they are. Feature maps are pooled by GAP or
GeM; a ViT gives its class token, and timm's models pool as they were trained to.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from reid.config import ModelConfig

if TYPE_CHECKING:
    from torchvision.models import ResNet, VisionTransformer

ENCODERS = (
    "resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "resnext101_32x8d",
    "convnext_tiny", "convnext_small", "convnext_base", "swin_t", "swin_s", "swin_b", "vit_b_16",
)  # fmt: skip
TIMM = "timm/"


class GeneralizedMean(nn.Module):
    """GeM pooling (Radenović et al., 2018): (mean of x^p)^(1/p) with a learned p, starting at 3; (B, C, 1, 1) float32.

    Values below eps count as eps, so of signed maps (ConvNeXt, Swin) it sees only the positive part.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x.float().clamp(min=self.eps).pow(self.p).mean(dim=(2, 3), keepdim=True).pow(1.0 / self.p)


class ImageTransformer(nn.Module):
    """torchvision's ViT for images of one size, square or not: the class token (B, D) after the last layer.

    Its position embeddings fit the grid of patches of (height, width). At the ViT's own size the result is exactly
    torchvision's.
    """

    def __init__(self, vit: VisionTransformer, height: int, width: int) -> None:
        super().__init__()
        patch = vit.patch_size
        if height % patch or width % patch:
            raise ValueError(
                f"model.encoder: a ViT cuts images into patches of {patch} x {patch} pixels; data.height = {height} "
                f"and data.width = {width} must be multiples of {patch}"
            )
        self.grid = (height // patch, width // patch)
        self.class_token, self.conv_proj, self.encoder = vit.class_token, vit.conv_proj, vit.encoder
        if (height, width) != (vit.image_size, vit.image_size):
            shape = (1, 1 + self.grid[0] * self.grid[1], vit.hidden_dim)
            self.encoder.pos_embedding = nn.Parameter(torch.empty(shape).normal_(std=0.02))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv_proj(images)
        assert tuple(patches.shape[2:]) == self.grid, f"{tuple(images.shape[2:])} pixels, built for {self.grid} patches"
        tokens = patches.flatten(2).transpose(1, 2)
        encoded: Tensor = self.encoder(torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1))
        return encoded[:, 0]


def build_encoder(config: ModelConfig, image_size: tuple[int, int]) -> tuple[nn.Module, int]:
    """Build an encoder. `reid.model.pretrained.initialize` gives it its initial weights.

    Args:
        config: its encoder, strides and pool; its weights only for timm, which loads published ones as it builds. A
            stride other than the default is refused for encoders without that stage, and GeM for those that pool
            nothing or by themselves.
        image_size: (height, width) of the images. Only transformers depend on it.

    Returns:
        The encoder, and the length D of its vectors.

    Raises:
        ValueError: names the knob that does not fit the encoder.
    """
    name = config.encoder
    is_timm = name.startswith(TIMM)
    if name not in ENCODERS and not is_timm:
        raise ValueError(f"model.encoder = {name!r}; choose one of {', '.join(ENCODERS)}, or timm/<a model of timm>")
    if not name.startswith(("resnet", "resnext")):
        for knob, default in (("last_stride", 1), ("stem_stride", 4)):
            if (value := getattr(config, knob)) != default:
                raise ValueError(f"model.{knob} = {value}: only ResNets have it, not {name}; leave it at {default}")
    if config.pool == "gem" and (is_timm or name.startswith("vit")):
        what = "timm's models pool by themselves" if is_timm else "a ViT gives its class token and pools nothing"
        raise ValueError(f"model.pool = gem: {what}; use model.pool = gap with {name}")
    return (_build_timm if is_timm else _build_torchvision)(config, image_size)


def resnet10() -> ResNet:
    """Return a ResNet with one basic block per stage, for work on CPUs. There are no published weights for it."""
    from torchvision.models import ResNet
    from torchvision.models.resnet import BasicBlock

    return ResNet(BasicBlock, [1, 1, 1, 1])


def _build_torchvision(config: ModelConfig, image_size: tuple[int, int]) -> tuple[nn.Module, int]:
    """Build the model without its ImageNet classifier, and with our pooling if it pools."""
    from torchvision.models import ConvNeXt, ResNet, SwinTransformer, VisionTransformer, get_model

    encoder = resnet10() if config.encoder == "resnet10" else get_model(config.encoder, weights=None)
    if isinstance(encoder, VisionTransformer):
        return ImageTransformer(encoder, *image_size), int(encoder.hidden_dim)
    encoder.avgpool = GeneralizedMean() if config.pool == "gem" else nn.AdaptiveAvgPool2d(1)
    if isinstance(encoder, ResNet):
        if config.last_stride == 1:
            for module in encoder.layer4[0].modules():
                if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                    module.stride = (1, 1)
        if config.stem_stride < 4:
            encoder.maxpool = nn.Identity()
        if config.stem_stride < 2:
            encoder.conv1.stride = (1, 1)
        dim, encoder.fc = encoder.fc.in_features, nn.Identity()
    elif isinstance(encoder, SwinTransformer):
        dim, encoder.head = encoder.head.in_features, nn.Identity()
    else:
        assert isinstance(encoder, ConvNeXt)  # whose classifier begins with a LayerNorm that belongs to the encoder
        dim, encoder.classifier[2] = encoder.classifier[2].in_features, nn.Identity()
    return encoder, int(dim)


def _build_timm(config: ModelConfig, image_size: tuple[int, int]) -> tuple[nn.Module, int]:
    """Build a model of timm by its name there; weights = imagenet are those that timm publishes for it."""
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError as error:
        raise ValueError("model.encoder = timm/...: timm is not installed; run `pip install timm`") from error
    name = config.encoder.removeprefix(TIMM)
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0][:6]}*")[:5]) or "timm.list_models() has them all"
        raise ValueError(f"model.encoder = timm/{name}: timm {timm.__version__} has no such model; near: {near}")
    knobs: dict[str, Any] = {"num_classes": 0, "pretrained": config.weights == "imagenet"}
    known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if known is not None and known.fixed_input_size:
        knobs["img_size"] = image_size
    try:
        encoder = timm.create_model(name, **knobs)
    except Exception as error:  # the hub's, HTTP's and timm's own errors have no common base
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"model.encoder = timm/{name}: {reason}; for its weights run `python -m reid.model fetch timm/{name}` on a "
            "machine with internet and copy the Hugging Face cache (HF_HOME) here, or give model.weights a local file"
        ) from error
    if getattr(encoder, "pos_embed", None) is not None:
        encoder.grid = getattr(getattr(encoder, "patch_embed", None), "grid_size", None)
    dim: Any = getattr(encoder, "head_hidden_size", encoder.num_features)
    return encoder, int(dim)
