"""The training program: `accelerate launch train.py --config configs/quickstart.yaml`."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from reid import program
from reid.config import Config, check
from reid.distributed import from_rank_0, separate_accelerator, start_accelerator
from reid.files import check_writable
from reid.model.preprocessing import complete
from reid.runs import checkpoint
from reid.runs.environment import code_version
from reid.runs.folder import RunFolder
from reid.runs.store import claim_run_folder
from reid.runs.sweep_names import name_in_sweep
from reid.training.data import load_data
from reid.training.setup import check_same_everywhere, set_speed
from reid.training.trainer import Trainer


@dataclass(frozen=True, repr=False)
class TrainResult:
    """What a training run leaves; equal on every rank.

    Attributes:
        folder: of the run.
        checkpoint: folder of the best checkpoint, or of the newest if none was evaluated; None after a dry run.
        metrics: of the best checkpoint, 0 to 1, by the names of `metrics.jsonl` without `eval/`, e.g. image/mAP; empty
            if none was evaluated.
        stopped: whether the run was stopped on request before its end; `resume = "auto"` continues it.
    """

    folder: Path
    checkpoint: Path | None
    metrics: dict[str, float]
    stopped: bool

    def __repr__(self) -> str:
        names = [name for name in self.metrics if name.endswith(("/mAP", "/rank1"))]
        parts = [self.checkpoint.name if self.checkpoint else "no checkpoint"]
        parts += [f"{name} {self.metrics[name]:.4f}" for name in names[:2]]
        return f"TrainResult({self.folder}: {', '.join(parts + ['stopped'] * self.stopped)})"


def start(config: Config) -> None:
    """Train, and end the process: status 0 trained, 2 an error that names its fix, 75 stopped on request."""
    program.ignore_closed_output()
    if program.call(lambda: train(config)).stopped:
        sys.exit(program.STOPPED)


@contextlib.contextmanager
def clean_up_on_error(trainer: Trainer) -> Iterator[None]:
    """If the block fails, restore signal handlers and end W&B's run: the process may continue, as in a notebook."""
    try:
        yield
    except BaseException:
        trainer.stop.restore_handlers()
        trainer.tracker.finish(failed=True)
        raise


def train(config: Config) -> TrainResult:
    """Train one run, as `reid train` does.

    Started by a launcher, all processes must call it. It sets torch's seed and cuDNN's switches, and prints what the
    program prints.

    Args:
        config: every knob, e.g. `Config(name="mine")` or `read_flags(["--config=reid:quickstart", "--name=mine"])`. It
            is not changed.

    Raises:
        ValueError: for what the user can fix, before the first step where that is possible.
    """
    config = copy.deepcopy(config)
    name_in_sweep(config)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    check(config, ranks)
    config.data = complete(config.data, config.model.encoder)
    data = load_data(config, ranks)
    config.batch = replace(config.batch, streams=data.plan.streams)
    set_speed(config.speed)
    with separate_accelerator():
        accelerator = start_accelerator(config.precision, config.timeout_s, config.device)
        hosts = check_same_everywhere(code_version(), data.joined.fingerprint, data.plan.streams)
        folder = RunFolder(config.folder)
        if config.dry_run:
            from_rank_0(lambda: check_writable(folder.path))
        with contextlib.nullcontext() if config.dry_run else claim_run_folder(folder, config):
            trainer = Trainer(config, data, accelerator, folder, hosts)
            with clean_up_on_error(trainer):
                stopped = trainer.fit()
            accelerator.wait_for_everyone()  # a launcher ends all processes when the first ends with STOPPED
        accelerator.end_training()
    saved = [] if config.dry_run else checkpoint.find(folder.checkpoints)
    best = [path for path in saved if path.name == trainer.state.best_name]
    return TrainResult(folder.path, next(iter([*best, *saved]), None), dict(trainer.state.best), stopped)
