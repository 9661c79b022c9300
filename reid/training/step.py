"""One optimizer step: augment, forward, objective, backward, update."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn
from torch.optim import Optimizer

from reid.config import Config
from reid.data.augmentation import Augmentation
from reid.data.normalization import Normalization
from reid.data.train_loader import Batch
from reid.losses.objective import Losses, Objective
from reid.model.network import ReIDModel, drop_frozen_gradients
from reid.training.ema import WeightAverage
from reid.training.optim import Schedule, take_step
from reid.training.setup import memory_format

if TYPE_CHECKING:
    from accelerate import Accelerator


class Step(NamedTuple):
    """What one optimizer step leaves to be logged."""

    losses: Losses
    """Tensors on the device."""
    lr: float


class TrainingStep:
    """Makes optimizer steps.

    The host never waits for the device, so that the device always has work in its queue: shapes and counts come with
    the batch (see Layout), and values are copied to the host at log steps only. The exception is fp16, whose scaler
    tells the host whether the step was taken.

    Args:
        model: VirtualRanks, in DDP's wrapper if there are several processes.
        bare: the model in it.
        average: of its weights, if there is one.
    """

    def __init__(
        self, config: Config, accelerator: Accelerator, model: nn.Module, bare: ReIDModel, objective: Objective,
        optimizer: Optimizer, steps_per_epoch: int, average: WeightAverage | None = None,
    ) -> None:  # fmt: skip
        self.config, self.accelerator, self.average = config, accelerator, average
        self.model, self.bare, self.objective, self.optimizer = model, bare, objective, optimizer
        self.schedule = Schedule(config.optim, steps_per_epoch, config.batch.identities)
        self.augmentation = Augmentation(config.augment, Normalization.from_config(config.data))
        self.memory_format = memory_format(config, accelerator.device)

    def take(self, epoch: int, global_step: int, batch: Batch) -> Step:
        """Make one step on this rank's part of a batch, which lies on the host and has a layout."""
        lr = self.schedule.apply(self.optimizer, global_step)
        self.bare.begin_epoch(epoch)
        batch = batch.to(self.accelerator.device, self.config.speed.pin_memory)
        assert batch.layout is not None
        sizes = batch.layout.sizes
        images = self.augmentation.apply(batch.images, batch.changes)
        images = images.contiguous(memory_format=self.memory_format)
        with self.accelerator.autocast():
            outputs = self.model(images, sizes, self.accelerator.process_index * len(sizes), global_step)
        losses = self.objective(*outputs, batch.labels, batch.layout)
        self.accelerator.backward(losses.total)
        drop_frozen_gradients(self.bare)
        if self.config.optim.clip_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_norm)
        taken = take_step(self.optimizer, self.accelerator.scaler)
        self.optimizer.zero_grad(set_to_none=True)
        if taken:  # features that overflowed, in fp16, must not move the centers
            self.objective.update_centers(losses)
            if self.average is not None:
                self.average.update(self.bare, global_step)
        return Step(losses, lr)
