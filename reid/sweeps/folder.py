"""The folder of a sweep that no server keeps: its plan, the flags and state of each run, and its results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from reid.sweeps.spec import Knobs, Run, Sweep, read_history, read_sweep
from reid.sweeps.table import write_results

DONE = ("finished", "stopped")


def to_flags(knobs: Knobs) -> list[str]:
    return [f"--{name}={value}" for name, value in knobs.items()]


class SweepFolder:
    """What is on disk of one sweep, which is all that a later call needs.

    sweep.yaml; plan.json {"flags", "runs": [knobs]}; flags/<n> and state/<n> of run n, a line for each flag;
    run-<nnnn>/ as every training run; run-<nnnn>.log.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def claim(self, sweep: Sweep, extra: Sequence[str]) -> None:
        """Make the folder this sweep's, or ValueError where it is another's."""
        for name in ("flags", "state"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        copy = self.path / "sweep.yaml"
        if not copy.exists():
            self._write_plan(list(extra), [])
            copy.write_text(yaml.safe_dump(sweep.document, sort_keys=False))
        plan = self._plan()
        if yaml.safe_load(copy.read_text()) != sweep.document or plan["flags"] != list(extra):
            raise ValueError(f"{self.path} holds another sweep, or one with other flags; give another --out")

    def _plan(self) -> dict[str, Any]:
        plan: dict[str, Any] = json.loads((self.path / "plan.json").read_text())
        return plan

    def _write_plan(self, extra: list[str], runs: list[Knobs]) -> None:
        part = self.path / ".plan.json"
        part.write_text(json.dumps({"flags": extra, "runs": runs}, indent=1) + "\n")
        part.replace(self.path / "plan.json")

    def add(self, sweep: Sweep, knobs: Knobs) -> None:
        """Write one more run down."""
        plan = self._plan()
        number = len(plan["runs"])
        flags = self.flags_of(sweep, number, knobs)
        (self.path / "flags" / str(number)).write_text("".join(f"{flag}\n" for flag in flags))
        self._write_plan(plan["flags"], [*plan["runs"], knobs])

    def flags_of(self, sweep: Sweep, number: int, knobs: Knobs) -> list[str]:
        """What train.py gets; the last of a flag wins, so knobs come after all that may hold a --config.

        W&B's files land in the run's folder, nothing is sent.
        """
        return [*sweep.flags, "--track.wandb=offline", *self._plan()["flags"], *to_flags(knobs),
                f"--runs={self.path}", f"--name=run-{number:04d}", "--resume=auto"]  # fmt: skip

    def flags(self, number: int) -> list[str]:
        return (self.path / "flags" / str(number)).read_text().splitlines()

    def run_folder(self, number: int) -> Path:
        return self.path / f"run-{number:04d}"

    def note(self, number: int, state: str) -> None:
        (self.path / "state" / str(number)).write_text(state + "\n")

    def state(self, number: int) -> str:
        path = self.path / "state" / str(number)
        return path.read_text().strip() or "planned" if path.exists() else "planned"

    @cached_property
    def sweep(self) -> Sweep:
        if not (self.path / "sweep.yaml").is_file():
            raise ValueError(f"{self.path}: no sweep.yaml; not the --out of a sweep")
        return read_sweep(self.path / "sweep.yaml")

    def read(self) -> list[Run]:
        metric = self.sweep.metric
        return [
            Run(number, knobs, self.state(number), read_history(self.run_folder(number), metric))
            for number, knobs in enumerate(self._plan()["runs"])
        ]

    def collect(self, runs: Sequence[Run]) -> str:
        return write_results(self.path, runs, self.sweep.metric, self.sweep.maximizes)
