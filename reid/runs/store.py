"""The files of a training run except its log: checkpoints, config.yaml and stopped.json."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from reid.config import Config, save, to_yaml
from reid.distributed import from_rank_0
from reid.files import Held, hold
from reid.model.saved import find_undamaged
from reid.runs import checkpoint
from reid.runs.checkpoint import Parts, TrainState
from reid.runs.folder import RunFolder


@contextlib.contextmanager
def claim_run_folder(folder: RunFolder, config: Config) -> Iterator[None]:
    """Make a run's folder and keep other runs out of it during the block. Collective.

    Raises:
        ValueError: on every rank, if another run trains in the folder or it cannot be written.
    """
    with contextlib.ExitStack() as stack:

        def prepare_folder() -> None:
            try:
                folder.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold(folder.lock))
                probe = folder.config.with_suffix(".yaml.new")
                save(config, probe)
                probe.unlink()
            except Held as error:
                raise ValueError(
                    f"{folder.path}: {error} is training in this folder; wait for it, or give another --name"
                ) from error
            except OSError as error:
                reason = error.strerror or error
                raise ValueError(f"{folder.path} cannot be written: {reason}; give another --runs") from error

        from_rank_0(prepare_folder)
        yield


def find_resume_point(folder: RunFolder, resume: str, read_only: bool = False) -> tuple[Path | None, list[str]]:
    """Return the checkpoint to resume from, if any, and what is wrong with newer ones.

    Args:
        resume: `auto` or `never`.
        read_only: change nothing, and ignore an earlier run (a dry run).

    Raises:
        ValueError: rather than overwrite an earlier run, or if all checkpoints are damaged.
    """
    if not read_only:
        checkpoint.restore(folder.checkpoints)
    found = checkpoint.find(folder.checkpoints)
    if found and resume == "never" and not read_only:
        raise ValueError(
            f"{folder.path} holds a run already ({found[0].name}); continue it with --resume=auto, "
            "or give another --name"
        )
    return find_undamaged(folder.checkpoints) if resume == "auto" else (None, [])


class RunStore:
    """Writes into the run's folder, on rank 0. `check_space`, `prepare`, `save` and `amend` are collective."""

    def __init__(self, folder: RunFolder, parts: Parts, keep: int) -> None:
        self.folder, self.parts, self.keep = folder, parts, keep

    def check_space(self) -> None:
        """Raise ValueError on every rank if the disk has no room for the checkpoints that are still to be written.

        These are the kept ones, the best and the one that is being written, less those that are there already.
        """

        def check() -> None:
            weights, centers = (
                sum(value.numel() * value.element_size() for value in module.state_dict().values()) if module else 0
                for module in (self.parts.model, self.parts.objective)
            )
            number = max(self.keep + 2 - len(checkpoint.find(self.folder.checkpoints)), 1)
            copies = 3 if self.parts.average is None else 4  # weights, Adam's two moments, and the average
            wanted = (copies * weights + centers) * number
            free = shutil.disk_usage(self.folder.path).free
            if free < wanted:
                raise ValueError(
                    f"{self.folder.path}: {free / 2**20:,.0f} MiB are free, {number} checkpoints take "
                    f"{wanted / 2**20:,.0f} MiB; make room, lower track.keep_checkpoints, or give another --runs"
                )

        from_rank_0(check)

    def prepare(self, config: Config) -> None:
        """Write config.yaml and remove the stopped file of an earlier run, before the first step."""

        def write() -> None:
            self.folder.remove_stopped()
            self.folder.write(self.folder.config, to_yaml(config))

        from_rank_0(write)

    def save(self, state: TrainState, required: bool) -> tuple[bool, str]:
        """Write a checkpoint.

        Args:
            required: nothing comes after it, so a failure is an error.

        Returns:
            Whether the checkpoint is on disk, and a warning or "".
        """
        return from_rank_0(
            lambda: self._try(lambda: checkpoint.save(self.folder.checkpoints, self.parts, state, self.keep), required)
        )

    def amend(self, state: TrainState, required: bool) -> tuple[bool, str]:
        """Replace the TrainState of the checkpoint that `save` has just written; otherwise like `save`."""
        return from_rank_0(
            lambda: self._try(lambda: checkpoint.amend(self.folder.checkpoints, state, self.keep), required)
        )

    def _try(self, write: Callable[[], object], required: bool) -> tuple[bool, str]:
        try:
            write()
        except checkpoint.NotRemoved as error:
            return True, f"warning: {error.filename}: this old checkpoint could not be removed: {error.strerror}"
        except OSError as error:
            reason = f"{self.folder.checkpoints}: no checkpoint could be written: {error.strerror or error}"
            if required:
                raise ValueError(f"{reason}; earlier ones are intact") from error
            return False, f"warning: {reason}; training continues, earlier ones are intact"
        return True, ""

    def note_request(self, state: TrainState, reason: str) -> None:
        """Write the stopped file in a signal handler of rank 0, while an evaluation runs; `end` tries again."""
        with contextlib.suppress(ValueError):  # raised on this rank only
            self.folder.write_stopped(state, reason)

    def end(self, state: TrainState, reason: str | None) -> None:
        """Write the stopped file if there is a `reason` for a stop before the end of training; otherwise remove it."""
        if reason is not None:
            self.folder.write_stopped(state, reason)
        else:
            self.folder.remove_stopped()  # of a request during the last evaluation


class NullStore(RunStore):
    """The store of a dry run: writes nothing."""

    def check_space(self) -> None:
        pass

    def prepare(self, config: Config) -> None:
        pass

    def save(self, state: TrainState, required: bool) -> tuple[bool, str]:
        return False, ""

    amend = save

    def end(self, state: TrainState, reason: str | None) -> None:
        pass
