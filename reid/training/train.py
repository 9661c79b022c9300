"""The training program: `accelerate launch train.py --config configs/quickstart.yaml`."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import replace

from reid import program
from reid.config import Config, check
from reid.distributed import from_rank_0, start_accelerator
from reid.files import check_writable
from reid.model.preprocessing import complete
from reid.runs.environment import code_version
from reid.runs.folder import RunFolder
from reid.runs.store import claim_run_folder
from reid.runs.sweep_names import name_in_sweep
from reid.training.data import load_data
from reid.training.setup import check_same_everywhere, set_speed
from reid.training.trainer import Trainer


def start(config: Config) -> None:
    """Train, and end the process: status 0 trained, 2 an error that names its fix, 75 stopped on request."""
    program.ignore_closed_output()
    if program.call(lambda: train(config)):
        sys.exit(program.STOPPED)


def train(config: Config) -> bool:
    """Train one run.

    Returns:
        Whether it was stopped on request before its end.

    Raises:
        ValueError: for what the user can fix, before the first step where that is possible.
    """
    name_in_sweep(config)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    check(config, ranks)
    config.data = complete(config.data, config.model.encoder)
    data = load_data(config, ranks)
    config.batch = replace(config.batch, streams=data.plan.streams)
    set_speed(config.speed)
    accelerator = start_accelerator(config.precision, config.timeout_s, config.device)
    hosts = check_same_everywhere(code_version(), data.joined.fingerprint)
    folder = RunFolder(config.folder)
    if config.dry_run:
        from_rank_0(lambda: check_writable(folder.path))
    with contextlib.nullcontext() if config.dry_run else claim_run_folder(folder, config):
        stopped = Trainer(config, data, accelerator, folder, hosts).fit()
        accelerator.wait_for_everyone()  # a launcher ends all processes when the first ends with STOPPED
    accelerator.end_training()
    return stopped
