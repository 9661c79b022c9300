"""Offline runs of Weights & Biases, read back with its own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

WANDB = Path(sys.executable).with_name("wandb")


def find_files(folder: Path) -> list[Path]:
    """The file of each offline run under `folder`, in the order in which they were started."""
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)


def read_back(folder: Path) -> list[list[dict[str, Any]]]:
    """The records of each offline run under `folder`."""
    runs = []
    for file in find_files(folder):
        command = [str(WANDB), "leet", "inspect", "--json", str(file)]
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        runs.append([json.loads(line) for line in output.splitlines()])
    return runs


def run_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    return next(record["run"] for record in records if record["type"] == "run")


def history_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def summary_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    return summary
