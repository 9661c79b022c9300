"""Where numbers go: metrics.jsonl in the run's folder, and Weights & Biases (online, offline or off)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Tracker:
    """Logs of one program, on rank 0; on the other ranks (`active=False`) every call does nothing.

    W&B never stops a run: what goes wrong there is said once on stderr, and the numbers stay in metrics.jsonl.
    """

    def __init__(
        self,
        folder: Path,
        *,
        active: bool,
        mode: str,
        project: str,
        name: str,
        job_type: str,
        config: Mapping[str, Any],
        resume_step: int | None = None,
    ) -> None:
        """`resume_step`: global step at which a resumed run goes on; later lines of metrics.jsonl are dropped."""
        self.active = active
        self.lines = folder / "metrics.jsonl" if job_type == "train" else None
        self.run: Any = None
        if not active:
            return
        if self.lines is not None:
            keep_steps_before(self.lines, resume_step or 0)
        if mode != "off":
            self._start(folder, mode, project, name, job_type, dict(config))

    def _start(self, folder: Path, mode: str, project: str, name: str, job_type: str, config: dict[str, Any]) -> None:
        try:
            import wandb

            self.run = wandb.init(
                project=project,
                name=name if job_type == "train" else f"{name}-{job_type}",
                group=name,
                job_type=job_type,
                mode="offline" if mode == "offline" else "online",
                dir=str(folder),
                config=config,
                settings=wandb.Settings(silent=True, console="off"),
            )
            self.run.define_metric("train/step")
            for prefix in ("train/*", "eval/*"):
                self.run.define_metric(prefix, step_metric="train/step")
        except Exception as error:  # W&B is a convenience: any failure of it must leave the training alone
            self._give_up(error)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One log step: a line of metrics.jsonl and the same values in W&B."""
        if not self.active:
            return
        if self.lines is not None:
            with self.lines.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        self._send(lambda run: run.log({"train/step": step, **values}))

    def log_pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        def send(run: Any) -> None:
            import wandb

            run.log({"train/step": step, **{name: wandb.Image(str(path)) for name, path in pictures.items()}})

        self._send(send)

    def log_table(self, step: int, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        def send(run: Any) -> None:
            import wandb

            run.log({"train/step": step, name: wandb.Table(columns=[*columns], data=rows)})

        self._send(send)

    def summarize(self, values: Mapping[str, float]) -> None:
        """Final scalars, which W&B's tables and sweeps read."""
        self._send(lambda run: run.summary.update(dict(values)))

    def finish(self, exit_code: int = 0) -> None:
        self._send(lambda run: run.finish(exit_code=exit_code))
        self.run = None

    def _send(self, action: Any) -> None:
        if self.run is None:
            return
        try:
            action(self.run)
        except Exception as error:  # as in _start
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.run = None
        print(f"warning: W&B logging is off from here on: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def name_in_sweep(name: str) -> str:
    """The run's name; below a W&B agent with the agent's run id, so that the runs of a sweep do not share a folder."""
    run_id = os.environ.get("WANDB_RUN_ID", "")
    return f"{name}-{run_id}" if os.environ.get("WANDB_SWEEP_ID") and run_id else name


def keep_steps_before(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl from `step` on (a resumed run writes them anew), and a half-written last one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] < step:
                kept.append(line)
        except ValueError:
            break
    path.write_text("".join(line + "\n" for line in kept))
