"""The optimizer, its groups of parameters, and the learning rate of each step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then milestones or a cosine; a pure function of the step, so a resume needs no state.

    Epochs count from 0; `steps_per_epoch` turns them into steps. The warm-up rises with each step. milestones: a factor
    of gamma at each. cosine: from `lr` where the warm-up ends to 0 after the last of `epochs`.
    """

    lr: float
    steps_per_epoch: int
    warmup_epochs: int = 10
    warmup_factor: float = 0.01
    milestones: Sequence[int] = (40, 70)
    gamma: float = 0.1
    shape: str = "milestones"
    epochs: int = 120

    def at(self, step: int) -> float:
        """Learning rate of global step `step` (0 is the first of the run)."""
        warmup_steps = self.warmup_epochs * self.steps_per_epoch
        rate = self._after_warmup(step, warmup_steps)
        if step >= warmup_steps:
            return rate
        return rate * (self.warmup_factor + (1 - self.warmup_factor) * step / warmup_steps)

    def _after_warmup(self, step: int, warmup_steps: int) -> float:
        if self.shape == "milestones":
            return self.lr * self.gamma ** bisect_right(sorted(self.milestones), step // self.steps_per_epoch)
        rest = self.epochs * self.steps_per_epoch - warmup_steps
        done = min(max(step - warmup_steps, 0) / rest, 1.0) if rest > 0 else 0.0
        return self.lr * (1 + math.cos(math.pi * done)) / 2

    def apply(self, optimizer: Optimizer, step: int) -> float:
        """Set the learning rate of every group, times its `lr_factor`, and return it without that factor."""
        rate = self.at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_factor", 1.0)
        return rate


def scale_lr(lr: float, identities: int, reference: int, rule: str) -> float:
    """The learning rate for a global batch of `identities` where `lr` was found with `reference` of them.

    linear: as SGD wants it (Goyal et al., 2017); sqrt: as Adam's noise scales (Malladi et al., 2022); none: `lr`.
    """
    power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[rule]
    return lr * (identities / reference) ** power


def build_optimizer(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    algorithm: str = "adam",
    momentum: float = 0.9,
    head_lr_factor: float = 1.0,
    bias_lr_factor: float = 1.0,
    decay_norm: bool = True,
) -> Optimizer:
    """adam (L2 penalty, as in BoT), adamw (decoupled decay) or sgd over the trainable parameters of a model.

    Parameters with the same factor and decay form a group; the factors multiply. Heads are what lies outside
    `model.encoder`. On CUDA the step is one fused kernel. momentum is SGD's.
    """
    groups = group_parameters(model, weight_decay, head_lr_factor, bias_lr_factor, decay_norm)
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(parameter.is_cuda for parameter in parameters) or None  # None: torch's own choice
    if algorithm == "sgd":
        return SGD(groups, lr=lr, momentum=momentum, fused=fused)
    return {"adam": Adam, "adamw": AdamW}[algorithm](groups, lr=lr, fused=fused)


def take_step(optimizer: Optimizer, scaler: torch.amp.GradScaler | None = None) -> bool:
    """One step; whether it was taken. It is not where `scaler`, fp16's, which the step uses, finds an overflow.

    The scaler lowers its scale then. accelerate's `optimizer_step_was_skipped` sees whether the optimizer was called,
    and a fused one always is: it skips by itself.
    """
    before = scaler.get_scale() if scaler is not None else 1.0
    optimizer.step()
    return scaler is None or scaler.get_scale() >= before


def group_parameters(
    model: nn.Module, weight_decay: float, head_lr_factor: float, bias_lr_factor: float, decay_norm: bool
) -> list[dict[str, Any]]:
    """Optimizer groups with `lr_factor` and `weight_decay`, in the order in which the model names their first member.

    decay_norm = False: no decay on biases and on weights of normalisation layers, which are vectors as well.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = 1.0 if name.startswith("encoder.") else head_lr_factor
        if name.endswith("bias"):
            factor *= bias_lr_factor
        decay = weight_decay if decay_norm or parameter.ndim > 1 else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    return [
        {"params": members, "lr_factor": factor, "weight_decay": decay} for (factor, decay), members in groups.items()
    ]
