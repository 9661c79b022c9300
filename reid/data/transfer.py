"""Copy what belongs to a batch to the device: many small tensors in one transfer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes; the widest element that a tensor may be viewed as

T = TypeVar("T")


def copy_to(tensor: Tensor, device: torch.device, pin: bool) -> Tensor:
    """Copy a tensor to the device. pin: copy from page-locked memory, so that the host does not wait (only CUDA)."""
    if device.type == "cuda" and pin and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def move(batch: T, device: torch.device, pin: bool = False) -> T:
    """Return a dataclass or named tuple with all its tensors, at any depth, on the device, copied as one buffer.

    A copy of each small tensor would cost the host a launch each.
    """
    if device.type == "cpu":
        return batch
    tensors: list[Tensor] = []
    map_leaves(batch, Tensor, tensors.append)
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    buffer = torch.empty(end, dtype=torch.uint8, pin_memory=pin and device.type == "cuda")
    for start, tensor in zip(starts, tensors, strict=True):
        buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    moved = buffer.to(device, non_blocking=True)
    places = iter(starts)

    def take(tensor: Tensor) -> Tensor:
        start = next(places)
        return moved[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

    return map_leaves(batch, Tensor, take)


def map_leaves(tree: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Return a copy of a tree of dataclasses and tuples with what `change` makes of each leaf of a kind, in order."""
    if isinstance(tree, kind):
        return change(tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{f.name: map_leaves(getattr(tree, f.name), kind, change) for f in fields(tree)})
    if isinstance(tree, tuple):
        changed = [map_leaves(part, kind, change) for part in tree]
        return type(tree)(*changed) if hasattr(tree, "_fields") else type(tree)(changed)
    return tree
