"""The folder of a run: every path in it, who may write to it, and which checkpoint to use."""

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
from reid.files import Held, hold, write_file
from reid.runs import checkpoint
from reid.runs.checkpoint import Progress

CHECKPOINTS = "checkpoints"


def find_run(run: str, name: str) -> tuple[Path, Path]:
    """The run's folder and the checkpoint. name: newest, best, one of the run's checkpoints, or a path.

    With a path the run may be left out; it is then the folder that holds the checkpoint's checkpoints/.
    """
    if (Path(name) / "state.json").is_file():
        found = Path(name)
        return Path(run) if run else found.resolve().parent.parent, found
    if not run:
        raise ValueError(f"--checkpoint={name} is no checkpoint's folder; give --run with its name, or its path")
    folder = Path(run)
    if not folder.is_dir():
        raise ValueError(f"--run={run}: no such folder; give that of a training run, e.g. runs/quickstart")
    saved = checkpoint.find(folder / CHECKPOINTS)
    if not saved:
        raise ValueError(f"{folder / CHECKPOINTS} holds no checkpoint yet; train the run first")
    wanted = checkpoint.read_state(saved[0])["best_name"] if name == "best" else name
    named = [path for path in saved if wanted in (path.name, "newest")]
    if not named:
        raise ValueError(f"--checkpoint={name}: {folder / CHECKPOINTS} holds {', '.join(path.name for path in saved)}")
    return folder, named[0]


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


STOPPED_FILE = "stopped.json"


def write_stopped(config: Config, progress: Progress, reason: str) -> None:
    """The file that a job script looks for before it asks to be started again."""
    at = {"epoch": progress.epoch, "step": progress.step, "reason": reason, "checkpoint": progress.name}
    write_file(config.folder / STOPPED_FILE, json.dumps(at) + "\n")
