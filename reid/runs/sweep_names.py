"""Names of the runs of a sweep: of their folders under a W&B agent, and in W&B."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reid.config import Config, read_yaml

LONGEST = 128  # characters of a name, for W&B


def name_in_sweep(config: Config) -> None:
    """Name a run of a W&B agent: its folder after its run id, in W&B after its knobs and its sweep."""
    run_id, sweep = os.environ.get("WANDB_RUN_ID", ""), os.environ.get("WANDB_SWEEP_ID", "")
    if run_id and sweep:
        config.name = f"{config.name}-{run_id}"
        config.track.group = config.track.group or sweep
        config.track.name = config.track.name or name_knobs(_read_knobs())


def _read_knobs() -> dict[str, Any]:
    """Return the knobs that a W&B agent has chosen; an empty dict if it does not say them."""
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH", "")
    document: Any = {}
    with contextlib.suppress(ValueError):  # only a name depends on it
        document = read_yaml(Path(path)) if path else {}
    entries = document.items() if isinstance(document, dict) else ()
    return {name: entry["value"] for name, entry in entries if isinstance(entry, dict) and "value" in entry}


def name_knobs(knobs: Mapping[str, Any]) -> str:
    """Return a short name for the values of knobs: m5-w0.1-s0 for loss.margin, loss.w1 and seed.

    A knob is called by the first letters of the word after its dot that tell it from the others.
    """
    words = {knob: knob.rpartition(".")[2] for knob in knobs}
    parts = []
    for knob, value in knobs.items():
        others = [word for other, word in words.items() if other != knob]
        starts = (words[knob][:length] for length in range(1, len(words[knob]) + 1))
        short = next((start for start in starts if not any(word.startswith(start) for word in others)), knob)
        parts.append(f"{short}{'=' if short[-1].isdigit() else ''}{_format(value)}")
    return "-".join(parts)[:LONGEST]


def _format(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")
