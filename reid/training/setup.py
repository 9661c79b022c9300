"""What a training run prepares: the model, what its checkpoints belong to, checks, and the table it prints."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from reid.config import BatchConfig, Config, SpeedConfig
from reid.config.schema import NOT_SAVED
from reid.data.normalization import describe_pixels
from reid.data.workers import count_workers
from reid.distributed import gather_objects
from reid.model.checkpointing import checkpoint_blocks
from reid.model.network import ReIDModel, freeze_heads
from reid.model.sync_batchnorm import convert_sync
from reid.runs.checkpoint import NO_AVERAGE, TrainState
from reid.training.data import TrainData, describe_batch
from reid.training.validation import describe_evaluation

if TYPE_CHECKING:
    from accelerate import Accelerator


def set_speed(speed: SpeedConfig) -> None:
    """Set process-wide switches of torch."""
    if speed.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not speed.deterministic


def build_model(config: Config, num_classes: int, device: torch.device) -> ReIDModel:
    """Return the model on the device, ready for the optimizer and for DDP. ValueError if it cannot take the images."""
    model = ReIDModel(num_classes, config.model, config.data.image_size).to(device)
    if config.speed.gradient_checkpointing:
        checkpoint_blocks(model.encoder, config.model.encoder)
    model = model.to(memory_format=memory_format(config, device))
    check_image_size(config, model, device)
    if not config.loss.cross_entropy:
        freeze_heads(model, neck="neck" not in config.loss.spaces)
    if config.model.sync_batchnorm:
        convert_sync(model)
    return model


def memory_format(config: Config, device: torch.device) -> torch.memory_format:
    is_channels_last = config.speed.channels_last and device.type == "cuda"
    return torch.channels_last if is_channels_last else torch.contiguous_format


def checkpoint_facts(
    config: Config, fingerprints: Sequence[str], num_classes: int, shares: Sequence[int] = ()
) -> dict[str, Any]:
    """Return what a checkpoint belongs to; a resume with another model, data, plan or optimizer is refused.

    See `check_ranks` for batch.ranks, whose value 0 stands for a number.

    Args:
        fingerprints: of the datasets.
        shares: of each of several datasets its identities in a step.
    """
    several = len(fingerprints) > 1
    model = {knob: value for knob, value in asdict(config.model).items() if knob not in NOT_SAVED}
    chosen = {"shares": list(shares)} if several else {}  # before the streams, which depend on them
    batches = chosen | {knob: value for knob, value in asdict(config.batch).items() if knob not in ("ranks", "shares")}
    return {
        "model": model,
        "data": list(fingerprints) if several else fingerprints[0],
        "held_out": {"data.val_identities": config.data.val_identities},
        "classes": num_classes,
        "pixels": describe_pixels(config.data),
        "plan": {
            "seed": config.seed,
            **{f"batch.{knob}": value for knob, value in batches.items()},
            "data.pool_images": config.data.pool_images,
        },
        "optimizer": {"optim.algorithm": config.optim.algorithm},
        "average": {"optim.ema": "on"} if config.optim.ema else NO_AVERAGE,
    }


def check_ranks(state: TrainState, batch: BatchConfig, world_size: int) -> list[str]:
    """Return warnings about a resume from `state` with other virtual ranks.

    Raises:
        ValueError: their number was chosen by batch.ranks, there or here, and differs.
    """
    ranks = batch.count_ranks(world_size)
    if state.ranks == ranks:
        return []
    if not state.ranks:
        return [f"{state.name} is of an earlier version, which did not note its number of ranks; here it is {ranks}"]
    differs = f"{state.name} was trained with {state.ranks} ranks, here it is batch.ranks = {ranks}"
    fix = f"--batch.ranks={state.ranks} computes the same on any number of processes that divides {state.ranks}"
    if state.follows_processes and not batch.ranks:
        return [f"{differs} (0, the number of processes): batch statistics and local triplets change; {fix}"]
    raise ValueError(f"{differs}; {fix}; or give another --name")


def format_start_up(
    config: Config, data: TrainData, accelerator: Accelerator, state: TrainState, model: ReIDModel
) -> str:
    """Return the table that a run prints before its first step."""
    split, plan = data.split, data.plan
    processes = accelerator.num_processes
    per_rank = plan.streams // processes
    in_stream = min(plan.pool_images or split.num_images, -(-split.num_images // plan.streams))
    image_bytes = sum(shard.bytes for shard in split.shards) / split.num_images
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = {
        "data": data.describe(),
        "batch": f"{describe_batch(plan)}, {plan.streams} streams",
        "ranks": f"{plan.ranks} virtual over {processes} process(es), "
        f"{plan.images_per_step / plan.ranks:.4g} images each"
        + (", computed twice (speed.recompute)" if config.speed.recompute else ""),
        "reading": f"{count_workers(config.data.workers, per_rank)} decoding process(es) for each process",
        "memory": f"{per_rank} streams x {in_stream} encoded images, about "
        f"{per_rank * in_stream * image_bytes / 2**20:,.0f} MiB a process",
        "device": f"{accelerator.device}, precision {accelerator.mixed_precision}",
        "encoder": f"{config.model.encoder}, features of {model.dim}, {parameters / 1e6:.1f} million parameters",
        "weights": model.initial_weights,
        "steps": f"{plan.steps_per_epoch} an epoch, {config.optim.epochs} epochs, "
        + (f"from epoch {state.epoch + 1} step {state.step + 1}" if state.epoch < config.optim.epochs else "all made"),
        "evaluates": describe_evaluation(data.joined.datasets, bool(data.held_out.any())),
        **({"average": f"optim.ema = {config.optim.ema}: saved as the model"} if config.optim.ema else {}),
        "writes to": "nothing (dry run)" if config.dry_run else str(config.folder),
    }
    return "\n".join(f"{name:>10}  {value}" for name, value in rows.items())


def check_image_size(config: Config, model: nn.Module, device: torch.device) -> None:
    """Raise ValueError if the encoder cannot take images of this size, found by trying with two."""
    height, width = config.data.height, config.data.width
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(2, 3, height, width, device=device))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"data.height = {height}, data.width = {width}: {config.model.encoder} cannot take images of this size: "
            f"{str(error).splitlines()[0]}"
        ) from error
    finally:
        model.train(was_training)


def check_same_everywhere(code: str, data: str, streams: int) -> list[str]:
    """Return the hosts of the job. Collective.

    Args:
        code: `code_version()`.
        data: the manifest's fingerprint.
        streams: of the plan; if `batch.streams` is auto, each rank reads them from the run that is resumed.

    Raises:
        ValueError: on every rank, if they differ between ranks, for example because a node has an old copy.
    """
    seen = gather_objects((socket.gethostname(), code, data, str(streams)))
    fixes = {
        "code": "install or copy the same version everywhere",
        "data": "stage or copy the same shards everywhere",
        "batch.streams": "give --runs a folder that all nodes share, so that all resume from the same checkpoint",
    }
    for place, (what, fix) in enumerate(fixes.items(), start=1):
        groups: dict[str, list[int]] = {}
        for rank, facts in enumerate(seen):
            groups.setdefault(facts[place], []).append(rank)
        if len(groups) > 1:
            usual = max(groups.values(), key=len)
            others = {value: ranks for value, ranks in groups.items() if ranks is not usual}
            named = "; ".join(
                f"{_name_ranks(ranks)} ({', '.join(sorted({seen[rank][0] for rank in ranks}))}): {value[:24]}"
                for value, ranks in others.items()
            )
            raise ValueError(
                f"the processes of this run have different {what}: {_name_ranks(usual)}: {seen[usual[0]][place][:24]}, "
                f"but {named}; {fix}"
            )
    return sorted({host for host, *_ in seen})


def _name_ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
