"""What a training run does before its first step: processes, plan, folder, checkpoint, and the table that it prints."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from reid.config import Config, SpeedConfig
from reid.data.manifest import JUNK_PID, Manifest, Split
from reid.data.plan import Plan
from reid.distributed import gather_objects
from reid.metrics.features import UNKNOWN
from reid.runs.checkpoint import Progress
from reid.training.validation import hold_out

if TYPE_CHECKING:
    from accelerate import Accelerator


def set_speed(speed: SpeedConfig) -> None:
    """Process-wide switches of torch."""
    if speed.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not speed.deterministic


def hold_out_rows(config: Config, split: Split) -> np.ndarray:
    """(N,) bool: the identities that are held out for validation."""
    held_out = np.zeros(len(split.pids), dtype=bool)
    if config.data.val_identities:
        held_out[hold_out(split, config.data.val_identities)] = True
    return held_out


def build_plan(config: Config, split: Split, held_out: np.ndarray) -> Plan:
    return Plan(
        image_counts=np.where(held_out, 0, split.images),
        shard_of=split.shard,
        num_shards=len(split.shards),
        identities=config.batch.identities,
        images=config.batch.images,
        streams=config.batch.streams,
        seed=config.seed,
        repeat_short=config.batch.short == "repeat",
        steps=config.batch.steps_per_epoch,
        pool_images=config.data.pool_images,
    )


def describe(config: Config, manifest: Manifest, num_classes: int) -> dict[str, Any]:
    """What a checkpoint belongs to; one of another model, other data, plan or optimizer is refused."""
    model = asdict(config.model)
    for knob in ("weights", "norm", "sync_batchnorm", "frozen_epochs"):  # none of them changes what is saved
        del model[knob]
    batches = {f"batch.{knob}": value for knob, value in asdict(config.batch).items()}
    return {
        "model": model,
        "classes": num_classes,
        "data": manifest.fingerprint,
        "plan": {"seed": config.seed, **batches, "data.pool_images": config.data.pool_images},
        "optimizer": {"optim.algorithm": config.optim.algorithm},
    }


def start_up_text(
    config: Config, manifest: Manifest, plan: Plan, accelerator: Accelerator, progress: Progress, encoder: str
) -> str:
    split = manifest.split("train")
    trained = plan.image_counts > 0
    per_rank = plan.streams // accelerator.num_processes
    in_stream = min(plan.pool_images or split.num_images, -(-split.num_images // plan.streams))
    image_bytes = sum(shard.bytes for shard in split.shards) / split.num_images
    rows = {
        "data": f"{config.data.root}: {manifest.dataset}, {trained.sum()} identities, "
        f"{plan.image_counts.sum()} images, {len(split.shards)} shards"
        + (f"; {(~trained).sum()} identities held out" if not trained.all() else ""),
        "batch": f"{plan.identities} identities x {plan.images} images over {accelerator.num_processes} process(es), "
        f"{plan.streams} streams",
        "memory": f"{per_rank} streams x {in_stream} encoded images, about "
        f"{per_rank * in_stream * image_bytes / 2**20:,.0f} MiB a process",
        "device": f"{accelerator.device}, precision {accelerator.mixed_precision}",
        "encoder": encoder,
        "steps": f"{plan.steps_per_epoch} an epoch, {config.optim.epochs} epochs, from epoch {progress.epoch + 1} "
        f"step {progress.step + 1}",
        "evaluates": "held-out identities, the test set after the last epoch"
        if not trained.all()
        else "query against gallery"
        if can_evaluate(manifest)
        else "nothing: the data has no query and gallery",
        "writes to": "nothing (dry run)" if config.dry_run else str(config.folder),
    }
    return "\n".join(f"{name:>10}  {value}" for name, value in rows.items())


def can_evaluate(manifest: Manifest) -> bool:
    """A folder of training images alone is enough to train on."""
    return {"query", "gallery"} <= set(manifest.splits)


def check_matches(config: Config, manifest: Manifest) -> None:
    """ValueError where there are query and gallery, and no query can have a match: the figures would be empty."""
    if not can_evaluate(manifest):
        return
    query, gallery = manifest.split("query"), manifest.split("gallery")
    seen_by = {pid: set(cameras) for pid, cameras in zip(gallery.pids.tolist(), gallery.cameras, strict=True)}
    for pid, cameras in zip(query.pids.tolist(), query.cameras, strict=True):
        others = set() if pid in (JUNK_PID, manifest.distractor_pid) else seen_by.get(pid, set())
        if others and any(camera == UNKNOWN or others - {camera} for camera in cameras):
            return
    raise ValueError(
        f"data.root = {config.data.root}: no query has an image of its identity from another camera in the gallery, so "
        "there is nothing to evaluate; build the shards with identities and cameras numbered alike in both, or of the "
        "train images alone"
    )


def check_image_size(config: Config, model: nn.Module, device: torch.device) -> None:
    """ValueError where the encoder cannot take images so small (or of such a size); by a try with two of them."""
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
    """Collective. The hosts of the job, each once; ValueError on every rank where code or data differ between ranks.

    code: `code_version()`; data: the manifest's fingerprint. A node with an old copy of either trains something else.
    """
    seen = gather_objects((socket.gethostname(), code, data))
    mends = {"code": "install or copy the same version everywhere", "data": "stage or copy the same shards everywhere"}
    for place, (what, mend) in enumerate(mends.items(), start=1):
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
                f"but {named}; {mend}"
            )
    return sorted({host for host, _, _ in seen})


def _name_ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
