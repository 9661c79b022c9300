"""The exponential moving average of a model's weights, which is evaluated and saved in their place."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn

from reid.model.network import ReIDModel

FIRST = 10  # steps; about as long, the average follows the weights, so that the initial ones are soon forgotten


class WeightAverage:
    """A copy of a model that follows it: average += (1 - d) * (weights - average) after each step.

    d = min(decay, (1 + t) / (10 + t)) at step t, from 0: a function of the step, so a resume needs only the tensors.
    BatchNorm's running statistics are averaged, too; its counters are copied. Not torch's AveragedModel, whose decay is
    constant and whose counter makes the host wait.

    Args:
        model: on its device.
        decay: `optim.ema`, above 0.
    """

    def __init__(self, model: ReIDModel, decay: float) -> None:
        self.model, self.decay = copy.deepcopy(model).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow the model after global step `step`, by one operation for all weights and one for all counters."""
        decay = min(self.decay, (1 + step) / (FIRST + step))
        torch._foreach_lerp_(_select(self.model, floating=True), _select(model, floating=True), 1 - decay)
        if counters := _select(model, floating=False):
            torch._foreach_copy_(_select(self.model, floating=False), counters)


def _select(module: nn.Module, floating: bool) -> list[Tensor]:
    """Return the parameters and buffers that are floating point, or those that are not.

    Found again at each step, because layers may replace a buffer instead of changing it.
    """
    return [value for value in chain(module.parameters(), module.buffers()) if value.is_floating_point() == floating]
