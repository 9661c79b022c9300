"""The folder of a sweep without a server: its plan, the flags and state of each run, and its results."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from reid.config import Config, check, parse
from reid.files import write_atomically
from reid.sweeps.spec import Knobs, Run, Sweep, read_history, read_sweep
from reid.sweeps.table import write_results

DONE = ("finished", "stopped")


def to_flags(knobs: Knobs) -> list[str]:
    return [f"--{name}={value}" for name, value in knobs.items()]


def check_run(sweep: Sweep, flags: Sequence[str]) -> Config:
    """Return the configuration that the flags give. Raises ValueError if the trainer would refuse it."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            config = parse(Config, flags)
        check(config, 1)
        return config
    except SystemExit:
        reason = " ".join(stderr.getvalue().split("error: ", 1)[-1].split())
    except ValueError as error:
        reason = str(error)
    raise ValueError(f"{sweep.path}: {reason}")


class SweepFolder:
    """What is on disk of one sweep, which is all that a later call needs.

    sweep.yaml; plan.json {"flags", "runs": [knobs]}; flags/<n>, a line for each flag of run n; state/<n>;
    run-<nnnn>/, the folder of a training run; run-<nnnn>.log.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def sweep(self) -> Sweep:
        if not (self.path / "sweep.yaml").is_file():
            raise ValueError(f"{self.path}: no sweep.yaml; not the --out of a sweep")
        return read_sweep(self.path / "sweep.yaml")

    def claim(self, sweep: Sweep, extra: Sequence[str]) -> None:
        """Make the folder for a sweep with `extra` flags. Raises ValueError if it holds another sweep."""
        for name in ("flags", "state"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        copy = self.path / "sweep.yaml"
        if not copy.exists():
            self._write_plan(list(extra), [])
            write_atomically(copy, yaml.safe_dump(sweep.document, sort_keys=False))
        if yaml.safe_load(copy.read_text()) != sweep.document or self._plan()["flags"] != list(extra):
            raise ValueError(f"{self.path} holds another sweep, or one with other flags; give another --out")

    def _plan(self) -> dict[str, Any]:
        plan: dict[str, Any] = json.loads((self.path / "plan.json").read_text())
        return plan

    def _write_plan(self, extra: list[str], runs: list[Knobs]) -> None:
        write_atomically(self.path / "plan.json", json.dumps({"flags": extra, "runs": runs}, indent=1) + "\n")

    def add(self, sweep: Sweep, knobs: Knobs) -> None:
        """Plan one more run. Raises ValueError if the trainer would refuse it.

        W&B's files stay in the run's folder, nothing is sent.
        """
        plan = self._plan()
        number = len(plan["runs"])
        # The last of equal flags wins, so knobs come after all that may hold a --config.
        flags = [*sweep.flags, "--track.wandb=offline", *plan["flags"], *to_flags(knobs),
                 f"--runs={self.path}", f"--name=run-{number:04d}", "--resume=auto"]  # fmt: skip
        check_run(sweep, flags)
        write_atomically(self.path / "flags" / str(number), "".join(f"{flag}\n" for flag in flags))
        self._write_plan(plan["flags"], [*plan["runs"], knobs])

    def flags(self, number: int) -> list[str]:
        return (self.path / "flags" / str(number)).read_text().splitlines()

    def run_folder(self, number: int) -> Path:
        return self.path / f"run-{number:04d}"

    def set_state(self, number: int, state: str) -> None:
        write_atomically(self.path / "state" / str(number), state + "\n")

    def runs(self) -> list[Run]:
        runs = []
        for number, knobs in enumerate(self._plan()["runs"]):
            path = self.path / "state" / str(number)
            state = path.read_text().strip() if path.exists() else ""
            runs.append(
                Run(number, knobs, state or "planned", read_history(self.run_folder(number), self.sweep.metric))
            )
        return runs

    def collect(self) -> str:
        """Write the tables and the heat map; return the text."""
        return write_results(self.path, self.sweep, self.runs())
