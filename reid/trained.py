"""A training run's checkpoint as models to evaluate: the trained one, and baselines beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reid import checkpoint
from reid.model import ColourHistogram, ReIDModel

TRAINED, UNTRAINED, HISTOGRAM = "trained", "untrained encoder", "colour histogram"
FOLDER = "checkpoints"


def find_run(run: str, name: str) -> tuple[Path, Path]:
    """The run's folder and the checkpoint. name: newest, best, one of the run's checkpoints, or a path.

    With a path the run may be left out; it is then the folder that holds the checkpoint's checkpoints/.
    """
    if (Path(name) / "state.json").is_file():
        found = Path(name)
        return Path(run) if run else found.resolve().parent.parent, found
    if not run:
        raise ValueError(f"--checkpoint={name} is no checkpoint's folder; give --run with its name, or its path")
    folder = Path(run)
    if not folder.is_dir():
        raise ValueError(f"--run={run}: no such folder; give that of a training run, e.g. runs/quickstart")
    saved = checkpoint.find(folder / FOLDER)
    if not saved:
        raise ValueError(f"{folder / FOLDER} holds no checkpoint yet; train the run first")
    wanted = checkpoint.read_state(saved[0])["best_name"] if name == "best" else name
    named = [path for path in saved if wanted in (path.name, "newest")]
    if not named:
        raise ValueError(f"--checkpoint={name}: {folder / FOLDER} holds {', '.join(path.name for path in saved)}")
    return folder, named[0]


def build_models(found: Path, knobs: Mapping[str, Any], baselines: Sequence[str], seed: int) -> dict[str, nn.Module]:
    """The trained model and the baselines asked for, by their row's name. knobs: the run's `model` config.

    ValueError where the checkpoint is of another model.
    """
    state = checkpoint.read_state(found)["describes"]
    saved = state.get("model", {})
    for name in sorted(saved.keys() & knobs.keys() - {"weights"}):
        if saved[name] != knobs[name]:
            raise ValueError(
                f"{found} holds another model: its {name} is {saved[name]!r}, the run's config.yaml says "
                f"{knobs[name]!r}; give the run that it belongs to"
            )
    trained = ReIDModel(state["classes"], **{**knobs, "weights": "none"})
    checkpoint.load_weights(found, trained)
    models: dict[str, nn.Module] = {TRAINED: trained}
    if "untrained" in baselines:
        torch.manual_seed(seed)
        models[UNTRAINED] = ReIDModel(state["classes"], **knobs)
    if "histogram" in baselines:
        models[HISTOGRAM] = ColourHistogram()
    return models
