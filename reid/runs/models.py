"""A run's checkpoint as models to evaluate: the trained model, and baselines."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reid.config import Config, load
from reid.config.schema import LATER, NOT_SAVED
from reid.data.normalization import IMAGENET, Normalization, describe_pixels
from reid.model.hub import is_published, resolve
from reid.model.network import ReIDModel
from reid.model.saved import MODEL, check, find_undamaged, is_checkpoint
from reid.runs import checkpoint
from reid.runs.folder import RunFolder
from reid.runs.published import build_published, read_about, read_published_config


class ColourHistogram(nn.Module):
    """A baseline without learning: joint RGB histograms of horizontal stripes of the middle of the image.

    Takes normalized images (B, 3, H, W), as the model does, and gives (B, stripes * product of bins) square roots of
    shares. Sides are cut off because there the background outweighs the person.
    """

    def __init__(
        self,
        stripes: int = 6,
        bins: tuple[int, int, int] = (3, 8, 8),
        side: float = 0.22,
        normalization: Normalization = IMAGENET,
    ) -> None:
        super().__init__()
        self.normalization = normalization
        self.stripes, self.bins, self.side = stripes, bins, side

    def forward(self, images: Tensor) -> Tensor:
        cut = round(self.side * images.shape[3])
        colours = self.normalization.invert(images[..., cut : images.shape[3] - cut]).long()
        red, green, blue = (colours[:, i] * self.bins[i] // 256 for i in range(3))
        joint = (red * self.bins[1] + green) * self.bins[2] + blue
        num_bins = math.prod(self.bins)
        parts = [stripe.flatten(1) for stripe in joint.tensor_split(self.stripes, dim=1)]
        counts = [
            torch.zeros(len(part), num_bins, device=part.device).scatter_add(1, part, torch.ones_like(part).float())
            for part in parts
        ]
        return torch.cat([(count / count.sum(dim=1, keepdim=True)).sqrt() for count in counts], dim=1)


TRAINED, UNTRAINED, HISTOGRAM = "trained", "untrained encoder", "colour histogram"


def build_models(found: Path, run: Config, baselines: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Build the trained model of a checkpoint and the requested baselines, by the names of their rows.

    Raises ValueError if the checkpoint holds another model than the run's configuration describes.
    """
    trained = build_published(found, run) if is_published(found) else _build_trained(found, run)
    models: dict[str, nn.Module] = {TRAINED: trained}
    if "untrained" in baselines and is_published(found):
        raise ValueError("--baselines untrained: a published model does not say what its training started from")
    if "untrained" in baselines:
        torch.manual_seed(run.seed)
        models[UNTRAINED] = ReIDModel(len(trained.classifier.weight), run.model, run.data.image_size)
    if "histogram" in baselines:
        models[HISTOGRAM] = ColourHistogram(normalization=Normalization.from_config(run.data))
    return models


def _build_trained(found: Path, run: Config) -> ReIDModel:
    """Build the model of a checkpoint. Raises ValueError if it is not the one that the configuration describes."""
    knobs, size = asdict(run.model), run.data.image_size
    state = checkpoint.read_facts(found)
    saved = LATER | state.get("model", {})
    for name in sorted(saved.keys() & knobs.keys() - set(NOT_SAVED)):
        if saved[name] != knobs[name]:
            raise ValueError(
                f"{found} holds another model: its {name} is {saved[name]!r}, the run's config.yaml says "
                f"{knobs[name]!r}; give the run that it belongs to"
            )
    # Neither the initial weights nor what was frozen in training changes the features of a trained model.
    if state["pixels"] != (pixels := describe_pixels(run.data)):
        raise ValueError(
            f"{found} holds another model: it was trained with {state['pixels']}, the run's config.yaml says {pixels}; "
            f"give the run that it belongs to"
        )
    trained = ReIDModel(state["classes"], run.model.without_weights(), size)
    checkpoint.load_weights(found, trained)
    return trained


class Origin(NamedTuple):
    """What a model is from.

    weights: sha256 of its checkpoint's file of weights.
    data: fingerprints of its shards; empty if unknown.
    epoch: of its last optimizer step, counted from 1; None if unknown.
    step: the same, counted from 0 over all epochs; None if an earlier version did not note it.
    """

    weights: str
    data: list[str]
    epoch: int | None = None
    step: int | None = None


def read_origin(found: Path) -> Origin:
    """Return the origin of a checkpoint or a published model."""
    if is_published(found):
        about = read_about(found)
        return Origin(about["weights"], about["data"])
    state = checkpoint.read_state(found)
    data = state["describes"].get("data") or []
    epoch, step, steps = state["epoch"], state["step"], state.get("steps_per_epoch", 0)
    return Origin(
        state["files"][MODEL],
        [data] if isinstance(data, str) else data,
        epoch + (step > 0),
        epoch * steps + step - 1 if steps else None,
    )


def read_config(folder: RunFolder, found: Path) -> Config:
    """Return a run's configuration, with what the version that trained its checkpoint meant by it."""
    if is_published(found):
        return read_published_config(found)
    config = load(folder.config)
    if "pixels" not in checkpoint.read_state(found)["describes"]:
        facts = checkpoint.read_facts(found).get("model", {})
        config.model.last_stride = facts.get("last_stride", config.model.last_stride)
    return config


def find_run(run: str, name: str) -> tuple[RunFolder, Path]:
    """Return a run's folder and one of its checkpoints, of which the model is undamaged.

    A published model is both.

    Args:
        run: the run's folder, or `hf:org/name` or the folder of a published model; may be empty if `name` is a path.
        name: newest, best, the name of one of the run's checkpoints, or a checkpoint's path. The newest is the newest
            that a training run would resume from; damaged ones are named in a warning on stderr.

    Raises:
        ValueError: there is no such run or checkpoint, or it is damaged.
    """
    run, name = resolve(run), resolve(name)
    if is_published(published := Path(run or name)):
        if run and name != "newest":
            raise ValueError(f"--checkpoint={name}: {run} is one model, not a run; leave it out")
        return RunFolder(published), published
    if is_checkpoint(Path(name)):
        found = Path(name)
        check(found, [MODEL])
        return RunFolder(Path(run) if run else found.resolve().parent.parent), found
    if not run:
        raise ValueError(f"--checkpoint={name} is not a checkpoint's folder; give --run with its name, or its path")
    folder = RunFolder(Path(run))
    if not folder.path.is_dir():
        raise ValueError(f"{run}: no such folder; give that of a training run, e.g. runs/quickstart")
    if name in ("newest", "best"):
        newest, damaged = find_undamaged(folder.checkpoints)
        for text in damaged if newest and os.environ.get("RANK", "0") == "0" else []:
            print(f"warning: {text}; {newest} is used instead", file=sys.stderr, flush=True)
        if name == "newest" and newest:
            return folder, newest
        wanted = checkpoint.read_state(newest)["best_name"] if newest else ""
    else:
        wanted = name
    saved = [path.name for path in checkpoint.find(folder.checkpoints)]
    if not saved:
        raise ValueError(f"{folder.checkpoints} holds no checkpoint yet; train the run first")
    if wanted not in saved:
        raise ValueError(f"--checkpoint={name}: {folder.checkpoints} holds {', '.join(saved)}")
    check(folder.checkpoints / wanted, [MODEL])
    return folder, folder.checkpoints / wanted
