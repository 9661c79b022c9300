"""The network: encoder, pooling, neck (BNNeck) and classifier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from reid.augment import denormalize


def resnet10(weights: Any = None) -> ResNet:
    """A ResNet with one basic block per stage, for work on CPUs. Nobody publishes weights for it."""
    if weights is not None:
        raise ValueError(
            "model.weights = imagenet: there are no ImageNet weights for resnet10; use model.weights = none"
        )
    return ResNet(BasicBlock, [1, 1, 1, 1])


ENCODERS: dict[str, Callable[..., ResNet]] = {
    "resnet10": resnet10,
    "resnet18": torchvision.models.resnet18,
    "resnet34": torchvision.models.resnet34,
    "resnet50": torchvision.models.resnet50,
}


class GeneralizedMean(nn.Module):
    """GeM pooling (Radenović et al., 2018): (mean of x^p)^(1/p) with a learned p, starting at 3."""

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x.float().clamp(min=self.eps).pow(self.p).mean(dim=(2, 3), keepdim=True).pow(1.0 / self.p)


class ReIDModel(nn.Module):
    """Encoder -> pooled feature f -> BNNeck -> classifier (Luo et al., "Bag of Tricks", 2019).

    In training `forward(images)` gives (f, logits): f (B, D) before the neck feeds the metric losses, logits (B, C)
    the cross-entropy. In evaluation it gives the feature after the neck (B, D), not normalised.
    """

    def __init__(
        self,
        num_classes: int,
        encoder: str = "resnet50",
        weights: str = "none",
        last_stride: int = 1,
        stem_stride: int = 4,
        pool: str = "gap",
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder, weights, last_stride, stem_stride)
        self.dim = int(self.encoder.fc.in_features)
        self.encoder.fc = nn.Identity()
        self.encoder.avgpool = GeneralizedMean() if pool == "gem" else nn.AdaptiveAvgPool2d(1)
        self.neck = nn.BatchNorm1d(self.dim)
        self.neck.bias.requires_grad_(False)
        self.classifier = nn.Linear(self.dim, num_classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        feature = self.encoder(images)
        after_neck = self.neck(feature)
        if not self.training:
            return after_neck
        return feature, self.classifier(after_neck)


def build_encoder(name: str, weights: str, last_stride: int, stem_stride: int) -> ResNet:
    """A torchvision ResNet with its strides changed; weights: imagenet, none or a local file."""
    if name not in ENCODERS:
        raise ValueError(f"model.encoder = {name!r}; choose one of {', '.join(ENCODERS)}")
    encoder = ENCODERS[name](weights=None) if weights != "imagenet" else _with_imagenet_weights(name)
    if weights not in ("imagenet", "none"):
        load_encoder_weights(encoder, Path(weights))
    if last_stride == 1:
        _remove_stride(encoder.layer4[0])
    if stem_stride < 4:
        encoder.maxpool = nn.Identity()
    if stem_stride < 2:
        encoder.conv1.stride = (1, 1)
    return encoder


def _remove_stride(block: nn.Module) -> None:
    for module in block.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.stride = (1, 1)


def _with_imagenet_weights(name: str) -> ResNet:
    if name == "resnet10":
        return resnet10(weights="imagenet")
    try:
        return ENCODERS[name](weights="IMAGENET1K_V1")
    except OSError as error:  # urllib's errors are OSErrors
        raise ValueError(
            f"model.weights = imagenet: the weights of {name} are neither in torch's cache nor can they be downloaded "
            f"({error}); on a machine with internet run `python -c 'import torchvision; "
            f'torchvision.models.{name}(weights="IMAGENET1K_V1")\'` and copy '
            f"{torch.hub.get_dir()}/checkpoints here, or give model.weights a local file, or none"
        ) from error


def load_encoder_weights(encoder: ResNet, path: Path) -> None:
    """Load a .safetensors or .pth state dict; a classifier (fc.*) in it is ignored. Errors name what does not fit."""
    if not path.is_file():
        raise ValueError(f"model.weights = {path}: no such file; give imagenet, none or a local file")
    state = (
        load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    )
    state = {name.removeprefix("encoder."): value for name, value in state.items()}
    own = {name: value for name, value in encoder.state_dict().items() if not name.startswith("fc.")}
    wrong = [name for name, value in own.items() if name not in state or state[name].shape != value.shape]
    if wrong:
        raise ValueError(
            f"model.weights = {path}: {len(wrong)} of {len(own)} tensors are absent or of another shape, the first "
            f"{wrong[0]}; is the file of another encoder?"
        )
    encoder.load_state_dict({name: state[name] for name in own}, strict=False)


class ColourHistogram(nn.Module):
    """A baseline without learning: joint colour histograms of horizontal stripes, with the model's interface.

    Takes normalised images (B, 3, H, W) and gives (B, stripes * bins^3) square-rooted histograms.
    """

    def __init__(self, stripes: int = 4, bins: int = 4) -> None:
        super().__init__()
        self.stripes, self.bins = stripes, bins

    def forward(self, images: Tensor) -> Tensor:
        colours = denormalize(images).long() * self.bins // 256
        joint = (colours[:, 0] * self.bins + colours[:, 1]) * self.bins + colours[:, 2]
        parts = [stripe.flatten(1) for stripe in joint.tensor_split(self.stripes, dim=1)]
        counts = [
            torch.zeros(len(part), self.bins**3, device=part.device).scatter_add(1, part, torch.ones_like(part).float())
            for part in parts
        ]
        return torch.cat([(count / count.sum(dim=1, keepdim=True)).sqrt() for count in counts], dim=1)
