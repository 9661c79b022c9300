"""Evaluation during training: on the test set, or on training identities that are held out for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import nn

from reid.config import DataConfig
from reid.data.images import Pixels
from reid.data.joined import Dataset
from reid.data.manifest import JUNK_PID, Manifest, Split
from reid.distributed import copy_buffers_from_rank_0
from reid.evaluation.evaluator import evaluate_over_ranks, extract
from reid.metrics import Features, Result
from reid.metrics.features import UNKNOWN

HOLD_OUT_SEED = 0  # the same identities are held out in every run on the same data, whatever the run's seed


@dataclass(frozen=True)
class Validation:
    """Evaluates a model on one dataset during training, on all ranks.

    held_out (N,) bool: identities of the train split that are not trained on, to choose a model by. With any, only the
    last evaluation uses the test set.
    """

    data: DataConfig
    dataset: Dataset
    held_out: np.ndarray
    batch_size: int
    device: torch.device

    @property
    def manifest(self) -> Manifest:
        return self.dataset.manifest

    @property
    def is_possible(self) -> bool:
        return bool(self.held_out.any()) or self.manifest.has_test_set

    def evaluate(self, model: nn.Module, last: bool) -> dict[str, float]:
        """Return mAP, mINP and rank-1 by `<protocol>/<metric>`. model: unwrapped, since DDP's wrapper would hang."""
        scores: dict[str, float] = {}
        if self.held_out.any():
            scores |= self.evaluate_held_out(model)
        if (last or not scores) and self.manifest.has_test_set:
            scores |= self.evaluate_test(model)
        return scores

    def warn_of_cameras(self, last: bool) -> str | None:
        """Return a warning if evaluated identities have images without a camera, to which no camera rule applies."""
        missing = []
        parts = [("held-out", "train", self.held_out)] if self.held_out.any() else []
        if (last or not parts) and self.manifest.has_test_set:
            parts += [(name, name, self._have_matches(name)) for name in ("query", "gallery")]
        for name, split, rows in parts:
            cameras = [self.manifest.split(split).cameras[row] for row in np.flatnonzero(rows)]
            if unknown := sum(UNKNOWN in seen for seen in cameras):
                missing.append(f"{unknown} of {len(cameras)} {name} identities")
        if not missing:
            return None
        return f"warning: {' and '.join(missing)} have images without a camera; no same-camera rule was applied to them"

    def _have_matches(self, split: str) -> np.ndarray:
        """Return (N,) bool: identities that are neither junk nor distractors."""
        others = [pid for pid in (JUNK_PID, self.manifest.distractor_pid) if pid is not None]
        return ~np.isin(self.manifest.split(split).pids, others)

    def evaluate_test(self, model: nn.Module) -> dict[str, float]:
        """Evaluate the image and centroid protocols on query and gallery."""
        query, gallery = self.extract(model, "query"), self.extract(model, "gallery")
        scores: dict[str, float] = {}
        for protocol in ("image", "centroid"):
            scores |= _scores(protocol, evaluate_over_ranks(query, gallery, protocol))
        return scores

    def evaluate_held_out(self, model: nn.Module) -> dict[str, float]:
        """Evaluate the image protocol on the identities that are held out of training."""
        query, gallery = split_queries(self.extract(model, "train", np.flatnonzero(self.held_out)))
        return _scores("val", evaluate_over_ranks(query, gallery, "image"))

    def extract_sample(self, model: nn.Module) -> None:
        """Extract one batch of the query split, if there is one: a dry run of the evaluation."""
        if "query" in self.manifest.splits:
            images = self.manifest.split("query").images
            self.extract(model, "query", np.flatnonzero(np.cumsum(images) <= max(self.batch_size, images[0])))

    def extract(self, model: nn.Module, split: str, rows: np.ndarray | None = None) -> Features:
        copy_buffers_from_rank_0(model)
        return extract(
            model, self.dataset.root, self.manifest, split, Pixels.from_config(self.data), batch_size=self.batch_size,
            workers=self.data.workers, device=self.device, rows=rows,
        )  # fmt: skip


class Validations:
    """Evaluates a model on each dataset of a training that can be evaluated.

    Args:
        data: how images are read.
        datasets: of the training.
        held_out: for each the identities (N,) of its train split that are held out.
        batch_size: images per forward pass.
        enabled: whether evaluations are made.
    """

    def __init__(
        self, data: DataConfig, datasets: Sequence[Dataset], held_out: Sequence[np.ndarray], batch_size: int,
        device: torch.device, enabled: bool,
    ) -> None:  # fmt: skip
        self.enabled = enabled
        self.all = [
            Validation(data, dataset, rows, batch_size, device)
            for dataset, rows in zip(datasets, held_out, strict=True)
        ]
        self.possible = [each for each in self.all if each.is_possible]

    @property
    def is_possible(self) -> bool:
        return self.enabled and bool(self.possible)

    @property
    def metric(self) -> str:
        """The metric that chooses the best checkpoint."""
        return "val/mAP" if any(each.held_out.any() for each in self.all) else "image/mAP"

    def evaluate(self, model: nn.Module, last: bool) -> dict[str, float]:
        """Return what `Validation` does; with several datasets, of each as `<dataset>/<name>`, and their means."""
        found = {each.dataset.label: each.evaluate(model, last) for each in self.possible}
        if len(self.all) == 1:
            return next(iter(found.values()))
        names = dict.fromkeys(name for scores in found.values() for name in scores)
        means = {name: fmean(scores[name] for scores in found.values() if name in scores) for name in names}
        each = {f"{label}/{name}": value for label, scores in found.items() for name, value in scores.items()}
        return means | each

    def warn_of_cameras(self, last: bool) -> str | None:
        """Return the warnings of `Validation`, with the datasets if there are several."""
        found = {each.dataset.label: each.warn_of_cameras(last) for each in self.possible}
        if len(self.all) == 1:
            return next(iter(found.values()))
        return "\n".join(f"{label}: {text}" for label, text in found.items() if text) or None

    def extract_sample(self, model: nn.Module) -> None:
        """Extract one batch of each dataset: a dry run of the evaluation."""
        for each in self.all:
            each.extract_sample(model)


def describe_evaluation(datasets: Sequence[Dataset], has_held_out: bool) -> str:
    """Return what is evaluated during training, for the table at the start."""
    if has_held_out:
        return "held-out identities, the test set after the last epoch"
    testable = [dataset.label for dataset in datasets if dataset.manifest.has_test_set]
    if not testable:
        return "nothing: the data has no query and gallery"
    return "query against gallery" + (f" of {', '.join(testable)}, and the mean" if len(datasets) > 1 else "")


def _scores(name: str, result: Result) -> dict[str, float]:
    return {f"{name}/mAP": result.mAP, f"{name}/mINP": result.mINP, f"{name}/rank1": float(result.cmc[0])}


def hold_out(split: Split, number: int, what: str = "data.val_identities") -> np.ndarray:
    """Return `number` rows of a train split, ascending, whose identities have a match.

    Raises ValueError, which calls the number `what`, if there are too few.
    """
    several = np.array([len(set(cameras) - {-1}) > 1 or set(cameras) == {-1} for cameras in split.cameras], dtype=bool)
    eligible = np.flatnonzero(several & (split.images > 1) & (split.pids >= 0))
    if number > len(eligible) or number >= len(split.pids):
        raise ValueError(
            f"{what} = {number}: {len(eligible)} of the {len(split.pids)} train identities have images of "
            "two cameras (or several images without a camera) and can be held out; give a smaller number"
        )
    return np.sort(np.random.default_rng(HOLD_OUT_SEED).permutation(eligible)[:number])


def split_queries(features: Features) -> tuple[Features, Features]:
    """Split features of identities into query and gallery.

    The first image of each (identity, camera) is a query, except for the identity's last camera, whose images all stay
    in the gallery, so that each query has a match. Without cameras the identity's first image is the query.
    """
    pids, camids = features.pids.cpu().numpy(), features.camids.cpu().numpy()
    pairs, first = np.unique(np.stack([pids, camids], axis=1), axis=0, return_index=True)
    last_camera = np.append(pairs[1:, 0] != pairs[:-1, 0], True)
    query = torch.zeros(len(features), dtype=torch.bool)
    query[torch.from_numpy(first[~last_camera | (pairs[:, 1] == -1)])] = True
    return features.take(query.nonzero().squeeze(1)), features.take((~query).nonzero().squeeze(1))
