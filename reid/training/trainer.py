"""One training run, from its first step to its last."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from reid.config import Config, to_dict
from reid.data.manifest import MANIFEST_NAME
from reid.data.storage import is_remote
from reid.data.train_loader import Batch, TrainLoader
from reid.distributed import from_rank_0, gather_objects
from reid.losses.objective import Objective
from reid.model.virtual_ranks import VirtualRanks
from reid.runs import checkpoint
from reid.runs.checkpoint import Parts, TrainState
from reid.runs.folder import RunFolder
from reid.runs.store import NullStore, RunStore, find_resume_point
from reid.runs.tracking import Tracker
from reid.training.data import TrainData
from reid.training.ema import WeightAverage
from reid.training.layouts import agree_on_layouts
from reid.training.monitors import DamageWatch, FiniteWatch, HingeWatch, MarginGuide, Meter, mean_over_ranks
from reid.training.optim import build_optimizer
from reid.training.preemption import NO_LAUNCHER, StopRequest
from reid.training.setup import build_model, check_ranks, checkpoint_facts, format_start_up
from reid.training.step import Step, TrainingStep
from reid.training.terms import DatasetTerms
from reid.training.validation import Validations

if TYPE_CHECKING:
    from accelerate import Accelerator

DRY_STEPS = 2


class Trainer:
    """Trains a model and keeps its checkpoints.

    `state` and the tensors of `store.parts` are all that is saved; everything else is rebuilt from the configuration.
    A dry run trains two steps with a store and a tracker that do nothing and a disabled validation.

    Args:
        data: manifest and plan of batches.
        folder: the run's; claimed, unless it is a dry run.
        hosts: names of the machines that take part, for the log.
    """

    def __init__(
        self, config: Config, data: TrainData, accelerator: Accelerator, folder: RunFolder, hosts: Sequence[str]
    ) -> None:
        self.config, self.data, self.accelerator, self.folder = config, data, accelerator, folder
        self.device, self.is_main = accelerator.device, accelerator.is_main_process
        self.epochs, self.steps = config.optim.epochs, data.plan.steps_per_epoch
        self.resumed, damaged = from_rank_0(lambda: find_resume_point(folder, config.resume, read_only=config.dry_run))

        torch.manual_seed(config.seed)
        model = build_model(config, data.num_classes, self.device)
        average = WeightAverage(model, config.optim.ema) if config.optim.ema else None
        # Without the autocast that accelerate puts around what it wraps: evaluations are float32.
        self.model = average.model if average else model
        centers = torch.Generator().manual_seed(config.seed)
        temperature = config.model.head_temperature
        objective = Objective(config.loss, data.num_classes, model.dim, centers, temperature, model.nested)
        self.objective = objective.to(self.device)
        optimizer = build_optimizer(model, config.optim)
        self.ranks = config.batch.count_ranks(accelerator.num_processes)
        about = checkpoint_facts(config, data.joined.fingerprints, data.num_classes, data.plan.shares)
        parts = Parts(model, about, self.objective, optimizer, accelerator.scaler, average.model if average else None)
        self.state = checkpoint.load(self.resumed, parts) if self.resumed else TrainState()
        warnings = [f"{text}; resuming from {self.resumed}" for text in damaged]
        if self.resumed:
            warnings += check_ranks(self.state, config.batch, accelerator.num_processes)
        self.state = replace(
            self.state, ranks=self.ranks, follows_processes=not config.batch.ranks, steps_per_epoch=self.steps
        )
        self.store = (NullStore if config.dry_run else RunStore)(folder, parts, config.track.keep_checkpoints)
        self.is_trained = self.state.epoch >= self.epochs  # a finished run; at most an evaluation is due
        if not self.is_trained:
            self.store.check_space()
        if config.speed.compile:
            model.compile()
            self.objective.compile(fullgraph=True, dynamic=True)
        virtual_ranks = VirtualRanks(model, config.speed, config.seed)
        self.wrapped, self.optimizer = accelerator.prepare(virtual_ranks, optimizer)
        parts.optimizer = self.optimizer

        self.step = TrainingStep(
            config, accelerator, self.wrapped, model, self.objective, self.optimizer, self.steps, average
        )
        self.loader = TrainLoader(
            config.data, data.joined, data.plan, self.step.augmentation, accelerator.process_index,
            accelerator.num_processes, self.ranks,
        )  # fmt: skip
        self.validation = Validations(
            config.data, data.joined.datasets, data.joined.divide(data.held_out), config.eval.batch_size, self.device,
            enabled=not config.dry_run,
        )  # fmt: skip
        if self.is_main:
            print(format_start_up(config, data, accelerator, self.state, self.model), flush=True)
            for text in warnings:
                print(f"warning: {text}", flush=True)
        if self.state.due or not self.is_trained:  # config.yaml of a finished run tells how it was trained
            self.store.prepare(config)
        self.tracker = self._start_tracker(hosts)
        if self.tracker.where:
            print(f"      W&B  {self.tracker.where}", flush=True)
        self._start_monitors()

    def _start_tracker(self, hosts: Sequence[str]) -> Tracker:
        config, facts = self.config, to_dict(self.config)
        facts |= {
            "data_fingerprint": self.data.joined.fingerprint,
            "world_size": self.accelerator.num_processes,
            "virtual_ranks": self.ranks,
            "hosts": hosts,
        }
        return Tracker(
            self.folder.path, active=self.is_main and not config.dry_run, mode=config.track.wandb,
            project=config.track.project, name=config.track.name or config.name,
            group=config.track.group or config.name, job_type="train", config=facts,
            resume_step=self.state.epoch * self.steps + self.state.step, console=config.track.console,
        )  # fmt: skip

    def _start_monitors(self) -> None:
        config = self.config
        first, end = self.state.epoch * self.steps + self.state.step, self.epochs * self.steps
        self.last_step = (min(end, first + DRY_STEPS) if config.dry_run else end) - 1
        self.steps_to_make = max(self.last_step + 1 - first, 0)
        self.meter = Meter(self.accelerator.num_processes, self.device)
        self.terms = DatasetTerms(self.data.joined.labels, self.data.dataset_of_class, self.device)
        self.finite = FiniteWatch(self.data.split.names)
        self.guide = MarginGuide(config.loss, max(config.optim.warmup_epochs, 1) - 1)
        self.hinge = HingeWatch(min(config.optim.warmup_epochs, self.epochs - 1))
        self.damage = DamageWatch(self.state.dropped)
        self.stop = StopRequest(Path(config.stop_file) if config.stop_file else None, config.timeout_s)
        self.stopped = False
        self.has_checkpoint = self.resumed is not None
        self.summary: dict[str, float] = {}  # of validation.metric: the last and the best
        self.on_terminal = self.is_main and sys.stderr.isatty()
        self.bar = tqdm(total=end, initial=first, disable=not self.on_terminal, unit="step")

    def fit(self) -> bool:
        """Train up to the last step or a request to stop. Return whether training was stopped before its end."""
        self.wrapped.train()
        if self.state.due and self.validation.is_possible:  # stopped or killed before it could evaluate
            self.evaluate(is_kept=True)
            self.amend(required=self.state.epoch == self.epochs)
            self.meter.restart()
        batches = self.loader.batches(self.epochs, (self.state.epoch, self.state.step), self.state.dropped)
        if self.config.data.on_damage == "skip":
            batch_config = self.config.batch
            slots = batch_config.identities // self.accelerator.num_processes
            share = self.ranks // self.accelerator.num_processes
            batches = agree_on_layouts(batches, slots, batch_config.images, self.config.timeout_s, share)
        for epoch, step, batch in self.meter.timed(batches):
            global_step = epoch * self.steps + step
            done = self.train_step(epoch, global_step, batch)
            self.stopped = self.stop.agreed()
            is_last, is_end_of_epoch = global_step == self.last_step, step == self.steps - 1
            saves = is_end_of_epoch or self.stopped or self._is_due(global_step, self.config.track.checkpoint_steps)
            if saves or is_last or self._is_due(global_step, self.config.track.every_steps):
                self.log(epoch, global_step, done, in_full=is_end_of_epoch or self.stopped or is_last)
            self.state = replace(self.state, epoch=epoch, step=step + 1, dropped=self.damage.rows)
            if is_end_of_epoch:
                self.end_epoch(epoch, global_step)
            if saves:
                self.save_and_evaluate(is_last)
            if self.stopped or is_last:
                break
        return self.finish()

    def _is_due(self, global_step: int, every: int) -> bool:
        return every > 0 and (global_step + 1) % every == 0

    def train_step(self, epoch: int, global_step: int, batch: Batch) -> Step:
        """Make one optimizer step on this rank's part of a batch, and show it to the monitors."""
        step = self.step.take(epoch, global_step, batch)
        self.meter.count(len(batch.labels))
        self.finite.record(global_step, batch.ids, step.losses)
        self.damage.record(batch.dropped)
        self.bar.update()
        return step

    def log(self, epoch: int, global_step: int, step: Step, in_full: bool) -> None:
        """Log a step, after the check that its values are finite. in_full: also as a line where there is no bar."""
        diagnostics = self.objective.diagnose(step.losses)
        by_dataset = self.terms.measure(self.objective, step.losses)
        values = self.terms.finish(
            mean_over_ranks({"loss": step.losses.total, **step.losses.terms, **diagnostics, **by_dataset})
        )
        self.hinge.record(values)
        self.guide.record(epoch, step.losses)
        self.finite.check(values, self._non_finite_hint())
        speed = self.meter.read()
        logged = {f"train/{name}": value for name, value in {**values, "lr": step.lr, **speed}.items()}
        self.tracker.log(global_step, {"epoch": epoch + 1, **logged})
        line = format_progress(
            epoch, self.epochs, values, self.config.loss.weights, speed, self.last_step - global_step
        )
        if self.config.dry_run:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            self._print_line(f"step {global_step + 1}: {shown}")
        self.bar.set_postfix_str(line, refresh=False)
        if self.is_main and not self.on_terminal and in_full:
            print(line, flush=True)

    def _non_finite_hint(self) -> str:
        """Return what to do about a loss that is not finite, and what is left of the run."""
        left = f"earlier checkpoints are in {self.folder.checkpoints}" if self.has_checkpoint else "no checkpoint yet"
        return f"lower optim.lr (now {self.config.optim.lr}) or set optim.clip_norm; {left}"

    def end_epoch(self, epoch: int, global_step: int) -> None:
        """Warn about the epoch that has ended, and move the state to the next."""
        self._print_line(self.guide.end_epoch(epoch))
        self._print_line(self.hinge.end_epoch(self.config.loss.margin, epoch))
        if self.config.data.on_damage == "skip":
            dropped, warning = self.damage.end_epoch()
            self.state = replace(self.state, dropped_total=self.state.dropped_total + dropped)
            self.tracker.log(global_step, {"epoch": epoch + 1, "data/dropped_identities": float(dropped)})
            self.tracker.summarize({"data/dropped_identities_total": float(self.state.dropped_total)})
            self._print_line(warning)
        due = self._is_due(epoch, self.config.eval.every_epochs) or epoch + 1 == self.epochs
        due = due and self.validation.is_possible
        self.state = replace(self.state, epoch=epoch + 1, step=0, dropped=(), due=due)

    def save_and_evaluate(self, is_last: bool) -> None:
        """Save; then evaluate if it is due, and put the result into the checkpoint.

        Saved first because an evaluation takes time, in which the run may be killed. A run that was asked to stop
        leaves the evaluation to its resume.
        """
        if self.config.data.on_damage == "skip":
            everywhere = {row for rows in gather_objects(self.state.dropped) for row in rows}
            self.state = replace(self.state, dropped=tuple(sorted(everywhere)))
        is_kept = self.save(required=self.stopped or (is_last and not self.state.due))
        if self.state.due and not self.stopped:
            self.evaluate(is_kept)
            is_kept = self.amend(required=is_last) if is_kept else self.save(required=is_last)
        self.has_checkpoint = self.has_checkpoint or is_kept
        self.meter.restart()

    def save(self, required: bool) -> bool:
        """Save a checkpoint. Return whether it is on disk. required: a failure is an error."""
        is_kept, warning = self.store.save(self.state, required)
        self._print_line(warning)
        return is_kept

    def amend(self, required: bool) -> bool:
        """Replace the state in the checkpoint that was saved last; otherwise like `save`."""
        is_kept, warning = self.store.amend(self.state, required)
        self._print_line(warning)
        return is_kept

    def evaluate(self, is_kept: bool) -> None:
        """Evaluate the epoch that has just ended. It can become the best only if its checkpoint is kept."""
        at_end = self.state.epoch == self.epochs
        note = self.stop.calling_on_signal(lambda reason: self.store.note_request(self.state, reason))
        with note if is_kept else contextlib.nullcontext():
            scores = self.validation.evaluate(self.model, last=at_end)
        score = scores[self.validation.metric]
        self.state = replace(self.state, due=False)
        if is_kept and score >= self.state.best.get(self.validation.metric, 0.0):
            self.state = replace(self.state, best=scores, best_name=self.state.name)
        self.summary = {"last": score, "best": self.state.best.get(self.validation.metric, score)}
        summary = {f"eval/{name}_mAP": value for name, value in self.summary.items()}
        logged = {f"eval/{name}": value for name, value in scores.items()}
        self.tracker.log(self.state.epoch * self.steps - 1, {"epoch": self.state.epoch, **logged, **summary})
        self.tracker.summarize(summary)
        shown = (f"{name} {value:.4f}" for name, value in scores.items() if name.endswith(("/mAP", "/rank1")))
        self._print_line(f"epoch {self.state.epoch}: {', '.join(shown)}")
        self._print_line(self.validation.warn_of_cameras(at_end))

    def finish(self) -> bool:
        """Write the last files and messages. Return whether training was stopped before its end."""
        if self.config.dry_run:
            self.validation.extract_sample(self.model)
        self.bar.close()
        self.stop.close()
        state = self.state
        stopped = self.stopped and (state.due or (state.epoch, state.step) != (self.epochs, 0))
        reason = (self.stop.reason or "another process was asked to stop") if stopped else None
        # Before W&B, which may take minutes: the script of a job that is about to end looks for the stopped file.
        from_rank_0(lambda: self.store.end(state, reason))
        if self.is_main:
            print(self._describe_end(reason), flush=True)
        if self.config.track.artifacts and not stopped:
            self._log_artifacts()
        if self.tracker.where:
            print(f"W&B: {self.tracker.where}", flush=True)
        # W&B's agent ends runs with SIGTERM, which ends the launcher of a single process at once.
        self.tracker.finish(resumes=stopped and self.stop.reason not in (signal.SIGTERM.name, NO_LAUNCHER))
        return stopped

    def _describe_end(self, reason: str | None) -> str:
        processes = f"{self.accelerator.num_processes} process(es)"
        if self.config.dry_run:
            return f"dry run: {self.steps_to_make} steps with {processes}, nothing written"
        if reason is not None:
            return f"stopped ({reason}) with checkpoint {self.state.name}; resume with --resume=auto"
        where = f"the run is in {self.folder.path}"
        if self.is_trained:
            text = f"nothing to train: the run is at epoch {self.state.epoch}, optim.epochs is {self.epochs}; {where}"
        else:
            text = f"trained to epoch {self.epochs} of {self.epochs} with {processes}; {where}"
        best = self.summary.get("best", self.state.best.get(self.validation.metric))
        if best is not None:
            text += f"\n{self.validation.metric}: best {best:.4f} ({self.state.best_name or 'not kept'})"
        if self.summary:
            text += f", last {self.summary['last']:.4f}"
        return text

    def _log_artifacts(self) -> None:
        best = self.folder.checkpoints / (self.state.best_name or self.state.name)
        self.tracker.log_artifact(best, f"{self.config.name}-checkpoint", "model")
        for dataset in self.data.joined.datasets:
            if not is_remote(dataset.root):
                self.tracker.log_artifact(Path(dataset.root) / MANIFEST_NAME, f"{dataset.label}-manifest", "dataset")

    def _print_line(self, text: str | None) -> None:
        """Print a line above the progress bar, on rank 0."""
        if text and self.is_main:
            self.bar.write(text)


def format_progress(
    epoch: int, epochs: int, values: dict[str, float], weights: Mapping[str, float], speed: dict[str, float], left: int
) -> str:
    """Return the progress line: loss and its terms times their weights, speed, waiting, memory, and the time left."""
    terms = " + ".join(f"{name} {weight * values[name]:.3f}" for name, weight in weights.items() if name in values)
    eta = int(left / max(speed["steps_per_s"], 1e-9))
    return (
        f"epoch {epoch + 1}/{epochs} loss {values['loss']:.3f} = {terms}, {speed['images_per_s']:.0f} images/s "
        f"waiting for data {speed['data_wait_share']:.0%} memory {speed['memory_gib']:.1f} GiB "
        f"left {eta // 3600}:{eta // 60 % 60:02d}:{eta % 60:02d}"
    )
