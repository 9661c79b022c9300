"""What a training run does before its first step: processes, plan, folder, checkpoint, and the table that it prints."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from reid import checkpoint
from reid.checkpoint import Progress
from reid.config import Config, SpeedConfig, save
from reid.data.manifest import JUNK_PID, Manifest, Split
from reid.data.plan import Plan
from reid.distributed import from_rank_0
from reid.files import Held, hold
from reid.losses.objective import Objective
from reid.metrics.features import UNKNOWN
from reid.validation import hold_out

if TYPE_CHECKING:
    from accelerate import Accelerator

    from reid.data.images import Pixels

CHECKPOINTS = "checkpoints"


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


def build_objective(config: Config, num_classes: int, dim: int) -> Objective:
    loss = config.loss
    return Objective(
        num_classes,
        dim,
        cross_entropy_weight=loss.cross_entropy,
        smoothing=loss.smoothing,
        triplet_weight=loss.triplet,
        triplet_margin=loss.triplet_margin,
        triplet_scope=loss.triplet_scope,
        quadruplet_weight=loss.quadruplet,
        quadruplet_margin2=loss.quadruplet_margin2,
        mctl_weight=loss.mctl,
        ctl_weight=loss.ctl,
        w1=loss.w1,
        w2=loss.w2,
        margin=loss.margin,
        reading=loss.reading,
        normalize=loss.normalize,
        relative=loss.relative,
        center_weight=loss.center,
        center_lr=loss.center_lr,
        generator=torch.Generator().manual_seed(config.seed),
    )


def model_knobs(config: Config) -> dict[str, Any]:
    """Arguments of ReIDModel: the `model` section, and the size of the images that a transformer is built for."""
    return {**asdict(config.model), "image_size": (config.data.height, config.data.width)}


def build_pixels(config: Config, scale: int = 1) -> Pixels:
    """How images are decoded. scale: 1 gives the size that the encoder sees, 2 twice its height and width."""
    from reid.data.images import Pixels

    data = config.data
    return Pixels(scale * data.height, scale * data.width, data.max_pixels)


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


@contextlib.contextmanager
def own_folder(config: Config) -> Iterator[None]:
    """The run's folder, made, and this run's alone for the length of the block. ValueError on every rank otherwise."""
    with contextlib.ExitStack() as stack:

        def take() -> None:
            try:
                config.folder.mkdir(parents=True, exist_ok=True)
                _take_lock(stack, config.folder / ".lock")
                save(config, config.folder / "config.yaml.new")
            except Held as error:
                raise ValueError(
                    f"{config.folder}: {error} is training in this folder; wait for it, or give another --name"
                ) from error
            except OSError as error:
                reason = error.strerror or error
                raise ValueError(f"{config.folder} cannot be written: {reason}; give another --runs") from error
            (config.folder / "config.yaml.new").unlink()

        from_rank_0(take)
        yield


def _take_lock(stack: contextlib.ExitStack, path: Path) -> None:
    """Held if another run keeps it; a killed run's decoding processes let go of it a few seconds after it."""
    for _ in range(20):
        try:
            stack.enter_context(hold(path))
            return
        except Held:
            time.sleep(0.5)
    stack.enter_context(hold(path))


def choose_checkpoint(config: Config) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, the same on every rank, and what is wrong with newer ones.

    ValueError rather than write over an earlier run, and where there are only damaged ones.
    """

    def choose() -> tuple[Path | None, list[str]]:
        folder = config.folder / CHECKPOINTS
        if not config.dry_run:
            checkpoint.restore(folder)
        found = checkpoint.find(folder)
        if found and config.resume == "never" and not config.dry_run:
            raise ValueError(
                f"{config.folder} holds a run already ({found[0].name}); continue it with --resume=auto, "
                "or give another --name"
            )
        return checkpoint.find_sound(folder) if config.resume == "auto" else (None, [])

    return from_rank_0(choose)


def check_space(config: Config, model: nn.Module, objective: nn.Module) -> None:
    """ValueError where the disk has no room for the checkpoints that will be kept, and the next one."""
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    centers = sum(value.numel() * value.element_size() for value in objective.state_dict().values())
    wanted = (3 * weights + centers) * (config.track.keep_checkpoints + 2)  # weights and Adam's two moments
    free = shutil.disk_usage(config.folder).free
    if free < wanted:
        raise ValueError(
            f"{config.folder}: {free / 2**20:,.0f} MiB are free, {config.track.keep_checkpoints + 2} checkpoints take "
            f"{wanted / 2**20:,.0f} MiB; make room, lower track.keep_checkpoints, or give another --runs"
        )


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
