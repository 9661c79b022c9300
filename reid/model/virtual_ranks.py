"""Virtual ranks: a process computes several parts of its batch one after another, as if each had its own process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from reid.config import SpeedConfig
from reid.model.network import Outputs, ReIDModel
from reid.model.sync_batchnorm import SyncBatchNorm

SEEDS = 2**64 - 59  # a prime: steps have different seeds modulo it, however large the seed of the run is


class VirtualRanks(nn.Module):
    """The model in training: what DDP wraps.

    A virtual rank's BatchNorm statistics are those of its own images, and what it draws (dropout, stochastic depth)
    depends on the seed of the run, the step and its number only. The first virtual rank of a process moves the running
    statistics: rank 0's, which a checkpoint keeps, are then those of virtual rank 0. One backward pass follows.

    With speed.recompute only the outputs are kept. When the backward pass reaches a virtual rank, it computes it again
    with the same draws (gradient caching; Gao et al., 2021).

    Synchronized BatchNorm needs all images at once: the process's batch is then one part.
    """

    def __init__(self, model: ReIDModel, speed: SpeedConfig, seed: int = 0) -> None:
        super().__init__()
        self.model, self.speed, self.seed = model, speed, seed
        self._copies: dict[nn.Module, dict[str, Tensor]] = {}
        self.splits = not any(isinstance(layer, SyncBatchNorm | nn.SyncBatchNorm) for layer in model.modules())

    def forward(self, images: Tensor, sizes: Sequence[int], first: int, step: int) -> Outputs:
        """Compute a process's part of a batch.

        Args:
            images: (B, 3, H, W).
            sizes: images of each virtual rank of the process, one virtual rank after another.
            first: number of its first virtual rank.
            step: the global step.
        """
        parts = images.split(tuple(sizes)) if self.splits and len(sizes) > 1 else (images,)
        outputs = [self._compute(part, first, number, step) for number, part in enumerate(parts)]
        return outputs[0] if len(outputs) == 1 else Outputs(*map(torch.cat, zip(*outputs, strict=True)))

    def _compute(self, images: Tensor, first: int, number: int, step: int) -> Outputs:
        seed = (((self.seed << 32) + step) * 4096 + first + number) % SEEDS
        if self.speed.compile:
            torch._dynamo.maybe_mark_dynamic(images, 0)  # short groups change the size of a batch
        if number:
            torch.clear_autocast_cache()  # a weight's gradients then add up in its own type, as between processes
        moves = contextlib.nullcontext() if number == 0 else self._keep_statistics()
        if self.speed.recompute:
            outputs: Outputs = checkpoint(
                self._run, images, seed, use_reentrant=False, preserve_rng_state=False,
                context_fn=lambda: (moves, self._keep_statistics()),
            )  # fmt: skip
            return outputs
        with moves:
            return self._run(images, seed)

    def _run(self, images: Tensor, seed: int) -> Outputs:
        torch.manual_seed(seed)
        outputs: Outputs = self.model(images)
        return outputs

    @contextlib.contextmanager
    def _keep_statistics(self) -> Iterator[None]:
        """Let each BatchNorm that uses statistics of the batch update a copy of its running statistics.

        Not by track_running_stats: without running statistics a layer saves fewer tensors for the backward pass, and
        what is computed again must save the same.
        """
        layers = [layer for layer in self.model.modules() if isinstance(layer, _BatchNorm) and layer.training]
        kept = [dict(layer._buffers) for layer in layers]
        for layer, buffers in zip(layers, kept, strict=True):
            if layer not in self._copies:
                self._copies[layer] = {name: value.clone() for name, value in buffers.items() if value is not None}
            layer._buffers.update(self._copies[layer])
        try:
            yield
        finally:
            for layer, buffers in zip(layers, kept, strict=True):
                layer._buffers.update(buffers)
