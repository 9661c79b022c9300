"""Offline runs of Weights & Biases, read back with its own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from wandb.util import get_core_path

WANDB = Path(sys.executable).with_name("wandb")


def find_files(folder: Path) -> list[Path]:
    """The file of each offline run under `folder`."""
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def read_back(folder: Path) -> list[list[dict[str, Any]]]:
    """The records of each offline run under `folder`, in the order in which they were started."""
    return sorted(map(read_file, find_files(folder)), key=lambda records: datetime.fromisoformat(start_of(records)))


def read_file(file: Path) -> list[dict[str, Any]]:
    """The records of one run, from the program that `wandb leet inspect` starts after a second of imports."""
    options = ["--no-observability", "--json", "--run-file", str(file)]
    command = [get_core_path(), "leet", "inspect", *options, str(file.parents[1])]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    return [json.loads(line) for line in output.splitlines()]


def start_of(records: list[dict[str, Any]]) -> str:
    start: str = run_of(records)["start_time"]
    return start


def run_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    return next(record["run"] for record in records if record["type"] == "run")


def history_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def files_of_tables(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Path and local_path of each file of the tables of a run, pictures included."""
    return [
        entry
        for record in records
        if record.get("artifact", {}).get("type") == "run_table"
        for entry in record["artifact"]["manifest"]["contents"]
    ]


def summary_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    return summary
