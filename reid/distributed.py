"""Communication between ranks: a gather with gradients, sums and means, decisions of rank 0, and the process group.

Every function also works without a process group, as in a world of one rank.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from reid.precision import AUTOCAST_DTYPES, find_wrong_convolution

if TYPE_CHECKING:
    from accelerate import Accelerator

Decision = TypeVar("Decision")


def is_distributed() -> bool:
    """Return whether there is a process group of more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


class _GatherRows(torch.autograd.Function):
    """All-gather forward, reduce-scatter-sum backward, which is its exact transpose.

    torch.distributed.nn.functional is deprecated, accelerator.gather has no gradient, and accelerator.reduce has a
    wrong one.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, local: Tensor) -> Tensor:
        gathered = local.new_empty((world_size() * local.shape[0], *local.shape[1:]))
        dist.all_gather_into_tensor(gathered, local.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> Tensor:
        (grad_gathered,) = grad_outputs
        grad_local = grad_gathered.new_empty((grad_gathered.shape[0] // world_size(), *grad_gathered.shape[1:]))
        dist.reduce_scatter_tensor(grad_local, grad_gathered.contiguous(), op=dist.ReduceOp.SUM)
        return grad_local


def gather_rows(local: Tensor) -> Tensor:
    """Concatenate `local` (N, ...) of every rank in rank order, with gradient: (W*N, ...).

    N and the trailing shape must be the same on every rank; `gather_padded` takes different N.
    """
    return _GatherRows.apply(local) if is_distributed() else local


def gather_sizes(size: int, device: torch.device) -> list[int]:
    """Return one integer of each rank, in rank order."""
    if not is_distributed():
        return [size]
    sizes = torch.empty(world_size(), dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(sizes, torch.tensor([size], dtype=torch.int64, device=device))
    return [int(s) for s in sizes.tolist()]


def gather_padded(local: Tensor, sizes: Sequence[int]) -> Tensor:
    """Concatenate `local` (sizes[rank], ...) of every rank in rank order, with gradient: (sum(sizes), ...).

    `sizes` comes from `gather_sizes`. Ranks send max(sizes) rows; the padding is removed after the gather, so it
    reaches neither a value nor a gradient.
    """
    if not is_distributed():
        return local
    longest = max(sizes)
    if all(size == longest for size in sizes):
        return gather_rows(local)
    padded = torch.cat([local, local.new_zeros((longest - local.shape[0], *local.shape[1:]))])
    gathered = gather_rows(padded).unflatten(0, (world_size(), longest))
    return torch.cat([gathered[r, :size] for r, size in enumerate(sizes)])


@torch.no_grad()
def sum_over_ranks(value: Tensor) -> Tensor:
    """Return the sum of `value` over all ranks, without gradient."""
    total = value.detach().clone()
    if is_distributed():
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


@torch.no_grad()
def copy_buffers_from_rank_0(module: nn.Module) -> None:
    """Copy the buffers (BatchNorm's running statistics) of rank 0, which a checkpoint keeps, to every rank.

    Each rank moves its own by the images that it has seen; a training step does not read them.
    """
    if is_distributed():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def gather_objects(value: Any) -> list[Any]:
    """Return a small Python value of each rank, in rank order. It is pickled: for the ranks of one job only."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_rank_0(decide: Callable[[], Decision]) -> Decision:
    """Return on every rank what `decide` returns on rank 0; a ValueError there is raised on every rank.

    For what one process does or decides for all: files that it writes, a choice that all must share.
    """
    answer: list[Any] = [None, None]
    if rank() == 0:
        try:
            answer[0] = decide()
        except ValueError as error:
            answer[1] = str(error)
    if is_distributed():
        dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise ValueError(answer[1])
    return answer[0]


def explain_lost_rank(error: RuntimeError) -> str | None:
    """Return a message for torch's error about a rank that does not answer, None for any other error.

    gloo raises a RuntimeError that only its text tells apart.
    """
    if not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
        return None
    line = (str(error).splitlines() or [type(error).__name__])[0]
    reason = line.split("] ", 1)[-1].split(". ")[0]  # without gloo's file and advice
    return (
        f"another process of this program has ended, or did not answer in time ({reason}); its own output names the "
        "cause; a training continues from its newest checkpoint with --resume=auto; if a process was only slow, raise "
        "timeout_s"
    )


@contextlib.contextmanager
def separate_accelerator() -> Iterator[None]:
    """Forget accelerate's settings after the block, so that the next program of this process may use others.

    accelerate keeps device and precision of a process's first Accelerator and refuses others. An Accelerator that was
    there before the block keeps its settings.
    """
    from accelerate.state import AcceleratorState

    is_first = not AcceleratorState._shared_state
    try:
        yield
    finally:
        if is_first:
            AcceleratorState._reset_state(reset_partial_state=not is_distributed())


def start_accelerator(precision: str, timeout_s: int = 600, device: str = "auto") -> Accelerator:
    """Start the process group and return the accelerator.

    Args:
        precision: auto, no, bf16 or fp16.
        timeout_s: for a rank that waits for the others.
        device: auto (CUDA if there is any), cuda or cpu.

    Raises:
        ValueError: no such device, wrong results in that precision, or fewer processes than the launcher promised.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    cuda = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes")
    if device == "cuda" and not cuda:
        raise ValueError(
            "device = cuda, and torch finds no CUDA device here; use auto or cpu, or see what nvidia-smi says"
        )
    cuda = cuda and device != "cpu"
    if precision == "auto":
        precision = "bf16" if cuda else "no"
    if precision == "fp16" and not cuda:
        raise ValueError("precision = fp16 needs a CUDA device, and there is none; use no, bf16 or auto")
    # torch's newer name for broadcast_buffers does not exist in the oldest version that we support.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    accelerator = Accelerator(
        # Without cpu=True accelerate starts no process group on a machine without CUDA: every process would train for
        # itself.
        cpu=not cuda,
        mixed_precision=precision,
        kwargs_handlers=[
            # BatchNorm's running statistics are copied where they are read, in evaluations, not at each step.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=timedelta(seconds=timeout_s)),
        ],
    )
    promised = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != promised or world_size() != promised:
        raise ValueError(
            f"the launcher promised WORLD_SIZE = {promised} processes but {accelerator.num_processes} take part; on a "
            "CPU launch with --config_file launch/cpu.yaml"
        )
    check_precision(accelerator, precision)
    return accelerator


def check_precision(accelerator: Accelerator, precision: str) -> None:
    """Check on all ranks that low-precision results are correct. Collective.

    Args:
        precision: no, bf16 or fp16.

    Raises:
        ValueError: on every rank, if any rank computes wrong results.
    """
    for message in gather_objects(find_wrong_convolution(accelerator.device, AUTOCAST_DTYPES[precision])):
        if message:
            raise ValueError(f"precision = {precision}: {message}")
