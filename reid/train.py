"""The training program, read top to bottom: `accelerate launch train.py --config configs/quickstart.yaml`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from reid import checkpoint, program
from reid.augment import Augmentation
from reid.checkpoint import Progress
from reid.config import Config, check, parse, save, to_dict
from reid.distributed import copy_buffers_from_rank_0, from_rank_0, gather_objects
from reid.environment import check_same_everywhere, code_version, describe_environment
from reid.features import Extracted, evaluate_over_ranks, extract
from reid.loader import TrainLoader
from reid.manifest import MANIFEST_NAME, Manifest, load_manifest
from reid.model import ReIDModel, drop_frozen_gradients
from reid.normalization import convert_sync
from reid.optim import Schedule, build_optimizer, scale_lr
from reid.pixels import Pixels
from reid.startup import (
    CHECKPOINTS,
    build_objective,
    build_plan,
    can_evaluate,
    check_space,
    choose_checkpoint,
    describe,
    hold_out_rows,
    model_knobs,
    own_folder,
    set_speed,
    start_accelerator,
    start_up_text,
)
from reid.stopping import STOPPED, StopRequest
from reid.storage import is_remote
from reid.tracking import Tracker, name_in_sweep
from reid.validation import split_queries
from reid.watch import DamageWatch, FiniteWatch, HingeWatch, Meter, mean_over_ranks

STOPPED_FILE = "stopped.json"
DRY_STEPS = 2


def main(args: Sequence[str] | None = None) -> None:
    """The program: parse, train, and end with one line instead of a stack trace where the user can mend it.

    Exit status: 0 trained, 2 an error that names its mend, STOPPED after a request to stop.
    """
    config = parse(Config, args)
    if program.call(lambda: train(config)):
        sys.exit(STOPPED)


def train(config: Config) -> bool:
    """Train one run; True if it was stopped on request before its end.

    Raises ValueError on what the user can mend, before the first step where that is possible.
    """
    config.name = name_in_sweep(config.name)
    check(config, int(os.environ.get("WORLD_SIZE", "1")))
    manifest = load_manifest(config.data.root)
    build_plan(config, manifest.split("train"), hold_out_rows(config, manifest.split("train")))  # or say why not
    set_speed(config.speed)
    accelerator = start_accelerator(config.precision, config.timeout_s)
    hosts = check_same_everywhere(code_version(), manifest.fingerprint)
    with contextlib.nullcontext() if config.dry_run else own_folder(config):
        stopped = run(config, manifest, accelerator, hosts)
        accelerator.wait_for_everyone()  # a launcher ends all processes when the first ends with STOPPED
    accelerator.end_training()
    return stopped


def run(config: Config, manifest: Manifest, accelerator: Accelerator, hosts: Sequence[str]) -> bool:
    """From the first step to the last; True if it was stopped before. hosts: that take part, for the log."""
    device, is_main = accelerator.device, accelerator.is_main_process
    optim, track = config.optim, config.track
    split = manifest.split("train")
    held_out = hold_out_rows(config, split)
    plan = build_plan(config, split, held_out)
    num_classes = len(np.unique(split.pids[~held_out]))
    newest, damaged = choose_checkpoint(config)

    torch.manual_seed(config.seed)
    model = ReIDModel(num_classes, **model_knobs(config)).to(device)
    if config.model.sync_batchnorm:
        convert_sync(model)
    objective = build_objective(config, num_classes, model.dim).to(device)
    lr = scale_lr(optim.lr, config.batch.identities, optim.reference_identities, optim.lr_rule)
    optimizer = build_optimizer(
        model, lr, optim.weight_decay, algorithm=optim.algorithm, momentum=optim.momentum,
        head_lr_factor=optim.head_lr_factor, bias_lr_factor=optim.bias_lr_factor, decay_norm=optim.decay_norm,
    )  # fmt: skip
    about = describe(config, manifest, num_classes)
    progress = Progress(0, 0)
    if newest is not None:
        progress = checkpoint.load(newest, model, about, objective, optimizer, accelerator.scaler)
    if not config.dry_run:
        from_rank_0(lambda: check_space(config, model, objective))
    layout = torch.channels_last if config.speed.channels_last and device.type == "cuda" else torch.contiguous_format
    model = model.to(memory_format=layout)
    bare_model = model
    if config.speed.compile:
        model.compile()
    model, optimizer = accelerator.prepare(model, optimizer)

    steps, epochs = plan.steps_per_epoch, optim.epochs
    schedule = Schedule(
        lr, steps, optim.warmup_epochs, optim.warmup_factor, optim.milestones, optim.gamma, optim.schedule, epochs
    )
    augmentation = Augmentation(**asdict(config.augment))
    pixels = Pixels(config.data.height, config.data.width, config.data.max_pixels)
    loader = TrainLoader(
        config.data.root,
        split,
        plan,
        pixels,
        augmentation,
        accelerator.process_index,
        accelerator.num_processes,
        config.data.workers,
        config.data.on_damage,
    )
    if is_main:
        parameters = sum(parameter.numel() for parameter in bare_model.parameters())
        encoder = f"{config.model.encoder}, {parameters / 1e6:.1f} million parameters, weights {config.model.weights}"
        print(start_up_text(config, manifest, plan, accelerator, progress, encoder), flush=True)
        for text in damaged:
            print(f"warning: {text}; going on from {newest}", flush=True)
        if not config.dry_run:
            save(config, config.folder / "config.yaml")
            (config.folder / STOPPED_FILE).unlink(missing_ok=True)
    tracker = Tracker(
        config.folder,
        active=is_main and not config.dry_run,
        mode=track.wandb,
        project=track.project,
        name=config.name,
        job_type="train",
        config={
            **to_dict(config),
            "data_fingerprint": manifest.fingerprint,
            "world_size": accelerator.num_processes,
            "hosts": hosts,
            "environment": describe_environment(),
        },
        resume_step=progress.epoch * steps + progress.step,
    )

    def evaluate(last: bool) -> dict[str, float]:
        if held_out.any() and not last:
            return evaluate_held_out(config, bare_model, manifest, pixels, accelerator, held_out)
        scores: dict[str, float] = {}
        if held_out.any():
            scores |= evaluate_held_out(config, bare_model, manifest, pixels, accelerator, held_out)
        if can_evaluate(manifest):
            scores |= evaluate_test(config, bare_model, manifest, pixels, accelerator)
        return scores

    def keep(progress: Progress, must: bool) -> None:
        """Write a checkpoint; a failure is an error if nothing comes after it, or else a warning."""

        def write() -> str:
            try:
                checkpoint.save(
                    config.folder / CHECKPOINTS, bare_model, objective, optimizer, progress, about,
                    track.keep_checkpoints, accelerator.scaler,
                )  # fmt: skip
            except OSError as error:
                reason = f"{config.folder / CHECKPOINTS}: no checkpoint could be written: {error.strerror or error}"
                if must:
                    raise ValueError(f"{reason}; earlier ones are whole") from error
                return f"warning: {reason}; training goes on, earlier ones are whole"
            return ""

        if not config.dry_run and (warning := from_rank_0(write)) and is_main:
            bar.write(warning)

    model.train()
    meter = Meter(accelerator.num_processes, device)
    finite, hinge, damage = FiniteWatch(split.names), HingeWatch(), DamageWatch(progress.dropped)
    stop = StopRequest(Path(config.stop_file) if config.stop_file else None)
    mend = (
        f"lower optim.lr (now {optim.lr}) or set optim.clip_norm; checkpoints from before are in "
        f"{config.folder / CHECKPOINTS}"
    )
    on_terminal = is_main and sys.stderr.isatty()
    first = progress.epoch * steps + progress.step
    last_step = min(epochs * steps, first + DRY_STEPS) - 1 if config.dry_run else epochs * steps - 1
    bar = tqdm(total=epochs * steps, initial=first, disable=not on_terminal, unit="step")
    best_metric = "val/mAP" if held_out.any() else "image/mAP"
    stopped = False
    for epoch, step, batch in meter.timed(loader.batches(epochs, (progress.epoch, progress.step), progress.dropped)):
        global_step = epoch * steps + step
        # What the model draws (dropout, stochastic depth) depends on the step alone: a resumed run draws the same.
        torch.manual_seed(((config.seed << 32) + global_step) * 4096 + accelerator.process_index)
        rate = schedule.apply(optimizer, global_step)
        bare_model.begin_epoch(epoch)
        labels = batch.labels.to(device, non_blocking=True)
        pixel_batch = batch.images.pin_memory() if config.speed.pin_memory and device.type == "cuda" else batch.images
        images = augmentation.apply(pixel_batch.to(device, non_blocking=True), batch.parameters)
        with accelerator.autocast():
            features, logits = model(images.contiguous(memory_format=layout))
        total, terms = objective(features, logits, labels)
        accelerator.backward(total)
        drop_frozen_gradients(bare_model)
        if optim.clip_norm:
            accelerator.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not accelerator.optimizer_step_was_skipped:  # fp16: features that overflowed must not move the centers
            objective.update_centers(features, labels)
        meter.count(len(labels))
        finite.see(global_step, batch.ids, features)
        hinge.see(terms)
        damage.see(batch.dropped)
        bar.update()

        stopped = stop.agreed()
        end_of_epoch = step == steps - 1
        writes = end_of_epoch or stopped or (track.checkpoint_steps and (global_step + 1) % track.checkpoint_steps == 0)
        if (global_step + 1) % track.every_steps == 0 or writes or global_step == last_step:
            values = mean_over_ranks({"loss": total.detach(), **terms})
            finite.check(values, mend)  # before any checkpoint
            speed = meter.read()
            logged = {f"train/{name}": value for name, value in {**values, "lr": rate, **speed}.items()}
            tracker.log(global_step, {"epoch": epoch, **logged})
            line = describe_step(epoch, epochs, values, speed, left=last_step - global_step)
            bar.set_postfix_str(line, refresh=False)
            if is_main and not on_terminal and (end_of_epoch or stopped or global_step == last_step):
                print(line, flush=True)
        progress = replace(progress, epoch=epoch, step=step + 1, dropped=damage.rows)
        if end_of_epoch:
            if (idle := hinge.end_epoch(config.loss.margin)) and is_main:
                bar.write(idle)
            if config.data.on_damage == "skip":
                dropped, warning = damage.end_epoch()
                tracker.log(global_step, {"data/dropped_identities": float(dropped)})
                if warning and is_main:
                    bar.write(warning)
            progress = replace(progress, epoch=epoch + 1, step=0, dropped=())
            evaluates = config.eval.every_epochs and (epoch + 1) % config.eval.every_epochs == 0
            scores = {}
            if evaluates or global_step == last_step:
                keep(progress, must=False)  # an evaluation takes time, in which much can happen
                scores = evaluate(last=global_step == last_step)
            if best_metric in scores:
                if scores[best_metric] >= progress.best.get(best_metric, 0.0):
                    progress = replace(progress, best=scores, best_name=progress.name)
                best = progress.best[best_metric]
                logged = {f"eval/{name}": value for name, value in scores.items()} | {"eval/best_mAP": best}
                tracker.log(global_step, logged)
                tracker.summarize({"eval/best_mAP": best, "eval/last_mAP": scores[best_metric]})
                if is_main:
                    bar.write(f"epoch {epoch + 1}: {describe_scores(scores)}")
        if writes:
            if config.data.on_damage == "skip":
                everywhere = {row for rows in gather_objects(progress.dropped) for row in rows}
                progress = replace(progress, dropped=tuple(sorted(everywhere)))
            keep(progress, must=stopped or global_step == last_step)
        if stopped or global_step == last_step:
            break
    bar.close()
    stop.close()
    stopped = stopped and (progress.epoch, progress.step) != (epochs, 0)
    if is_main:  # before W&B, which may take minutes: a job that is about to end looks for the file that this writes
        tell_end(config, accelerator, progress, stop.reason or "another process was asked to", stopped)
    if track.artifacts and not stopped and not config.dry_run:
        kept = config.folder / CHECKPOINTS / (progress.best_name or progress.name)
        tracker.log_artifact(kept, f"{config.name}-checkpoint", "model")
        if not is_remote(config.data.root):
            tracker.log_artifact(Path(config.data.root) / MANIFEST_NAME, f"{manifest.dataset}-manifest", "dataset")
    tracker.finish(wants_to_go_on=stopped and stop.reason != signal.SIGTERM.name)  # W&B's agent ends runs with it
    return stopped


def describe_step(epoch: int, epochs: int, values: dict[str, float], speed: dict[str, float], left: int) -> str:
    """One line: where the run stands, the loss and its terms, speed, waiting, memory, and when it will end."""
    names = ("cross_entropy", "triplet", "quadruplet", "mctl", "ctl", "center")
    terms = ", ".join(f"{name} {values[name]:.3f}" for name in names if name in values)
    eta = int(left / max(speed["steps_per_s"], 1e-9))
    return (
        f"epoch {epoch + 1}/{epochs} loss {values['loss']:.3f} ({terms}) {speed['images_per_s']:.0f} images/s "
        f"waiting for data {speed['data_wait_share']:.0%} memory {speed['memory_gib']:.1f} GiB "
        f"left {eta // 3600}:{eta // 60 % 60:02d}:{eta % 60:02d}"
    )


def describe_scores(scores: dict[str, float]) -> str:
    parts = [f"{name} {value:.4f}" for name, value in scores.items() if name.endswith(("/mAP", "/rank1"))]
    return ", ".join(parts)


def tell_end(config: Config, accelerator: Accelerator, progress: Progress, reason: str, stopped: bool) -> None:
    """The last lines, and after a stop the file that a job script looks for before it asks to be started again."""
    if config.dry_run:
        print(f"dry run: {DRY_STEPS} steps with {accelerator.num_processes} process(es), nothing written", flush=True)
    elif stopped:
        at = {"epoch": progress.epoch, "step": progress.step, "reason": reason, "checkpoint": progress.name}
        (config.folder / STOPPED_FILE).write_text(json.dumps(at) + "\n")
        print(f"stopped ({reason}) with checkpoint {progress.name}; go on with --resume=auto", flush=True)
    else:
        print(f"trained {config.optim.epochs} epochs with {accelerator.num_processes} process(es); the run is in "
              f"{config.folder}", flush=True)  # fmt: skip


def evaluate_test(
    config: Config, model: torch.nn.Module, manifest: Manifest, pixels: Pixels, accelerator: Accelerator
) -> dict[str, float]:
    """Image and centroid figures of query against gallery, on all ranks; the unwrapped model, as DDP would hang."""
    query, gallery = (
        extract_part(config, model, manifest, pixels, accelerator, split, None).features
        for split in ("query", "gallery")
    )
    scores: dict[str, float] = {}
    for protocol, result in evaluate_over_ranks(query, gallery, ["image", "centroid"]).items():
        scores |= {
            f"{protocol}/mAP": result.mAP,
            f"{protocol}/mINP": result.mINP,
            f"{protocol}/rank1": float(result.cmc[0]),
        }
    return scores


def evaluate_held_out(
    config: Config,
    model: torch.nn.Module,
    manifest: Manifest,
    pixels: Pixels,
    accelerator: Accelerator,
    held_out: np.ndarray,
) -> dict[str, float]:
    """Image figures of the identities that were held out of training."""
    rows = np.flatnonzero(held_out)
    query, gallery = split_queries(extract_part(config, model, manifest, pixels, accelerator, "train", rows).features)
    result = evaluate_over_ranks(query, gallery, ["image"])["image"]
    return {"val/mAP": result.mAP, "val/mINP": result.mINP, "val/rank1": float(result.cmc[0])}


def extract_part(
    config: Config,
    model: torch.nn.Module,
    manifest: Manifest,
    pixels: Pixels,
    accelerator: Accelerator,
    split: str,
    rows: np.ndarray | None,
) -> Extracted:
    copy_buffers_from_rank_0(model)
    return extract(
        model, config.data.root, manifest, split, pixels, batch_size=config.eval.batch_size,
        workers=config.data.workers, device=accelerator.device, rows=rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
