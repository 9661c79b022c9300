"""The folder of a run: every path in it, the claim of one process group on it, and which checkpoint to use."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from reid.config import Config, save
from reid.distributed import from_rank_0
from reid.files import Held, hold, write_atomically
from reid.runs import checkpoint
from reid.runs.checkpoint import TrainState


class RunFolder:
    """The paths of a run, usually runs/<name>.

    metrics: one line of JSON per log step. stopped: exists while a run that was asked to stop waits for its resume;
    job scripts look for it. reports: of the evaluation program, one folder per dataset.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.stopped = path / "stopped.json"
        self.wandb_run_id = path / "wandb_run_id.txt"
        self.reports = path / "eval"

    @contextlib.contextmanager
    def claim(self, config: Config) -> Iterator[None]:
        """Make the folder and keep other runs out of it during the block. Collective.

        Raises:
            ValueError: on every rank, if another run trains in the folder or it cannot be written.
        """
        with contextlib.ExitStack() as stack:

            def take() -> None:
                try:
                    self.path.mkdir(parents=True, exist_ok=True)
                    self._lock(stack)
                    probe = self.config.with_suffix(".yaml.new")
                    save(config, probe)
                    probe.unlink()
                except Held as error:
                    raise ValueError(
                        f"{self.path}: {error} is training in this folder; wait for it, or give another --name"
                    ) from error
                except OSError as error:
                    reason = error.strerror or error
                    raise ValueError(f"{self.path} cannot be written: {reason}; give another --runs") from error

            from_rank_0(take)
            yield

    def _lock(self, stack: contextlib.ExitStack) -> None:
        """Take the lock. The decoding processes of a killed run hold it for some seconds after its end."""
        for attempt in range(21):
            try:
                stack.enter_context(hold(self.path / ".lock"))
                return
            except Held:
                if attempt == 20:
                    raise
                time.sleep(0.5)

    def find_resume_point(self, resume: str, read_only: bool = False) -> tuple[Path | None, list[str]]:
        """Return the checkpoint to resume from, if any, and what is wrong with newer ones.

        Args:
            resume: `auto` or `never`.
            read_only: change nothing, and ignore an earlier run (a dry run).

        Raises:
            ValueError: rather than overwrite an earlier run, or if all checkpoints are damaged.
        """
        if not read_only:
            checkpoint.restore(self.checkpoints)
        found = checkpoint.find(self.checkpoints)
        if found and resume == "never" and not read_only:
            raise ValueError(
                f"{self.path} holds a run already ({found[0].name}); continue it with --resume=auto, "
                "or give another --name"
            )
        return checkpoint.find_undamaged(self.checkpoints) if resume == "auto" else (None, [])

    def check_space(self, model: nn.Module, objective: nn.Module, keep: int) -> None:
        """Raise ValueError if the disk has no room for the checkpoints that are kept, and the next one."""
        weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
        centers = sum(value.numel() * value.element_size() for value in objective.state_dict().values())
        wanted = (3 * weights + centers) * (keep + 2)  # weights and Adam's two moments
        free = shutil.disk_usage(self.path).free
        if free < wanted:
            raise ValueError(
                f"{self.path}: {free / 2**20:,.0f} MiB are free, {keep + 2} checkpoints take "
                f"{wanted / 2**20:,.0f} MiB; make room, lower track.keep_checkpoints, or give another --runs"
            )

    def write(self, path: Path, text: str) -> None:
        """Write a file of the run. Raises ValueError, which all ranks can share, if that fails."""
        try:
            write_atomically(path, text)
        except OSError as error:
            raise ValueError(
                f"{path} cannot be written: {error.strerror or error}; make room, or give another --runs"
            ) from error

    def write_stopped(self, state: TrainState, reason: str) -> None:
        at = {"epoch": state.epoch, "step": state.step, "reason": reason, "checkpoint": state.name}
        self.write(self.stopped, json.dumps(at) + "\n")


def find_run(run: str, name: str) -> tuple[RunFolder, Path]:
    """Return a run's folder and one of its checkpoints.

    Args:
        run: the run's folder; may be empty if `name` is a path.
        name: newest, best, the name of one of the run's checkpoints, or a checkpoint's path.

    Raises:
        ValueError: there is no such run or checkpoint.
    """
    if (Path(name) / "state.json").is_file():
        found = Path(name)
        return RunFolder(Path(run) if run else found.resolve().parent.parent), found
    if not run:
        raise ValueError(f"--checkpoint={name} is not a checkpoint's folder; give --run with its name, or its path")
    folder = RunFolder(Path(run))
    if not folder.path.is_dir():
        raise ValueError(f"--run={run}: no such folder; give that of a training run, e.g. runs/quickstart")
    saved = checkpoint.find(folder.checkpoints)
    if not saved:
        raise ValueError(f"{folder.checkpoints} holds no checkpoint yet; train the run first")
    wanted = checkpoint.read_state(saved[0])["best_name"] if name == "best" else name
    named = [path for path in saved if wanted in (path.name, "newest")]
    if not named:
        raise ValueError(f"--checkpoint={name}: {folder.checkpoints} holds {', '.join(path.name for path in saved)}")
    return folder, named[0]
