"""What a training run prepares: data and plan, the model, checks before the first step, and the table it prints."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from reid.config import BatchConfig, Config, SpeedConfig, check_streams
from reid.config.schema import AUTO, NOT_SAVED
from reid.data.manifest import JUNK_PID, Manifest, Split, load_manifest
from reid.data.normalization import describe_pixels
from reid.data.plan import Plan
from reid.data.streams import Stock
from reid.data.workers import count_workers
from reid.distributed import gather_objects
from reid.metrics.features import UNKNOWN
from reid.model.network import ReIDModel, freeze_heads
from reid.model.sync_batchnorm import convert_sync
from reid.runs import checkpoint
from reid.runs.checkpoint import TrainState
from reid.runs.folder import RunFolder
from reid.training.validation import has_test_set, hold_out

if TYPE_CHECKING:
    from accelerate import Accelerator


def set_speed(speed: SpeedConfig) -> None:
    """Set process-wide switches of torch."""
    if speed.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not speed.deterministic


@dataclass(frozen=True)
class TrainData:
    """The data of a run. held_out (N,) bool: identities of the train split that are held out for validation."""

    manifest: Manifest
    held_out: np.ndarray
    plan: Plan

    @property
    def split(self) -> Split:
        return self.manifest.split("train")

    @property
    def num_classes(self) -> int:
        return len(np.unique(self.split.pids[~self.held_out]))


def load_data(config: Config, world_size: int = 1) -> TrainData:
    """Read the manifest and make the plan of batches, which chooses the streams if `batch.streams` is auto.

    Raises:
        ValueError: no shards, too few identities for the plan, the ranks or validation, or an evaluation without a
            match.
    """
    manifest = load_manifest(config.data.root)
    split = manifest.split("train")
    held_out = np.zeros(len(split.pids), dtype=bool)
    if config.data.val_identities:
        held_out[hold_out(split, config.data.val_identities)] = True
    counts = np.where(held_out, 0, split.images)
    batch = config.batch
    if batch.streams == AUTO:
        batch = replace(batch, streams=_choose_streams(config, counts, split, world_size))
    plan = Plan(
        image_counts=counts,
        shard_of=split.shard,
        num_shards=len(split.shards),
        identities=batch.identities,
        images=batch.images,
        streams=int(batch.streams),
        seed=config.seed,
        repeat_short=batch.short == "repeat",
        steps=batch.steps_per_epoch,
        pool_images=config.data.pool_images,
        ranks=batch.count_ranks(world_size),
    )
    check_rank_sizes(config, plan)
    check_matches(config, manifest)
    return TrainData(manifest, held_out, plan)


def _choose_streams(config: Config, image_counts: np.ndarray, split: Split, world_size: int) -> int:
    """Return what `batch.streams` = auto is. It does not depend on the number of processes, only whether it fits."""
    batch, ranks = config.batch, config.batch.count_ranks(world_size)
    stock = Stock.count(image_counts, split.shard, np.zeros(len(split.shards), dtype=np.int64))
    streams = _streams_of_run(config) or stock.choose(batch.identities, ranks=batch.ranks or 1)
    if streams % ranks and not stock.list_fitting(batch.identities, ranks=ranks):
        return ranks  # for the plan to tell what these ranks lack
    check_streams(replace(batch, streams=streams), world_size)
    return streams


def _streams_of_run(config: Config) -> int | None:
    """Return the streams of the run that is resumed, of whichever version; None for a new run."""
    saved = checkpoint.find(RunFolder(config.folder).checkpoints) if config.resume == "auto" else []
    for path in saved:
        with contextlib.suppress(ValueError, LookupError):  # damaged: the resume tells
            return int(checkpoint.read_state(path)["describes"]["plan"]["batch.streams"])
    return None


def build_model(config: Config, num_classes: int, device: torch.device) -> ReIDModel:
    """Return the model on the device, ready for the optimizer and for DDP. ValueError if it cannot take the images."""
    model = ReIDModel(num_classes, config.model, config.data.image_size).to(device)
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


def checkpoint_facts(config: Config, manifest: Manifest, num_classes: int) -> dict[str, Any]:
    """Return what a checkpoint belongs to; a resume with another model, data, plan or optimizer is refused.

    See `check_ranks` for batch.ranks, whose value 0 stands for a number.
    """
    model = {knob: value for knob, value in asdict(config.model).items() if knob not in NOT_SAVED}
    batches = {f"batch.{knob}": value for knob, value in asdict(config.batch).items() if knob != "ranks"}
    return {
        "model": model,
        "data": manifest.fingerprint,
        "held_out": {"data.val_identities": config.data.val_identities},
        "classes": num_classes,
        "pixels": describe_pixels(config.data),
        "plan": {"seed": config.seed, **batches, "data.pool_images": config.data.pool_images},
        "optimizer": {"optim.algorithm": config.optim.algorithm},
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
    held_out = int(data.held_out.sum())
    processes = accelerator.num_processes
    per_rank = plan.streams // processes
    in_stream = min(plan.pool_images or split.num_images, -(-split.num_images // plan.streams))
    image_bytes = sum(shard.bytes for shard in split.shards) / split.num_images
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if held_out:
        evaluates = "held-out identities, the test set after the last epoch"
    elif has_test_set(data.manifest):
        evaluates = "query against gallery"
    else:
        evaluates = "nothing: the data has no query and gallery"
    rows = {
        "data": f"{config.data.root}: {data.manifest.dataset}, {(plan.image_counts > 0).sum()} identities, "
        f"{plan.image_counts.sum()} images, {len(split.shards)} shards"
        + (f"; {held_out} identities held out" if held_out else ""),
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
        "evaluates": evaluates,
        "writes to": "nothing (dry run)" if config.dry_run else str(config.folder),
    }
    return "\n".join(f"{name:>10}  {value}" for name, value in rows.items())


def describe_batch(plan: Plan) -> str:
    """Return identities and images of a step, with the number of images that short groups leave."""
    if plan.images_per_step == plan.identities * plan.images:
        return f"{plan.identities} identities x {plan.images} images"
    counts = plan.image_counts[plan.image_counts > 0]
    return (
        f"{plan.identities} identities x up to {plan.images} images, {plan.images_per_step:.4g} images a step on "
        f"average, as {(counts < plan.images).sum()} of {len(counts)} identities have fewer (batch.short = keep)"
    )


def check_rank_sizes(config: Config, plan: Plan) -> None:
    """Raise ValueError if a step can give a virtual rank a single image."""
    single = int((plan.image_counts == 1).sum())
    if single and plan.identities == plan.ranks and not plan.repeat_short and not config.model.sync_batchnorm:
        raise ValueError(
            f"batch.identities = {plan.identities} on {plan.ranks} ranks: {single} identities have one image, and a "
            "rank that holds one of them holds nothing else, but BatchNorm needs two images; raise batch.identities, "
            "lower batch.ranks, launch fewer processes, or set batch.short = repeat"
        )


def check_matches(config: Config, manifest: Manifest) -> None:
    """Raise ValueError if there are query and gallery, and no query can have a match."""
    if not has_test_set(manifest):
        return
    query, gallery = manifest.split("query"), manifest.split("gallery")
    seen_by = {pid: set(cameras) for pid, cameras in zip(gallery.pids.tolist(), gallery.cameras, strict=True)}
    for pid, cameras in zip(query.pids.tolist(), query.cameras, strict=True):
        others = set() if pid in (JUNK_PID, manifest.distractor_pid) else seen_by.get(pid, set())
        if others and any(camera == UNKNOWN or others - {camera} for camera in cameras):
            return
    raise ValueError(
        f"data.root = {config.data.root}: no query has an image of its identity from another camera in the gallery, so "
        "there is nothing to evaluate; build the shards with identities and cameras numbered alike in both, without "
        "cameras (an empty column of a CSV) if there is only one, or only from the train images"
    )


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


def check_same_everywhere(code: str, data: str) -> list[str]:
    """Return the hosts of the job. Collective.

    Args:
        code: `code_version()`.
        data: the manifest's fingerprint.

    Raises:
        ValueError: on every rank, if code or data differ between ranks, for example because a node has an old copy.
    """
    seen = gather_objects((socket.gethostname(), code, data))
    fixes = {"code": "install or copy the same version everywhere", "data": "stage or copy the same shards everywhere"}
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
    return sorted({host for host, _, _ in seen})


def _name_ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
