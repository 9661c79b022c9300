"""Encoders: images (B, 3, H, W) to one vector (B, D) each; our own, torchvision's without classifier, or any of timm.

Modules keep the names of published files, which load as they are. Feature maps are pooled by GAP or
GeM; a ViT gives its class token, and timm's models pool as they were trained to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from reid.config import ModelConfig
from reid.model.drop_path import set_drop_path
from reid.model.osnet import DIM, OSNet
from reid.model.solider import SIZES, SoliderSwin
from reid.model.timm_models import TIMM, build_timm, is_timm_resnet

if TYPE_CHECKING:
    from torchvision.models import ResNet, VisionTransformer

ENCODERS = (
    "resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "resnext101_32x8d",
    "resnet50_ibn_a", "resnet101_ibn_a", "osnet_x1_0", "osnet_x0_75", "osnet_x0_5", "osnet_x0_25", "osnet_ain_x1_0",
    "convnext_tiny", "convnext_small", "convnext_base", "swin_t", "swin_s", "swin_b", *SIZES, "vit_b_16",
)  # fmt: skip


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
        config: its encoder, strides, pool and drop_path; its weights only for timm, which loads published ones as it
            builds. A stride other than the default is refused for encoders without that stage, GeM for those that pool
            nothing or by themselves, and drop_path for those without blocks that can be left out.
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
    is_resnet = name.startswith(("resnet", "resnext"))
    for knob, value, default in (("last_stride", config.last_stride, 1), ("stem_stride", config.stem_stride, 4)):
        if value != default and not is_resnet and not (knob == "last_stride" and is_timm_resnet(name)):
            raise ValueError(f"model.{knob} = {value}: only ResNets have it, not {name}; leave it at {default}")
    if config.pool == "gem" and (is_timm or name.startswith("vit")):
        what = "timm's models pool by themselves" if is_timm else "a ViT gives its class token and pools nothing"
        raise ValueError(f"model.pool = gem: {what}; use model.pool = gap with {name}")
    if is_timm:
        return build_timm(config, image_size)
    encoder: nn.Module
    pool = GeneralizedMean() if config.pool == "gem" else nn.AdaptiveAvgPool2d(1)
    if name.startswith("osnet"):
        width = name.rpartition("_x")[2].replace("_", ".")
        osnet = OSNet(float(width), ain="_ain" in name)
        osnet.avgpool = pool
        encoder, dim = osnet, DIM
    elif name in SIZES:
        swin = SoliderSwin(*SIZES[name])
        swin.avgpool = pool
        encoder, dim = swin, 8 * SIZES[name][0]
    else:
        encoder, dim = _build_torchvision(config, image_size, pool)
    if config.drop_path is not None:
        set_drop_path(encoder, name, config.drop_path)
    return encoder, dim


def resnet10() -> ResNet:
    """Return a ResNet with one basic block per stage, for work on CPUs. There are no published weights for it."""
    from torchvision.models import ResNet
    from torchvision.models.resnet import BasicBlock

    return ResNet(BasicBlock, [1, 1, 1, 1])


def _build_torchvision(config: ModelConfig, image_size: tuple[int, int], pool: nn.Module) -> tuple[nn.Module, int]:
    """Build the model without its ImageNet classifier, and with our pooling if it pools."""
    from torchvision.models import ConvNeXt, ResNet, SwinTransformer, VisionTransformer, get_model

    from reid.model.ibn import add_instance_norm

    name = config.encoder.removesuffix("_ibn_a")
    encoder = resnet10() if name == "resnet10" else get_model(name, weights=None)
    if isinstance(encoder, VisionTransformer):
        return ImageTransformer(encoder, *image_size), int(encoder.hidden_dim)
    encoder.avgpool = pool
    if isinstance(encoder, ResNet):
        if name != config.encoder:
            add_instance_norm(encoder)
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
