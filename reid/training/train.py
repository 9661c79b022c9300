"""The training program, read top to bottom: `accelerate launch train.py --config configs/quickstart.yaml`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from reid import program
from reid.config import Config, check, parse, to_dict, to_yaml
from reid.data.augmentation import Augmentation, copy_to
from reid.data.images import Pixels
from reid.data.manifest import MANIFEST_NAME, Manifest, load_manifest
from reid.data.storage import is_remote
from reid.data.train_loader import TrainLoader
from reid.distributed import from_rank_0, gather_objects, start_accelerator
from reid.files import check_writable, write_file
from reid.losses.objective import Objective
from reid.model.network import ReIDModel, drop_frozen_gradients, freeze_heads
from reid.model.sync_batchnorm import convert_sync
from reid.runs import checkpoint
from reid.runs.checkpoint import Progress
from reid.runs.environment import code_version, describe_environment
from reid.runs.folder import CHECKPOINTS, STOPPED_FILE, check_space, choose_checkpoint, own_folder, write_stopped
from reid.runs.tracking import Tracker, name_in_sweep
from reid.training.monitors import DamageWatch, FiniteWatch, HingeWatch, Meter, mean_over_ranks
from reid.training.optim import Schedule, build_optimizer, take_step
from reid.training.preemption import StopRequest
from reid.training.setup import (
    build_plan,
    can_evaluate,
    check_image_size,
    check_matches,
    check_same_everywhere,
    describe,
    hold_out_rows,
    set_speed,
    start_up_text,
)
from reid.training.validation import describe_scores, evaluate_held_out, evaluate_test, extract_part

if TYPE_CHECKING:
    from accelerate import Accelerator


DRY_STEPS = 2
SEEDS = 2**64 - 59  # a prime: the seeds of steps are told apart by it however large the run's seed is


def main(args: Sequence[str] | None = None) -> None:
    """The program. train.py parses before it imports this module, and calls `start`."""
    start(parse(Config, args))


def start(config: Config) -> None:
    """Train, and end with one line instead of a stack trace where the user can fix it.

    Exit status: 0 trained, 2 an error that names its fix, program.STOPPED after a request to stop.
    """
    if program.call(lambda: train(config)):
        sys.exit(program.STOPPED)


def train(config: Config) -> bool:
    """Train one run; True if it was stopped on request before its end.

    Raises ValueError on what the user can mend, before the first step where that is possible.
    """
    config.name = name_in_sweep(config.name)
    check(config, int(os.environ.get("WORLD_SIZE", "1")))
    manifest = load_manifest(config.data.root)
    build_plan(config, manifest.split("train"), hold_out_rows(config, manifest.split("train")))  # or say why not
    check_matches(config, manifest)
    set_speed(config.speed)
    accelerator = start_accelerator(config.precision, config.timeout_s, config.device)
    hosts = check_same_everywhere(code_version(), manifest.fingerprint)
    if config.dry_run:
        from_rank_0(lambda: check_writable(config.folder))
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
    layout = torch.channels_last if config.speed.channels_last and device.type == "cuda" else torch.contiguous_format
    model = ReIDModel(num_classes, config.model, config.data.image_size).to(device).to(memory_format=layout)
    check_image_size(config, model, device)
    if not config.loss.cross_entropy:
        freeze_heads(model)
    if config.model.sync_batchnorm:
        convert_sync(model)
    objective = Objective(config.loss, num_classes, model.dim, torch.Generator().manual_seed(config.seed)).to(device)
    optimizer = build_optimizer(model, optim)
    about = describe(config, manifest, num_classes)
    progress = Progress(0, 0)
    if newest is not None:
        progress = checkpoint.load(newest, model, about, objective, optimizer, accelerator.scaler)
    if not config.dry_run:
        from_rank_0(lambda: check_space(config, model, objective))
    if config.speed.compile:
        model.compile()
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    # accelerate has put autocast around `forward`; the loop has its own, and evaluations are float32 as evaluate.py's.
    bare_model: ReIDModel = accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)

    steps, epochs = plan.steps_per_epoch, optim.epochs
    schedule = Schedule(optim, steps, config.batch.identities)
    augmentation = Augmentation(config.augment)
    pixels = Pixels.from_config(config.data)
    loader = TrainLoader(
        config.data, split, plan, augmentation, accelerator.process_index, accelerator.num_processes
    )
    if is_main:
        parameters = sum(parameter.numel() for parameter in bare_model.parameters())
        encoder = f"{config.model.encoder}, {parameters / 1e6:.1f} million parameters, weights {config.model.weights}"
        print(start_up_text(config, manifest, plan, accelerator, progress, encoder), flush=True)
        for text in damaged:
            print(f"warning: {text}; going on from {newest}", flush=True)
        if not config.dry_run:
            (config.folder / STOPPED_FILE).unlink(missing_ok=True)
    if not config.dry_run:
        from_rank_0(lambda: write_file(config.folder / "config.yaml", to_yaml(config)))
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

    def judge(progress: Progress, kept: bool) -> Progress:
        """Evaluate the epoch that has just ended. It can be the best only if its checkpoint is kept."""

        def tell(reason: str) -> None:
            with contextlib.suppress(ValueError):  # raised on this rank alone; the end of the run tries again
                write_stopped(config, progress, reason)

        with stop.telling(tell) if kept else contextlib.nullcontext():
            scores = evaluate(last=progress.epoch == epochs)
        progress = replace(progress, due=False)
        if kept and scores[best_metric] >= progress.best.get(best_metric, 0.0):
            progress = replace(progress, best=scores, best_name=progress.name)
        figures["last"] = scores[best_metric]
        figures["best"] = progress.best.get(best_metric, figures["last"])
        summary = {f"eval/{name}_mAP": value for name, value in figures.items()}
        logged = {f"eval/{name}": value for name, value in scores.items()}
        tracker.log(progress.epoch * steps - 1, logged | summary)
        tracker.summarize(summary)
        if is_main:
            bar.write(f"epoch {progress.epoch}: {describe_scores(scores)}")
        return progress

    def keep(progress: Progress, must: bool, amends: bool = False) -> bool:
        """Write a checkpoint, or only amend its progress. Whether it is there.

        A failure is an error if nothing comes after it, or else a warning.
        """

        def write() -> tuple[bool, str]:
            folder = config.folder / CHECKPOINTS
            try:
                if amends:
                    checkpoint.amend(folder, progress, track.keep_checkpoints)
                else:
                    checkpoint.save(
                        folder, bare_model, objective, optimizer, progress, about, track.keep_checkpoints,
                        accelerator.scaler,
                    )  # fmt: skip
            except checkpoint.NotRemoved as error:
                return True, f"warning: {error.filename}: this old checkpoint could not be removed: {error.strerror}"
            except OSError as error:
                reason = f"{folder}: no checkpoint could be written: {error.strerror or error}"
                if must:
                    raise ValueError(f"{reason}; earlier ones are whole") from error
                return False, f"warning: {reason}; training goes on, earlier ones are whole"
            return True, ""

        if config.dry_run:
            return False
        kept, warning = from_rank_0(write)
        if warning and is_main:
            bar.write(warning)
        return kept

    wrapped.train()
    meter = Meter(accelerator.num_processes, device)
    finite, hinge, damage = FiniteWatch(split.names), HingeWatch(), DamageWatch(progress.dropped)
    stop = StopRequest(Path(config.stop_file) if config.stop_file else None, config.timeout_s)
    saved = newest is not None
    on_terminal = is_main and sys.stderr.isatty()
    first = progress.epoch * steps + progress.step
    last_step = min(epochs * steps, first + DRY_STEPS) - 1 if config.dry_run else epochs * steps - 1
    bar = tqdm(total=epochs * steps, initial=first, disable=not on_terminal, unit="step")
    best_metric = "val/mAP" if held_out.any() else "image/mAP"
    figures: dict[str, float] = {}  # of the best metric, best and last
    stopped = False
    if progress.due and not config.dry_run:  # the run was stopped or killed before it could evaluate
        progress = judge(progress, kept=True)
        keep(progress, must=progress.epoch == epochs, amends=True)
        meter.restart()
    for epoch, step, batch in meter.timed(loader.batches(epochs, (progress.epoch, progress.step), progress.dropped)):
        global_step = epoch * steps + step
        # What the model draws (dropout, stochastic depth) depends on the step alone: a resumed run draws the same.
        torch.manual_seed((((config.seed << 32) + global_step) * 4096 + accelerator.process_index) % SEEDS)
        rate = schedule.apply(optimizer, global_step)
        bare_model.begin_epoch(epoch)
        pin = config.speed.pin_memory
        labels, images = copy_to(batch.labels, device, pin), copy_to(batch.images, device, pin)
        images = augmentation.apply(images, batch.parameters, pin)
        with accelerator.autocast():
            features, logits = wrapped(images.contiguous(memory_format=layout))
        total, terms = objective(features, logits, labels)
        accelerator.backward(total)
        drop_frozen_gradients(bare_model)
        if optim.clip_norm:
            accelerator.clip_grad_norm_(wrapped.parameters(), optim.clip_norm)
        taken = take_step(optimizer, accelerator.scaler)
        optimizer.zero_grad(set_to_none=True)
        if taken:  # features that overflowed, in fp16, must not move the centers
            objective.update_centers(features, labels)
        meter.count(len(labels))
        finite.see(global_step, batch.ids, features, total)
        hinge.see(terms)
        damage.see(batch.dropped)
        bar.update()

        stopped = stop.agreed()
        end_of_epoch = step == steps - 1
        writes = end_of_epoch or stopped or (track.checkpoint_steps and (global_step + 1) % track.checkpoint_steps == 0)
        if (global_step + 1) % track.every_steps == 0 or writes or global_step == last_step:
            values = mean_over_ranks({"loss": total.detach(), **terms})
            finite.check(values, describe_mend(config, saved))  # before any checkpoint
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
                progress = replace(progress, dropped_total=progress.dropped_total + dropped)
                tracker.log(global_step, {"data/dropped_identities": float(dropped)})
                tracker.summarize({"data/dropped_identities_total": float(progress.dropped_total)})
                if warning and is_main:
                    bar.write(warning)
            evaluates = config.eval.every_epochs and (epoch + 1) % config.eval.every_epochs == 0
            due = (evaluates or epoch + 1 == epochs) and (held_out.any() or can_evaluate(manifest))
            progress = replace(progress, epoch=epoch + 1, step=0, dropped=(), due=bool(due and not config.dry_run))
        if writes:
            if config.data.on_damage == "skip":
                everywhere = {row for rows in gather_objects(progress.dropped) for row in rows}
                progress = replace(progress, dropped=tuple(sorted(everywhere)))
            # Before an evaluation, too: it takes time, in which much can happen. Who is asked to stop leaves it to the
            # resumed run.
            kept = keep(progress, must=stopped or (global_step == last_step and not progress.due))
            if progress.due and not stopped:
                progress = judge(progress, kept)
                kept = keep(progress, must=global_step == last_step, amends=kept)
            saved = saved or kept
            meter.restart()
        if stopped or global_step == last_step:
            break
    if config.dry_run and "query" in manifest.splits:
        images_of = manifest.split("query").images
        rows = np.flatnonzero(np.cumsum(images_of) <= max(config.eval.batch_size, images_of[0]))
        extract_part(config, bare_model, manifest, pixels, accelerator, "query", rows)
    bar.close()
    stop.close()
    stopped = stopped and (progress.due or (progress.epoch, progress.step) != (epochs, 0))
    reason = stop.reason or "another process was asked to"
    # Before W&B, which may take minutes: a job that is about to end looks for the file that this writes.
    from_rank_0(lambda: tell_end(config, accelerator, progress, reason, stopped, figures))
    if track.artifacts and not stopped and not config.dry_run:
        best = config.folder / CHECKPOINTS / (progress.best_name or progress.name)
        tracker.log_artifact(best, f"{config.name}-checkpoint", "model")
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


def describe_mend(config: Config, saved: bool) -> str:
    """What to do about a loss that is not finite, and what is left of the run."""
    left = f"checkpoints from before are in {config.folder / CHECKPOINTS}" if saved else "no checkpoint exists yet"
    return f"lower optim.lr (now {config.optim.lr}) or set optim.clip_norm; {left}"


def tell_end(
    config: Config, accelerator: Accelerator, progress: Progress, reason: str, stopped: bool, figures: dict[str, float]
) -> None:
    """The last lines, and after a stop its file."""
    if config.dry_run:
        print(f"dry run: {DRY_STEPS} steps with {accelerator.num_processes} process(es), nothing written", flush=True)
    elif stopped:
        write_stopped(config, progress, reason)
        print(f"stopped ({reason}) with checkpoint {progress.name}; go on with --resume=auto", flush=True)
    else:
        (config.folder / STOPPED_FILE).unlink(missing_ok=True)  # of a request that came in the last evaluation
        print(f"trained {config.optim.epochs} epochs with {accelerator.num_processes} process(es); the run is in "
              f"{config.folder}", flush=True)  # fmt: skip
        if figures:
            metric = "val/mAP" if config.data.val_identities else "image/mAP"
            print(f"{metric}: best {figures['best']:.4f} ({progress.best_name or 'not kept'}), last "
                  f"{figures['last']:.4f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
