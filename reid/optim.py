"""The optimizer and the learning rate of each step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Adam, Optimizer


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a factor at each milestone; a pure function of the step, so a resume needs no state.

    Epochs count from 0; `steps_per_epoch` turns them into steps. The warm-up rises with each step.
    """

    lr: float
    steps_per_epoch: int
    warmup_epochs: int = 10
    warmup_factor: float = 0.01
    milestones: Sequence[int] = (40, 70)
    gamma: float = 0.1

    def at(self, step: int) -> float:
        """Learning rate of global step `step` (0 is the first of the run)."""
        warmup_steps = self.warmup_epochs * self.steps_per_epoch
        rate = self.lr * self.gamma ** bisect_right(sorted(self.milestones), step // self.steps_per_epoch)
        if step >= warmup_steps:
            return rate
        return rate * (self.warmup_factor + (1 - self.warmup_factor) * step / warmup_steps)

    def apply(self, optimizer: Optimizer, step: int) -> float:
        """Set the learning rate of every group and return it."""
        rate = self.at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate


def build_optimizer(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """Adam with L2 penalty on every trainable parameter, as in BoT's recipe."""
    return Adam([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=weight_decay)
