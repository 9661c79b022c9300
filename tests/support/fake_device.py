"""A training step on a CUDA device and among ranks that do not exist: what it launches, sends and waits for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_empty_affine_quantized"}
NO_WORK = ALLOCATIONS | {"detach", "device", "_unsafe_view", "lift_fresh", "_local_scalar_dense", "is_pinned", "_pin_memory"}


class Recorder(TorchDispatchMode):
    """Counts operations that launch work on the device, collectives with the bytes that they take, and host waits.

    A view launches nothing, and neither does an allocation. On a fake device, what makes the host wait raises an error
    (`.item()`, data-dependent shapes), except for copies between devices: these are collected in `waits`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.collectives: list[tuple[str, int]] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        if func.namespace == "c10d":
            given = args[1] if name.startswith(("_allgather_base", "_reduce_scatter_base")) else args[0][0]
            self.collectives.append((name.strip("_"), given.nbytes))
        elif name in ("_to_copy", "copy_"):
            source, target = (args[1], args[0]) if name == "copy_" else (args[0], result)
            self._record_copy(name, source, target, kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
        elif name not in NO_WORK and not _is_view(func):
            self.launches[name] += 1
        return result

    def _record_copy(self, name: str, source: torch.Tensor, target: torch.Tensor, non_blocking: bool) -> None:
        devices = source.device.type, target.device.type
        self.launches[name] += 1
        if devices[1] == "cpu" or (devices[0] == "cpu" and not non_blocking):
            self.waits.append(f"{name} {devices[0]} -> {devices[1]}")


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


@contextmanager
def fake_ranks(world_size: int, rank: int = 0) -> Iterator[None]:
    """A process group whose other ranks do not exist; its collectives return without a result."""
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def fake_cuda() -> Iterator[Recorder]:
    """Fake tensors, created on a CUDA device; operations inside are recorded."""
    with FakeTensorMode() as mode, torch.device("cuda"), Recorder() as recorder:
        recorder.mode = mode  # type: ignore[attr-defined]
        yield recorder
