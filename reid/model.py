"""The network: encoder, neck (BNNeck) and classifier; and `python -m reid.model`, which fetches weights of encoders."""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reid.data.augmentation import denormalize
from reid.encoders import ENCODERS, TIMM, build_encoder
from reid.weights import cached_file, fetch


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
    """Encoder -> feature f -> BNNeck -> classifier (Luo et al., "Bag of Tricks", 2019).

    In training `forward(images)` gives (f, logits): f (B, D) before the neck feeds the metric losses, logits (B, C)
    the cross-entropy. In evaluation it gives the feature after the neck (B, D), not normalised.

    norm = frozen: the encoder's BatchNorm normalises by its running statistics and leaves them as they are, in training
    too; its weight and bias still learn. frozen_epochs: see `begin_epoch`. sync_batchnorm only says what is wanted;
    `normalization.convert_sync` does it, once the model is on its device.
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
        norm: str = "batch",
        sync_batchnorm: bool = False,
        frozen_epochs: int = 0,
        image_size: tuple[int, int] = (256, 128),
    ) -> None:
        super().__init__()
        self.encoder, self.dim = build_encoder(
            encoder, weights, last_stride=last_stride, stem_stride=stem_stride, pool=pool, image_size=image_size
        )
        if norm == "frozen" and not any(isinstance(module, _BatchNorm) for module in self.encoder.modules()):
            raise ValueError(f"model.norm = frozen: {encoder} has no BatchNorm; use model.norm = batch")
        self.norm, self.sync_batchnorm, self.frozen_epochs = norm, sync_batchnorm, frozen_epochs
        self.encoder_frozen = False
        self.neck = nn.BatchNorm1d(self.dim)
        self.neck.bias.requires_grad_(False)
        self.classifier = Classifier(self.dim, num_classes, head, head_temperature)
        self.train()

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        feature = self.encoder(images)
        after_neck = self.neck(feature)
        if not self.training:
            return after_neck
        return feature, self.classifier(after_neck)

    def train(self, mode: bool = True) -> ReIDModel:
        """As of any module, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self.encoder.modules():
            if self.encoder_frozen or (self.norm == "frozen" and isinstance(module, _BatchNorm)):
                module.training = False
        return self

    def begin_epoch(self, epoch: int) -> None:
        """Freeze the encoder in the first `frozen_epochs` epochs (from 0), free it after; cheap at each step."""
        freeze_encoder(self, epoch < self.frozen_epochs)


def freeze_encoder(model: ReIDModel, on: bool) -> None:
    """Freeze or free the encoder: its layers in evaluation mode, its gradients dropped by `drop_frozen_gradients`.

    requires_grad stays as it is. DDP fixes the parameters that it averages when it wraps the model: one that is frozen
    later leaves it waiting for a gradient (an error), one that is freed later is never averaged, and ranks drift apart
    without a word. The price is a backward pass through the encoder in the frozen epochs.
    """
    if on != model.encoder_frozen:
        model.encoder_frozen = on
        model.train(model.training)


def drop_frozen_gradients(model: ReIDModel) -> None:
    """After backward, before clipping and the step: forget the gradients of a frozen encoder.

    Without a gradient an optimizer leaves a parameter alone: no update, no weight decay, no moments of Adam.
    """
    if model.encoder_frozen:
        for parameter in model.encoder.parameters():
            parameter.grad = None


def freeze_heads(model: ReIDModel) -> None:
    """Leave the neck and the classifier as they are, for a loss that does not see the logits.

    Without a gradient DDP would wait for theirs; a gradient of zeros would let weight decay shrink what evaluation
    uses, the neck's weight. To be called before DDP wraps the model and before the optimizer is built.
    """
    model.neck.requires_grad_(False)
    model.classifier.requires_grad_(False)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m reid.model list` and `fetch NAME ...`; returns the exit status, 1 on what the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m reid.model", description="ImageNet weights of encoders.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the encoders, their parameters, and whether their weights are in the cache")
    fetching = commands.add_parser("fetch", help="download weights into the cache, for machines without internet")
    fetching.add_argument("names", nargs="+", metavar="NAME", help=f"e.g. resnet50, or {TIMM}<a model of timm>")
    options = parser.parse_args(arguments)
    try:
        if options.command == "list":
            _list()
        for name in options.names if options.command == "fetch" else []:
            _fetch(name)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _list() -> None:
    print(f"{'encoder':<18}{'dim':>5}{'parameters':>13}  ImageNet weights")
    for name in ENCODERS:
        with torch.device("meta"):
            encoder, dim = build_encoder(name)
        size = sum(parameter.numel() for parameter in encoder.parameters())
        if name == "resnet10":
            where = "none are published"
        else:
            where = f"{cached_file(name)}{'' if cached_file(name).is_file() else ' (not fetched)'}"
        print(f"{name:<18}{dim:>5}{size:>13,}  {where}")
    print(f"{TIMM + '<name>':<18}  any model of timm (pip install timm)")


def _fetch(name: str) -> None:
    """Download, and print what a copy on another machine can be compared with."""
    if name.startswith(TIMM):
        build_encoder(name, "imagenet")
        print(f"{name}: in the Hugging Face cache")
        return
    if name not in ENCODERS:
        raise ValueError(f"{name} is no encoder; choose from {', '.join(ENCODERS)}, or timm/<a model of timm>")
    path = fetch(name)
    with open(path, "rb") as file:
        print(f"{path} sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}")


if __name__ == "__main__":
    sys.exit(main())
