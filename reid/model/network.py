"""The network: encoder, neck (BNNeck) and classifier."""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reid.model.__main__ import main
from reid.model.encoders import build_encoder


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


if __name__ == "__main__":
    sys.exit(main())
