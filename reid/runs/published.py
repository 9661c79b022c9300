"""A model as the hub has it: weights of encoder and neck, and about.json, from which the model is built again.

`reid export --format hub` writes it. It needs no run, and reading it runs no code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from reid.config import Config, change, to_flags
from reid.config.schema import LATER
from reid.files import hash_file
from reid.model.hub import ABOUT
from reid.model.network import ReIDModel
from reid.model.saved import MODEL

# What about.json says, and the knob that it is.
KNOBS = {"height": "data.height", "width": "data.width", "mean": "data.mean", "std": "data.std",
         "interpolation": "data.interpolation", "nested": "model.nested"}  # fmt: skip
FIX = "fetch or export it again"


def read_about(path: Path) -> dict[str, Any]:
    """Return about.json of a folder, after the check of its weights. Raises ValueError if one of them is damaged."""
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        lacking = {"model", "sha256", "weights", "data", *KNOBS} - set(about)
        if lacking or not isinstance(about["model"], dict):
            raise ValueError(f"it has no {', '.join(sorted(lacking)) or 'model'}")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path / ABOUT} is not the description of a model ({error}); {FIX}") from error
    if hash_file(path / MODEL) != about["sha256"]:
        raise ValueError(f"{path / MODEL} has other bytes than {ABOUT} says; {FIX}")
    found: dict[str, Any] = about
    return found


def read_published_config(path: Path) -> Config:
    """Return the configuration of the model: its `model` knobs, and how its images are read; the rest are defaults."""
    about = read_about(path)
    knobs = {f"model.{name}": value for name, value in (LATER | about["model"]).items()}
    knobs |= {knob: about[name] for name, knob in KNOBS.items()}
    try:
        return change(Config(), to_flags(knobs))
    except ValueError as error:
        raise ValueError(f"{path / ABOUT}: {error}; it is damaged, or of a later version of this program") from error


def build_published(path: Path, config: Config) -> ReIDModel:
    """Return the model with its weights. Its classifier, which is not published, is of one identity."""
    try:
        model = ReIDModel(1, config.model.without_weights(), config.data.image_size)
        state = load_file(path / MODEL)
        state["classifier.weight"] = model.classifier.weight.detach()
        model.load_state_dict(state)
    except Exception as error:  # safetensors and torch have many ways to say that a file is another
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path / MODEL} does not hold the model that {ABOUT} describes ({reason}); {FIX}") from error
    return model
