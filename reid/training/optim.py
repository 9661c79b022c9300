"""The optimizer, its groups of parameters, and the learning rate of each step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from reid.config import OptimConfig
from reid.model.depths import find_depths
from reid.model.network import ReIDModel


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then milestones or a cosine; a pure function of the step, so a resume needs no state.

    config: `optim`, whose milestones are numbers of finished epochs. identities: in the global batch, for `lr_rule`.
    """

    config: OptimConfig
    steps_per_epoch: int
    identities: int

    @property
    def lr(self) -> float:
        """The learning rate after the warm-up, for a global batch of `identities`.

        linear: for SGD (Goyal et al., 2017); sqrt: for Adam (Malladi et al., 2022).
        """
        power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[self.config.lr_rule]
        return self.config.lr * (self.identities / self.config.reference_identities) ** power

    def at(self, step: int) -> float:
        """Return the learning rate of global step `step` (0 is the first of the run)."""
        config = self.config
        warmup_steps = config.warmup_epochs * self.steps_per_epoch
        rate = self._after_warmup(step, warmup_steps)
        if step >= warmup_steps:
            return rate
        return rate * (config.warmup_factor + (1 - config.warmup_factor) * step / warmup_steps)

    def _after_warmup(self, step: int, warmup_steps: int) -> float:
        config = self.config
        if config.schedule == "milestones":
            return self.lr * config.gamma ** bisect_right(sorted(config.milestones), step // self.steps_per_epoch)
        rest = config.epochs * self.steps_per_epoch - warmup_steps
        done = min(max(step - warmup_steps, 0) / rest, 1.0) if rest > 0 else 0.0
        return self.lr * (1 + math.cos(math.pi * done)) / 2

    def apply(self, optimizer: Optimizer, step: int) -> float:
        """Set the learning rate of every group, times its `lr_factor`, and return it without that factor."""
        rate = self.at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_factor", 1.0)
        return rate


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """Return the optimizer of a model's trainable parameters; `Schedule.apply` sets its learning rate.

    On CUDA the step is one fused kernel.
    """
    groups = group_parameters(model, config)
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(parameter.is_cuda for parameter in parameters) or None  # None: torch's own choice
    if config.algorithm == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused)
    return {"adam": Adam, "adamw": AdamW}[config.algorithm](groups, lr=config.lr, fused=fused)


def take_step(optimizer: Optimizer, scaler: torch.amp.GradScaler | None = None) -> bool:
    """Take a step, and return False if fp16's scaler found an overflow and skipped it.

    The scaler then lowers its scale. accelerate's `optimizer_step_was_skipped` tells whether the optimizer was called,
    and a fused one always is: it skips inside.
    """
    before = scaler.get_scale() if scaler is not None else 1.0
    optimizer.step()
    return scaler is None or scaler.get_scale() >= before


def group_parameters(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Return optimizer groups with `lr_factor` and `weight_decay`, in the order in which the model names their members.

    The factors multiply; heads are all parameters outside `model.encoder`; with layer_decay each layer of the encoder
    has groups of its own. decay_norm = False: no decay on biases and weights of normalization layers, which are vectors
    as well.
    """
    depths: Mapping[str, int] = {}
    if config.layer_decay < 1:
        assert isinstance(model, ReIDModel)
        depths = find_depths(model.encoder, model.encoder_name)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        place, _, inside = name.partition(".")
        factor = config.layer_decay ** depths.get(inside, 0) if place == "encoder" else config.head_lr_factor
        if name.endswith("bias"):
            factor *= config.bias_lr_factor
        decay = config.weight_decay if config.decay_norm or parameter.ndim > 1 else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    return [
        {"params": members, "lr_factor": factor, "weight_decay": decay} for (factor, decay), members in groups.items()
    ]
