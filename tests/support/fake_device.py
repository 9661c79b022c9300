"""A training step on a CUDA device and among ranks that do not exist: what it launches, sends and waits for."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from reid.config import Config
from reid.data import normalization
from reid.data.layout import build_layout
from reid.data.train_loader import Batch
from reid.data.transfer import map_leaves
from reid.losses.objective import Objective
from reid.model.virtual_ranks import VirtualRanks
from reid.training.ema import WeightAverage
from reid.training.optim import build_optimizer
from reid.training.step import TrainingStep
from tests.support.models import make_model

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
PROFILER = {"_record_function_enter_new", "_record_function_exit"}
NO_WORK = ALLOCATIONS | PROFILER | {"detach", "device", "_unsafe_view", "lift_fresh", "is_pinned"}


@dataclass
class Record:
    """What a part of a step does to the device."""

    launches: Counter[str] = field(default_factory=Counter)
    """Operations that launch work, by name; views and allocations launch none."""
    collectives: list[tuple[str, int]] = field(default_factory=list)
    """Name, and bytes that this rank puts in."""
    waits: list[str] = field(default_factory=list)
    """Copies for which the host waits."""


class Recorder(TorchDispatchMode):
    """Records operations. On fake tensors, `.item()` and shapes that depend on data raise errors."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.record = device, Record()
        self.pinned: list[Tensor] = []  # kept alive, so that their storages stay different

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.split("::")[1]
        pins = kwargs.pop("pin_memory", False) or name == "_pin_memory"  # fake tensors cannot
        result = args[0].clone() if name == "_pin_memory" else func(*args, **kwargs)
        if pins:
            self.pinned.append(result)
            return result
        if func.namespace == "c10d":
            given = args[1] if name in ("_allgather_base_", "_reduce_scatter_base_") else args[0][0]
            self.record.collectives.append((name.strip("_"), given.nbytes))
        elif name not in NO_WORK and not _is_view(func) and self._runs_on_device(result):
            self.record.launches[name] += 1
            if name in ("_to_copy", "copy_"):
                source, target = (args[1], args[0]) if name == "copy_" else (args[0], result)
                non_blocking = kwargs.get("non_blocking", name == "copy_" and len(args) > 2 and args[2])
                is_pinned = _storage(source) in map(_storage, self.pinned)
                if target.device != source.device and not (is_pinned and non_blocking):
                    self.record.waits.append(f"{name} {source.device.type} -> {target.device.type}")
        return result

    def _runs_on_device(self, result: Any) -> bool:
        first = result[0] if isinstance(result, list | tuple) and result else result
        return not isinstance(first, Tensor) or first.device.type == self.device


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


class Accelerator:
    """What a step needs of accelerate. Backward passes of the objective and of the encoder are recorded apart.

    On a fake CUDA device autograd cannot run: gradients are allocated instead.
    """

    process_index, scaler = 0, None

    def __init__(self, device: str, precision: str, model: nn.Module) -> None:
        self.device, self.model = torch.device(device), model
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.autocast = lambda: torch.autocast(device, dtype=dtype, enabled=precision == "bf16")
        self._has_autograd = device == "cpu" or torch.cuda.is_available()
        model.register_forward_hook(self._cut)

    def _cut(self, model: nn.Module, images: Any, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.outputs = outputs
        self.cuts = tuple(output.detach().requires_grad_() for output in outputs)
        return self.cuts

    def backward(self, loss: Tensor) -> None:
        if self._has_autograd:
            loss.backward()
        self.backward_encoder()

    def backward_encoder(self) -> None:
        if self._has_autograd:
            used = [
                (output, cut.grad) for output, cut in zip(self.outputs, self.cuts, strict=True) if cut.grad is not None
            ]
            torch.autograd.backward(*map(list, zip(*used, strict=True)))
            return
        for parameter in self.model.parameters():
            parameter.grad = torch.empty_like(parameter)


@contextlib.contextmanager
def fake_ranks(world_size: int) -> Iterator[None]:
    """A process group whose other ranks do not exist; its collectives return at once."""
    if world_size > 1:
        dist.init_process_group("fake", rank=1, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        if world_size > 1:
            dist.destroy_process_group()


def make_step(
    config: Config, device: str, ranks: int = 1, precision: str = "no", encoder: str = "resnet10", share: int = 1
) -> tuple[TrainingStep, Batch]:
    """Return a training step on a device, and a batch of rank 1, or of the only rank, on the host.

    Each of the ranks has config.batch.identities identities, in `share` virtual ranks. One group is short, so that
    ranks differ in size.
    """
    identities, images = config.batch.identities, config.batch.images
    labels = [np.repeat(np.arange(identities) + rank * identities, images) for rank in range(ranks)]
    labels[0] = labels[0][1:]
    rank = min(1, ranks - 1)
    classes, shape, rows = ranks * identities, config.data.image_size, len(labels[rank])
    virtual = [part for own in labels for part in np.array_split(own, share)]
    with torch.device(device):
        model = make_model(classes, encoder, image_size=shape, nested=config.model.nested)
        objective = Objective(config.loss, classes, model.dim, nested=model.nested)
        average = None
        if config.optim.ema:  # torch's deepcopy of fake tensors damages memory
            twin = make_model(classes, encoder, image_size=shape, nested=config.model.nested)
            with mock.patch("copy.deepcopy", return_value=twin):
                average = WeightAverage(model, config.optim.ema)
    optimizer = build_optimizer(model, config.optim)
    wrapped = VirtualRanks(model, config.speed)
    accelerator: Any = Accelerator(device, precision, wrapped)
    step = TrainingStep(config, accelerator, wrapped, model, objective, optimizer, 100, average)
    drawn = step.augmentation.draw(np.random.default_rng(0), rows, *shape)
    return step, Batch(
        images=torch.zeros(rows, 3, *shape, dtype=torch.uint8), labels=torch.from_numpy(labels[rank]),
        ids=torch.zeros(rows, 2, dtype=torch.int64),
        camids=torch.zeros(rows, dtype=torch.int64), changes=step.augmentation.expand(drawn, *shape),
        layout=build_layout(virtual, rank, slots=identities, share=share),
    )  # fmt: skip


def record_step(config: Config, device: str, ranks: int = 1, **options: Any) -> dict[str, Record]:
    """Make a training step on fake tensors, and return the record of each of its parts.

    Args:
        device: cuda, where copies between host and device are seen but gradients cannot be computed; or cpu, where
            they can.
        options: of `make_step`.
    """
    normalization._to_device.cache_clear()
    with fake_ranks(ranks), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        step, batch = make_step(config, device, ranks, **options)
        batch = map_leaves(batch, Tensor, lambda t: t if isinstance(t, FakeTensor) else mode.from_tensor(t))
        for number in range(2):  # the first step makes what is kept, such as Adam's moments
            with Recorder(device) as recorder:
                parts = {"batch to device": recorder.record}
                if number:
                    _split(step, recorder, parts)
                step.take(0, number, batch)
    normalization._to_device.cache_clear()
    return parts


def _split(step: TrainingStep, recorder: Recorder, parts: dict[str, Record]) -> None:
    """Make the recorder begin a new record when a part of the step begins."""

    def begins(part: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            recorder.record = parts.setdefault(part, Record())
            return function(*args, **kwargs)

        return call

    augmentation: Any = SimpleNamespace(apply=step.augmentation.apply)
    step.augmentation = augmentation
    for owner, name, part in (
        (augmentation, "apply", "augmentation"),
        (step.model, "forward", "encoder, forward"),
        (step.objective, "forward", "objective, forward"),
        (step.accelerator, "backward", "objective, backward"),
        (step.accelerator, "backward_encoder", "encoder, backward"),
        (step.optimizer, "step", "optimizer"),
        (step.objective, "update_centers", "centers"),
        *([(step.average, "update", "average")] if step.average else []),
    ):
        setattr(owner, name, begins(part, getattr(owner, name)))
