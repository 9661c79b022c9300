"""The network: encoder, pooling, neck (BNNeck) and classifier."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
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


class Classifier(nn.Module):
    """Identity logits (B, C) from features after the neck (B, D); weight (C, D) starts as N(0, 0.001). T: temperature.

    linear: w·f / T. cosine: cos(w, f) / T. euclidean: -|f - w|^2 / T with w a learned center per identity, up to the
    term |f|^2 that all identities share and the softmax does not see (the classifier that the MCTL paper leaves for
    future work). Cosine and euclidean run in float32.
    """

    def __init__(self, dim: int, num_classes: int, head: str = "linear", temperature: float = 1.0) -> None:
        super().__init__()
        if head not in ("linear", "cosine", "euclidean"):
            raise ValueError(f"model.head = {head!r}; choose linear, cosine or euclidean")
        if not temperature > 0:
            raise ValueError(f"model.head_temperature = {temperature} must be greater than 0")
        self.head, self.temperature = head, temperature
        self.weight = nn.Parameter(torch.empty(num_classes, dim).normal_(std=0.001))

    def forward(self, features: Tensor) -> Tensor:
        if self.head == "linear":
            return F.linear(features, self.weight) / self.temperature
        with torch.autocast(features.device.type, enabled=False):
            features, weight = features.float(), self.weight.float()
            if self.head == "cosine":
                return F.linear(F.normalize(features), F.normalize(weight)) / self.temperature
            return (2 * F.linear(features, weight) - weight.square().sum(dim=1)) / self.temperature


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
        head: str = "linear",
        head_temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder, weights, last_stride, stem_stride)
        self.dim = int(self.encoder.fc.in_features)
        self.encoder.fc = nn.Identity()
        self.encoder.avgpool = GeneralizedMean() if pool == "gem" else nn.AdaptiveAvgPool2d(1)
        self.neck = nn.BatchNorm1d(self.dim)
        self.neck.bias.requires_grad_(False)
        self.classifier = Classifier(self.dim, num_classes, head, head_temperature)

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
    state = {name.removeprefix("encoder."): value for name, value in read_weights(path).items()}
    own = {name: value for name, value in encoder.state_dict().items() if not name.startswith("fc.")}
    wrong = [name for name, value in own.items() if name not in state or state[name].shape != value.shape]
    if wrong:
        raise ValueError(
            f"model.weights = {path}: {len(wrong)} of {len(own)} tensors are absent or of another shape, the first "
            f"{wrong[0]}; is the file of another encoder?"
        )
    encoder.load_state_dict({name: state[name] for name in own}, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or a .pth file (also nested under "state_dict"); no code in it is run."""
    if not path.is_file():
        raise ValueError(f"model.weights = {path}: no such file; give imagenet, none or a local file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:  # torch and safetensors raise many kinds; each means that this file is of no use
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"model.weights = {path}: not a file of tensors: {reason}") from error


class ColourHistogram(nn.Module):
    """A baseline without learning: joint RGB histograms of horizontal stripes of the middle of the image.

    Takes normalised images (B, 3, H, W), as the model does, and gives (B, stripes * product of bins) square roots of
    shares. Sides are cut off because there the background outweighs the person.
    """

    def __init__(self, stripes: int = 6, bins: tuple[int, int, int] = (3, 8, 8), side: float = 0.22) -> None:
        super().__init__()
        self.stripes, self.bins, self.side = stripes, bins, side

    def forward(self, images: Tensor) -> Tensor:
        cut = round(self.side * images.shape[3])
        colours = denormalize(images[..., cut : images.shape[3] - cut]).long()
        red, green, blue = (colours[:, i] * self.bins[i] // 256 for i in range(3))
        joint = (red * self.bins[1] + green) * self.bins[2] + blue
        num_bins = math.prod(self.bins)
        parts = [stripe.flatten(1) for stripe in joint.tensor_split(self.stripes, dim=1)]
        counts = [
            torch.zeros(len(part), num_bins, device=part.device).scatter_add(1, part, torch.ones_like(part).float())
            for part in parts
        ]
        return torch.cat([(count / count.sum(dim=1, keepdim=True)).sqrt() for count in counts], dim=1)
