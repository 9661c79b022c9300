"""Logging: metrics.jsonl in the run's folder, and Weights & Biases (online, offline or off)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reid.files import write_atomically
from reid.runs.environment import describe_environment
from reid.runs.folder import RunFolder
from reid.runs.logged import METRICS, read_metrics, without_dataset

START_TIMEOUT_S = 60.0  # for the server's answer; the other ranks wait for it at the first step
FINISH_TIMEOUT_S = 300.0  # for the last uploads; the rest stays in the run's folder for `wandb sync`


class Tracker:
    """Logs of one program, on rank 0; with `active=False` (other ranks, dry runs) every call does nothing.

    W&B never stops a run: its errors are printed once on stderr, and the numbers stay in metrics.jsonl.

    Args:
        folder: of the run, or of a report.
        mode: online, offline or off, of W&B.
        name, group: of the training in W&B.
        job_type: `train`, or another one, which makes a W&B run of its own in the same group, whose config names the
            training's (`train_run`).
        console: whether W&B keeps what the program prints.
        resume_step: global step from which a resumed training logs; later lines of metrics.jsonl are removed, and its
            W&B run is continued.
    """

    def __init__(
        self,
        folder: Path,
        *,
        active: bool,
        mode: str,
        project: str,
        name: str,
        group: str,
        job_type: str,
        config: Mapping[str, Any],
        resume_step: int | None = None,
        console: bool = False,
    ) -> None:
        files = RunFolder(folder)
        self.active = active
        self.has_warned = False  # that a line could not be written
        self.lines = files.metrics if job_type == "train" else None
        self.run: Any = None
        self.offline = False
        if not active:
            return
        if self.lines is not None:
            keep_steps_before(self.lines, resume_step or 0)
        if mode != "off":
            about: dict[str, Any] = {"environment": describe_environment(), **config}
            knobs: dict[str, Any] = {
                "project": project,
                "name": name if job_type == "train" else f"{name}-{job_type}",
                "group": group,
                "job_type": job_type,
                "dir": str(folder),
                "config": about,
            }
            train_run = files.wandb_run_id.read_text().strip() if files.wandb_run_id.is_file() else ""
            if job_type != "train":
                about["train_run"] = train_run
            elif resume_step:
                # Under a W&B agent WANDB_RUN_ID names the run, also after a preemption.
                knobs |= {"resume": "allow"} | ({} if os.environ.get("WANDB_RUN_ID") else {"id": train_run or None})
            self._start(knobs, mode != "offline", console)
            if self.run is not None and job_type == "train":
                self._send(lambda run, _: files.wandb_run_id.write_text(f"{run.id}\n"))
            if resume_step and self.offline and self.lines is not None:
                self._send(lambda run, _: self._repeat(folder))

    def _repeat(self, folder: Path) -> None:
        """Log the earlier lines of a resumed training again, and mark its earlier W&B folders as synchronized.

        W&B's server keeps only one of several offline folders of a run, so each has to hold all lines.
        """
        run_id, current = self.run.id, Path(self.run.dir).parent
        for earlier in folder.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"):
            if earlier.parent.resolve() != current.resolve():
                earlier.with_name(f"{earlier.name}.synced").touch()
        for entry in read_metrics(self.lines)[0] if self.lines is not None and self.lines.exists() else []:
            self.run.log({"train/step": entry.pop("step"), **entry})

    @property
    def where(self) -> str:
        """Where W&B shows the run: its URL, or the command that uploads it; "" without W&B."""
        if self.run is None:
            return ""
        return f"wandb sync {Path(self.run.dir).parent}" if self.offline else str(self.run.url)

    def _start(self, knobs: dict[str, Any], online: bool, console: bool) -> None:
        try:
            import wandb

            settings = wandb.Settings(
                silent=True, console="wrap" if console else "off", init_timeout=START_TIMEOUT_S,
                login_timeout=START_TIMEOUT_S, finish_timeout=FINISH_TIMEOUT_S,
            )  # fmt: skip
            self.run = wandb.init(**knobs, mode="online" if online else "offline", settings=settings)
            self.offline = not online
            self.run.define_metric("train/step")
            for names in ("epoch", "train/*", "eval/*", "data/*"):
                self.run.define_metric(names, step_metric="train/step")
        except Exception as error:  # no failure of W&B may stop the training
            if not online:
                self._give_up(error)
                return
            _warn(f"W&B cannot be reached, so this run is kept offline, for `wandb sync`: {_describe(error)}")
            self._start(knobs, False, console)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line of metrics.jsonl, and the same values to W&B. A full disk gives one warning."""
        if not self.active:
            return
        if self.lines is not None:
            unknown = set(map(without_dataset, values)) - {"epoch", *METRICS}
            assert not unknown, f"not in METRICS: {unknown}"
            try:
                append_line(self.lines, json.dumps({"step": step, **values}))
            except OSError as error:
                if not self.has_warned:
                    _warn(f"{self.lines}: lines are missing after step {step}: {error.strerror or error}")
                self.has_warned = True
        self._send(lambda run, _: run.log({"train/step": step, **values}))

    def log_pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        self._send(
            lambda run, wandb: run.log(
                {"train/step": step, **{name: wandb.Image(str(path)) for name, path in pictures.items()}}
            )
        )

    def log_table(self, step: int, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Log a table to W&B. A cell that is an array (H, W, 3) uint8 is shown as a picture."""

        def send(run: Any, wandb: Any) -> None:
            shown = [
                [wandb.Image(cell, file_type="jpg") if isinstance(cell, np.ndarray) else cell for cell in row]
                for row in rows
            ]
            run.log({"train/step": step, name: wandb.Table(columns=[*columns], data=shown)})

        self._send(send)

    def log_lines(
        self, step: int, name: str, xs: Sequence[int], lines: Mapping[str, Sequence[float]], **texts: str
    ) -> None:
        """Log a chart of named lines over the same `xs` to W&B. texts: its `title` and `xname`."""
        ys = [[*line] for line in lines.values()]
        self._send(
            lambda run, wandb: run.log(
                {"train/step": step, name: wandb.plot.line_series([*xs], ys, keys=[*lines], **texts)}
            )
        )

    def log_artifact(self, path: Path, name: str, kind: str) -> None:
        """Send a file, or a folder with its contents, as a version of the artifact `name`. kind: `model`, `dataset`."""

        def send(run: Any, wandb: Any) -> None:
            artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type=kind)
            (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path))
            run.log_artifact(artifact)

        self._send(send)

    def summarize(self, values: Mapping[str, float]) -> None:
        """Set final scalars, which W&B's tables and sweeps read."""
        self._send(lambda run, _: run.summary.update(dict(values)))

    def finish(self, resumes: bool = False, failed: bool = False) -> None:
        """End W&B's run.

        Args:
            resumes: it was stopped before its end; a sweep's server then gives it to another agent.
            failed: it ended with an error.
        """
        preempted = resumes and bool(os.environ.get("WANDB_SWEEP_ID"))
        if preempted:
            self._send(lambda run, _: run.mark_preempting())
        self._send(lambda run, _: run.finish(exit_code=int(preempted or failed)))
        self.run = None

    def _send(self, action: Callable[[Any, Any], object]) -> None:
        if self.run is None:
            return
        import wandb

        try:
            action(self.run, wandb)
        except Exception as error:  # as in _start
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.run = None
        _warn(f"W&B logging is off for the rest of the run: {_describe(error)}")


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _describe(error: Exception) -> str:
    """Return the error's first line without the API key, which servers and proxies may repeat."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    key = os.environ.get("WANDB_API_KEY", "")
    text = text.replace(key, "***") if key else text
    return f"{text} Or set WANDB_API_KEY." if "No API key" in text else text


def append_line(path: Path, line: str) -> None:
    """Append a line completely, or raise OSError and append nothing."""
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a") as file:
            file.write(line + "\n")
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, before)
        raise


def keep_steps_before(path: Path, step: int) -> None:
    """Remove the lines from `step` on, which a resumed run writes again, and damaged ones, with a warning."""
    if not path.exists():
        return
    entries, damaged = read_metrics(path)
    if damaged:
        _warn(f"{path}: {len(damaged)} damaged lines are removed, the first of them line {damaged[0]}")
    kept = [json.dumps(entry) for entry in entries if entry["step"] < step]
    try:
        write_atomically(path, "".join(line + "\n" for line in kept))
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}; make room") from error
