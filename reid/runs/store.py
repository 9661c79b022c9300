"""What a training run writes beside its log: checkpoints, and the file that says that it was stopped."""

from __future__ import annotations

import contextlib

from reid.config import Config, to_yaml
from reid.distributed import from_rank_0
from reid.runs import checkpoint
from reid.runs.checkpoint import Parts, TrainState
from reid.runs.folder import RunFolder


class RunStore:
    """Writes into the run's folder, on rank 0. `check_space`, `prepare`, `save` and `amend` are collective."""

    def __init__(self, folder: RunFolder, parts: Parts, keep: int) -> None:
        self.folder, self.parts, self.keep = folder, parts, keep

    def check_space(self) -> None:
        """Raise ValueError on every rank if the disk has no room for the checkpoints."""
        model, objective = self.parts.model, self.parts.objective
        assert objective is not None
        from_rank_0(lambda: self.folder.check_space(model, objective, self.keep))

    def prepare(self, config: Config) -> None:
        """Write config.yaml and remove the stopped file of an earlier run, before the first step."""

        def write() -> None:
            self.folder.stopped.unlink(missing_ok=True)
            self.folder.write(self.folder.config, to_yaml(config))

        from_rank_0(write)

    def save(self, state: TrainState, required: bool) -> tuple[bool, str]:
        """Write a checkpoint.

        Args:
            required: nothing comes after it, so a failure is an error.

        Returns:
            Whether the checkpoint is on disk, and a warning or "".
        """
        return from_rank_0(lambda: self._write(state, required, amends=False))

    def amend(self, state: TrainState, required: bool) -> tuple[bool, str]:
        """Replace the TrainState of the checkpoint that `save` has just written; otherwise like `save`."""
        return from_rank_0(lambda: self._write(state, required, amends=True))

    def _write(self, state: TrainState, required: bool, amends: bool) -> tuple[bool, str]:
        folder = self.folder.checkpoints
        try:
            if amends:
                checkpoint.amend(folder, state, self.keep)
            else:
                checkpoint.save(folder, self.parts, state, self.keep)
        except checkpoint.NotRemoved as error:
            return True, f"warning: {error.filename}: this old checkpoint could not be removed: {error.strerror}"
        except OSError as error:
            reason = f"{folder}: no checkpoint could be written: {error.strerror or error}"
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
            self.folder.stopped.unlink(missing_ok=True)  # of a request during the last evaluation


class NullStore(RunStore):
    """The store of a dry run: writes nothing."""

    def check_space(self) -> None:
        pass

    def prepare(self, config: Config) -> None:
        pass

    def save(self, state: TrainState, required: bool) -> tuple[bool, str]:
        return False, ""

    amend = save

    def note_request(self, state: TrainState, reason: str) -> None:
        pass

    def end(self, state: TrainState, reason: str | None) -> None:
        pass
