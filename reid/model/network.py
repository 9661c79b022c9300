"""The network: encoder, embedding, neck (BNNeck) and classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reid.config import ModelConfig
from reid.model.encoders import build_encoder
from reid.model.pretrained import initialize


class Classifier(nn.Module):
    """Identity logits (B, C) from features after the neck (B, D); the weight (C, D) starts as N(0, 0.001).

    With T the temperature, `head` gives
        linear: w·f / T
        cosine: cos(w, f) / T, in float32
        euclidean: -|f - w|^2 / T, in float32, up to the term |f|^2, which is equal for all identities. w is then a
            learned center of each identity. The MCTL paper leaves this classifier for future work.

    With Z `nested` lengths it returns logits (B, 1 + Z, C): those of all numbers, then for each length those of the
    first numbers of f and w.
    """

    def __init__(
        self, dim: int, num_classes: int, head: str = "linear", temperature: float = 1.0, nested: Sequence[int] = ()
    ) -> None:
        super().__init__()
        if head not in ("linear", "cosine", "euclidean"):
            raise ValueError(f"model.head = {head!r}; choose linear, cosine or euclidean")
        self.head, self.temperature, self.nested = head, temperature, tuple(nested)
        self.weight = nn.Parameter(torch.empty(num_classes, dim).normal_(std=0.001))

    def forward(self, features: Tensor) -> Tensor:
        logits = self._compute(features, self.weight)
        if not self.nested:
            return logits
        return torch.stack([logits, *(self._compute(features[:, :n], self.weight[:, :n]) for n in self.nested)], dim=1)

    def _compute(self, features: Tensor, weight: Tensor) -> Tensor:
        if self.head == "linear":
            return F.linear(features, weight) / self.temperature
        with torch.autocast(features.device.type, enabled=False):
            features, weight = features.float(), weight.float()
            if self.head == "cosine":
                return F.linear(F.normalize(features), F.normalize(weight)) / self.temperature
            return (2 * F.linear(features, weight) - weight.square().sum(dim=1)) / self.temperature


class Outputs(NamedTuple):
    """What the model gives in training."""

    features: Tensor
    """(B, D) before the neck, after the embedding."""
    after_neck: Tensor
    """(B, D), what evaluation compares."""
    logits: Tensor
    """(B, C) of the classifier; with nested lengths (B, 1 + Z, C)."""


class ReIDModel(nn.Module):
    """Encoder -> feature f -> BNNeck -> classifier (Luo et al., "Bag of Tricks", 2019).

    With `model.embedding` a linear layer without bias, which the neck would take away, gives f its length.

    In training, `forward(images)` returns Outputs; in evaluation the feature after the neck (B, D), not normalized.

    With model.norm = frozen the encoder's BatchNorm always uses its running statistics and never updates them; its
    weight and bias still learn.

    Args:
        num_classes: C, the number of training identities.
        config: encoder and heads. `convert_sync` applies `sync_batchnorm`, when the model is on its device.
        image_size: height and width of the images, in pixels.

    `initial_weights` says which weights it starts from.
    """

    def __init__(self, num_classes: int, config: ModelConfig, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.encoder, dim = build_encoder(config, image_size)
        self.dim = config.embedding or dim
        self.nested = tuple(config.nested)
        if self.nested and self.nested[-1] >= self.dim:
            raise ValueError(
                f"model.nested = {config.nested}: a feature of {config.encoder} has {self.dim} numbers; give "
                "lengths below that"
            )
        if config.norm == "frozen" and not any(isinstance(module, _BatchNorm) for module in self.encoder.modules()):
            raise ValueError(f"model.norm = frozen: {config.encoder} has no BatchNorm; use model.norm = batch")
        self.norm, self.frozen_epochs, self.encoder_name = config.norm, config.frozen_epochs, config.encoder
        self.encoder_frozen, self.has_embedding = False, bool(config.embedding)
        heads: dict[str, nn.Module] = {}
        if config.embedding:
            self.embedding = heads["embedding"] = nn.Linear(dim, self.dim, bias=False)
            nn.init.xavier_normal_(self.embedding.weight)
        self.neck = heads["neck"] = nn.BatchNorm1d(self.dim)
        self.neck.bias.requires_grad_(False)
        self.initial_weights = initialize(self.encoder, config, heads)
        self.classifier = Classifier(self.dim, num_classes, config.head, config.head_temperature, self.nested)
        self.train()

    def forward(self, images: Tensor) -> Tensor | Outputs:
        features = self.encoder(images)
        if self.has_embedding:
            features = self.embedding(features)
        after_neck = self.neck(features)
        return Outputs(features, after_neck, self.classifier(after_neck)) if self.training else after_neck

    def train(self, mode: bool = True) -> ReIDModel:
        """Set the mode as in any module, but leave the frozen layers in evaluation mode."""
        super().train(mode)
        for module in self.encoder.modules():
            if self.encoder_frozen or (self.norm == "frozen" and isinstance(module, _BatchNorm)):
                module.training = False
        return self

    def begin_epoch(self, epoch: int) -> None:
        """Freeze the encoder in the first `frozen_epochs` epochs (from 0), and unfreeze it after; cheap at each step.

        A frozen encoder's layers are in evaluation mode, and `drop_frozen_gradients` drops its gradients.
        requires_grad does not change: DDP fixes the set of parameters that it averages when it wraps the model. It
        would wait for the gradient of one that is frozen later, and never average one that is unfrozen later. The cost
        is a backward pass through the encoder in the frozen epochs.
        """
        frozen = epoch < self.frozen_epochs
        if frozen != self.encoder_frozen:
            self.encoder_frozen = frozen
            self.train(self.training)


def drop_frozen_gradients(model: ReIDModel) -> None:
    """Drop the gradients of a frozen encoder, after backward and before clipping and the step.

    An optimizer skips a parameter without a gradient: no update, no weight decay, no change of Adam's moments.
    """
    if model.encoder_frozen:
        for parameter in model.encoder.parameters():
            parameter.grad = None


def freeze_heads(model: ReIDModel, neck: bool = True) -> None:
    """Freeze the classifier, for an objective without a loss on the logits; the neck, if no loss uses its output.

    DDP would wait for gradients that never come; with gradients of zero, weight decay would shrink the neck's weight,
    which evaluation uses. Call it before DDP wraps the model and before the optimizer is built.
    """
    model.classifier.requires_grad_(False)
    if neck:
        model.neck.requires_grad_(False)
