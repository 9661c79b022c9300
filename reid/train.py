"""The training program, read top to bottom: `accelerate launch train.py --config configs/quickstart.yaml`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from tqdm import tqdm

from reid import checkpoint
from reid.augment import Augmentation
from reid.checkpoint import Progress
from reid.config import Config, check, parse, save, to_dict
from reid.distributed import copy_buffers_from_rank_0, world_size
from reid.features import evaluate_over_ranks, extract
from reid.loader import Pixels, TrainLoader
from reid.manifest import Manifest, Split, load_manifest
from reid.model import ReIDModel
from reid.objective import Objective
from reid.optim import Schedule, build_optimizer
from reid.plan import Plan
from reid.tracking import Tracker, name_in_sweep
from reid.watch import FiniteWatch, HingeWatch, Meter, mean_over_ranks

CHECKPOINTS = "checkpoints"


def main(args: Sequence[str] | None = None) -> None:
    """The program: parse, train, and end with one line instead of a stack trace where the user can mend it."""
    config = parse(Config, args)
    try:
        train(config)
    except ValueError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def start_accelerator(precision: str) -> Accelerator:
    """The accelerator, on CUDA where it is there, and a check that the world is what the launcher promised."""
    cuda = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes")
    if precision == "auto":
        precision = "bf16" if cuda else "no"
    accelerator = Accelerator(
        # Without cpu=True accelerate starts no process group on a machine without CUDA: every process would believe
        # that it is alone, and train by itself.
        cpu=not cuda,
        mixed_precision=precision,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    promised = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != promised or world_size() != promised:
        raise ValueError(
            f"the launcher promised WORLD_SIZE = {promised} processes but {accelerator.num_processes} take part; on a "
            "CPU launch with --config_file launch/cpu.yaml"
        )
    return accelerator


def build_plan(config: Config, split: Split) -> Plan:
    return Plan(
        image_counts=split.images,
        shard_of=split.shard,
        num_shards=len(split.shards),
        identities=config.batch.identities,
        images=config.batch.images,
        streams=config.batch.streams,
        seed=config.seed,
        repeat_short=config.batch.short == "repeat",
        steps=config.batch.steps_per_epoch,
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


def describe(config: Config, manifest: Manifest) -> dict[str, Any]:
    """What a checkpoint belongs to; one of another model or other data is refused."""
    model = asdict(config.model)
    del model["weights"]
    return {"model": model, "classes": manifest.split("train").num_pids, "data": manifest.fingerprint}


def train(config: Config) -> Path:
    """Train one run and return its folder. Raises ValueError on what the user can mend, before the first step."""
    config.name = name_in_sweep(config.name)
    check(config, int(os.environ.get("WORLD_SIZE", "1")))
    root = Path(config.data.root)
    manifest = load_manifest(root)
    split = manifest.split("train")
    plan = build_plan(config, split)
    newest = choose_checkpoint(config)

    accelerator = start_accelerator(config.precision)
    device, is_main = accelerator.device, accelerator.is_main_process
    torch.manual_seed(config.seed)
    model = ReIDModel(split.num_pids, **asdict(config.model)).to(device)
    objective = build_objective(config, split.num_pids, model.dim).to(device)
    optimizer = build_optimizer(model, config.optim.lr, config.optim.weight_decay)
    progress = Progress(0, 0, {})
    if newest is not None:
        progress = checkpoint.load(newest, model, describe(config, manifest), objective, optimizer)
    bare_model = model
    model, optimizer = accelerator.prepare(model, optimizer)

    steps, epochs = plan.steps_per_epoch, config.optim.epochs
    optim = config.optim
    schedule = Schedule(optim.lr, steps, optim.warmup_epochs, optim.warmup_factor, optim.milestones, optim.gamma)
    augmentation = Augmentation(**asdict(config.augment))
    pixels = Pixels(config.data.height, config.data.width, config.data.max_pixels)
    loader = TrainLoader(
        root,
        split,
        plan,
        pixels,
        augmentation,
        accelerator.process_index,
        accelerator.num_processes,
        config.data.workers,
    )
    if is_main:
        config.folder.mkdir(parents=True, exist_ok=True)
        save(config, config.folder / "config.yaml")
        print(start_up_text(config, manifest, plan, accelerator, progress), flush=True)
    tracker = Tracker(
        config.folder,
        active=is_main,
        mode=config.track.wandb,
        project=config.track.project,
        name=config.name,
        job_type="train",
        config={**to_dict(config), "data_fingerprint": manifest.fingerprint, "world_size": accelerator.num_processes},
        resume_step=progress.epoch * steps + progress.step,
    )

    model.train()
    meter, finite, hinge = Meter(accelerator.num_processes), FiniteWatch(split.names), HingeWatch()
    mend = (
        f"lower optim.lr (now {optim.lr}) or set optim.clip_norm; checkpoints from before are in "
        f"{config.folder / CHECKPOINTS}"
    )
    on_terminal = is_main and sys.stderr.isatty()
    bar = tqdm(
        total=epochs * steps, initial=progress.epoch * steps + progress.step, disable=not on_terminal, unit="step"
    )
    for epoch, step, batch in meter.timed(loader.batches(epochs, (progress.epoch, progress.step))):
        global_step = epoch * steps + step
        rate = schedule.apply(optimizer, global_step)
        labels = batch.labels.to(device, non_blocking=True)
        images = augmentation.apply(batch.images.to(device, non_blocking=True), batch.parameters)
        with accelerator.autocast():
            features, logits = model(images)
        total, terms = objective(features, logits, labels)
        accelerator.backward(total)
        if optim.clip_norm:
            accelerator.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        objective.update_centers(features, labels)
        meter.count(len(labels))
        finite.see(global_step, batch.ids, features)
        hinge.see(terms)
        bar.update()

        end_of_epoch = step == steps - 1
        if (global_step + 1) % config.track.every_steps == 0 or end_of_epoch:
            values = mean_over_ranks({"loss": total.detach(), **terms})
            finite.check(values, mend)
            speed = meter.read()
            logged = {f"train/{name}": value for name, value in {**values, "lr": rate, **speed}.items()}
            tracker.log(global_step, {"epoch": epoch, **logged})
            line = (
                f"epoch {epoch + 1}/{epochs} loss {values['loss']:.3f} {speed['images_per_s']:.0f} images/s "
                f"waiting for data {speed['data_wait_share']:.0%}"
            )
            bar.set_postfix_str(line, refresh=False)
            if is_main and not on_terminal and end_of_epoch:
                print(line, flush=True)
        if not end_of_epoch:
            continue
        if (idle := hinge.end_epoch(config.loss.margin)) and is_main:
            bar.write(idle)
        evaluates = epoch == epochs - 1 or (config.eval.every_epochs and (epoch + 1) % config.eval.every_epochs == 0)
        if evaluates and can_evaluate(manifest):
            scores = evaluate_in_training(config, bare_model, manifest, pixels, accelerator)
            best = max(progress.best.get("image/mAP", 0.0), scores["image/mAP"])
            progress = Progress(epoch, step, {"image/mAP": best})
            tracker.log(
                global_step, {f"eval/{name}": value for name, value in scores.items()} | {"eval/best_mAP": best}
            )
            tracker.summarize({"eval/best_mAP": best, "eval/last_mAP": scores["image/mAP"]})
            if is_main:
                bar.write(f"epoch {epoch + 1}: image mAP {scores['image/mAP']:.4f}, rank-1 {scores['image/rank1']:.4f}")
        if is_main:
            after = Progress(epoch + 1, 0, progress.best)
            checkpoint.save(
                config.folder / CHECKPOINTS, bare_model, objective, optimizer, after, describe(config, manifest),
                config.track.keep_checkpoints,
            )  # fmt: skip
        accelerator.wait_for_everyone()
    bar.close()
    tracker.finish()
    if is_main:
        print(f"trained {epochs} epochs with {accelerator.num_processes} process(es); the run is in {config.folder}")
    accelerator.end_training()
    return config.folder


def choose_checkpoint(config: Config) -> Path | None:
    """The checkpoint to go on from. Raises ValueError rather than write over an earlier run."""
    found = checkpoint.find(config.folder / CHECKPOINTS)
    if found and config.resume == "never":
        raise ValueError(
            f"{config.folder} holds a run already ({found[0].name}); continue it with --resume=auto, "
            "or give another --name"
        )
    return found[0] if found else None


def start_up_text(config: Config, manifest: Manifest, plan: Plan, accelerator: Accelerator, progress: Progress) -> str:
    split = manifest.split("train")
    rows = {
        "data": f"{config.data.root}: {manifest.dataset}, {split.num_pids} identities, {split.num_images} images, "
        f"{len(split.shards)} shards",
        "batch": f"{plan.identities} identities x {plan.images} images over {accelerator.num_processes} process(es), "
        f"{plan.streams} streams",
        "device": f"{accelerator.device}, precision {accelerator.mixed_precision}",
        "steps": f"{plan.steps_per_epoch} an epoch, {config.optim.epochs} epochs, from epoch {progress.epoch + 1} "
        f"step {progress.step + 1}",
        "evaluates": "query against gallery"
        if can_evaluate(manifest)
        else "nothing: the data has no query and gallery",
        "writes to": str(config.folder),
    }
    return "\n".join(f"{name:>10}  {value}" for name, value in rows.items())


def can_evaluate(manifest: Manifest) -> bool:
    """A folder of training images alone is enough to train on."""
    return {"query", "gallery"} <= set(manifest.splits)


def evaluate_in_training(
    config: Config, model: torch.nn.Module, manifest: Manifest, pixels: Pixels, accelerator: Accelerator
) -> dict[str, float]:
    """Image and centroid figures of query against gallery, on all ranks; the unwrapped model, as DDP would hang."""
    copy_buffers_from_rank_0(model)
    both = [
        extract(
            model, Path(config.data.root), manifest, split, pixels, batch_size=config.eval.batch_size,
            workers=config.data.workers, device=accelerator.device,
        ).features
        for split in ("query", "gallery")
    ]  # fmt: skip
    results = evaluate_over_ranks(both[0], both[1], ["image", "centroid"])
    scores: dict[str, float] = {}
    for protocol, result in results.items():
        scores |= {
            f"{protocol}/mAP": result.mAP,
            f"{protocol}/mINP": result.mINP,
            f"{protocol}/rank1": float(result.cmc[0]),
        }
    return scores


if __name__ == "__main__":
    main()
