"""Where numbers go: metrics.jsonl in the run's folder, and Weights & Biases (online, offline or off)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reid.runs.environment import describe_environment

RUN_ID = "wandb_run_id.txt"
START_TIMEOUT_S = 60.0  # for the server's answer; the other ranks wait for it at the first step
FINISH_TIMEOUT_S = 300.0  # for the last uploads; what is left lies in the run's folder for `wandb sync`


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
        """`resume_step`: global step at which a resumed run goes on; later lines of metrics.jsonl are dropped.

        A resumed training goes on with its W&B run. Another job_type makes a run of its own beside it, in the same
        group, whose config names it (`train_run`).
        """
        self.active = active
        self.said = False  # that a line could not be written
        self.lines = folder / "metrics.jsonl" if job_type == "train" else None
        self.run: Any = None
        if not active:
            return
        if self.lines is not None:
            keep_steps_before(self.lines, resume_step or 0)
        if mode != "off":
            about: dict[str, Any] = {"environment": describe_environment(), **config}
            knobs: dict[str, Any] = {
                "project": project,
                "name": name if job_type == "train" else f"{name}-{job_type}",
                "group": name,
                "job_type": job_type,
                "dir": str(folder),
                "config": about,
            }
            train_run = _read_id(folder)
            if job_type != "train":
                about["train_run"] = train_run
            elif resume_step:
                # Below an agent WANDB_RUN_ID names the run, the same one again after it was preempted.
                knobs |= {"resume": "allow"} | ({} if os.environ.get("WANDB_RUN_ID") else {"id": train_run or None})
            self._start(knobs, online=mode != "offline")
            if self.run is not None and job_type == "train":
                self._send(lambda run: (folder / RUN_ID).write_text(f"{run.id}\n"))

    def _start(self, knobs: dict[str, Any], online: bool) -> None:
        try:
            import wandb

            settings = wandb.Settings(
                silent=True, console="off", init_timeout=START_TIMEOUT_S, login_timeout=START_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,
            )  # fmt: skip
            self.run = wandb.init(**knobs, mode="online" if online else "offline", settings=settings)
            self.run.define_metric("train/step")
            for prefix in ("train/*", "eval/*", "data/*"):
                self.run.define_metric(prefix, step_metric="train/step")
        except Exception as error:  # W&B is a convenience: any failure of it must leave the training alone
            if not online:
                self._give_up(error)
                return
            _warn(f"W&B cannot be reached, so this run is kept offline, for `wandb sync`: {_describe(error)}")
            self._start(knobs, online=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One log step: a line of metrics.jsonl and the same values in W&B. A full disk is a warning, said once."""
        if not self.active:
            return
        if self.lines is not None:
            try:
                append_line(self.lines, json.dumps({"step": step, **values}))
            except OSError as error:
                if not self.said:
                    _warn(f"{self.lines}: lines are missing from step {step + 1} on: {error.strerror or error}")
                self.said = True
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

    def log_artifact(self, path: Path, name: str, kind: str) -> None:
        """A file, or a folder with all in it, as a version of the artifact `name`; kind: `model`, `manifest`, ..."""

        def send(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type=kind)
            (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path))
            run.log_artifact(artifact)

        self._send(send)

    def summarize(self, values: Mapping[str, float]) -> None:
        """Final scalars, which W&B's tables and sweeps read."""
        self._send(lambda run: run.summary.update(dict(values)))

    def finish(self, wants_to_go_on: bool = False) -> None:
        """`wants_to_go_on`: the run was stopped before its end; a sweep's server then gives it to another agent."""
        preempted = wants_to_go_on and bool(os.environ.get("WANDB_SWEEP_ID"))
        if preempted:
            self._send(lambda run: run.mark_preempting())
        self._send(lambda run: run.finish(exit_code=int(preempted)))
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
        _warn(f"W&B logging is off from here on: {_describe(error)}")


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _describe(error: Exception) -> str:
    """Its first line, without the key: servers and proxies repeat what they were sent."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    key = os.environ.get("WANDB_API_KEY", "")
    text = text.replace(key, "***") if key else text
    return f"{text} Or set WANDB_API_KEY." if "No API key" in text else text


def _read_id(folder: Path) -> str:
    path = folder / RUN_ID
    return path.read_text().strip() if path.is_file() else ""


def name_in_sweep(name: str) -> str:
    """The run's name; below a W&B agent with the agent's run id, so that the runs of a sweep do not share a folder."""
    run_id = os.environ.get("WANDB_RUN_ID", "")
    return f"{name}-{run_id}" if os.environ.get("WANDB_SWEEP_ID") and run_id else name


def append_line(path: Path, line: str) -> None:
    """The whole line or, with an OSError, nothing of it."""
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a") as file:
            file.write(line + "\n")
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, before)
        raise


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
    new = path.with_name(f".{path.name}.new")  # aside, so that a full disk or a kill leaves the lines
    try:
        new.write_text("".join(line + "\n" for line in kept))
        new.replace(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}; make room") from error
