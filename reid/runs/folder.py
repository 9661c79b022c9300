"""The folder of a run: every path in it. Imports no torch, so that sweeps can watch their runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from reid.files import write_atomically
from reid.model.saved import CHECKPOINTS

if TYPE_CHECKING:
    from reid.runs.checkpoint import TrainState


class RunFolder:
    """The paths of a run, usually runs/<name>.

    metrics: one line of JSON per log step. stopped: exists while a run that was asked to stop waits for its resume;
    job scripts look for it. reports: of the evaluation program, one folder per dataset.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = path / ".lock"
        self.config = path / "config.yaml"
        self.checkpoints = path / CHECKPOINTS
        self.metrics = path / "metrics.jsonl"
        self.stopped = path / "stopped.json"
        self.wandb_run_id = path / "wandb_run_id.txt"
        self.reports = path / "eval"

    def write(self, path: Path, text: str) -> None:
        """Write a file of the run. Raises ValueError, which all ranks can share, if that fails."""
        try:
            write_atomically(path, text)
        except OSError as error:
            raise ValueError(
                f"{path} cannot be written: {error.strerror or error}; make room, or give another --runs"
            ) from error

    def remove_stopped(self) -> None:
        """Remove the stopped file, if there is one. Raises ValueError, which all ranks can share, if that fails."""
        try:
            self.stopped.unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(f"{self.stopped} cannot be removed: {error.strerror or error}") from error

    def write_stopped(self, state: TrainState, reason: str) -> None:
        at = {"epoch": state.epoch, "step": state.step, "reason": reason, "checkpoint": state.name}
        self.write(self.stopped, json.dumps(at) + "\n")
