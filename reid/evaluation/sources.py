"""What is evaluated: the checkpoint of a run on datasets, or the feature files of another system."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from reid.config import EvaluateConfig, TrackConfig, to_dict
from reid.data.eval_loader import kept_places, read_named_images
from reid.data.images import Pixels
from reid.data.joined import label_datasets
from reid.data.manifest import Manifest, load_manifest
from reid.data.normalization import describe_pixels
from reid.data.storage import is_remote
from reid.distributed import check_precision
from reid.evaluation.about import describe
from reid.evaluation.dataset_report import DatasetReport, Evaluation
from reid.evaluation.evaluator import add_thresholds, extract, rank_protocols
from reid.evaluation.external_features import ExternalFeatures, check_finite, read_features, read_image
from reid.evaluation.training_curves import read_curves
from reid.files import check_writable, is_inside, make_folder
from reid.metrics.features import JUNK
from reid.model.features import FLIP_TEST
from reid.model.hub import is_published
from reid.precision import AUTOCAST_DTYPES
from reid.runs.folder import RunFolder
from reid.runs.models import TRAINED, build_models, find_run, read_config, read_origin

if TYPE_CHECKING:
    from accelerate import Accelerator

SHOWN_HEIGHT = 128  # least height of images in rank lists; small encoders use fewer pixels


class Source(ABC):
    """What an evaluation is about.

    out: the folder of the reports.
    folder: of the files of the W&B run that logs the evaluation.
    name, track: its name, and its knobs.
    epoch, step: of the training, at which the evaluation is logged; None if unknown.
    is_joint: whether the datasets are the several ones of the training; W&B then gets the means over them, too.
    """

    options: EvaluateConfig
    out: Path
    folder: Path
    name: str
    track: TrackConfig
    epoch: int | None = None
    step: int | None = None
    is_joint: bool = False

    @abstractmethod
    def evaluate(self, accelerator: Accelerator) -> Iterator[tuple[DatasetReport, dict[str, Evaluation]]]:
        """Evaluate all models on each dataset. The model that the report is about is the first."""

    def prefix_of(self, report: DatasetReport) -> str:
        """Return how W&B's names of a dataset's metrics begin."""
        return "eval"

    def tracked_config(self) -> dict[str, Any]:
        """Return what the config of the W&B run says about the source."""
        return {}


class RunSource(Source):
    """A run's checkpoint and baselines, on one dataset or several."""

    def __init__(self, options: EvaluateConfig) -> None:
        self.options = options
        run, self.checkpoint = find_run(options.run, options.checkpoint)
        if is_published(self.checkpoint):
            if lacking := [name for name in ("data", "out") if not getattr(options, name)]:
                raise ValueError(
                    f"--{lacking[0]} is missing: {options.run or options.checkpoint} is no folder of a run"
                )
            run = RunFolder(Path(options.out))
        self.folder, self.config = run.path, read_config(run, self.checkpoint)
        self.out = Path(options.out or run.reports)
        if os.environ.get("RANK", "0") == "0":  # ranks that check at once would remove each other's folder
            check_writable(self.out, "--out")
        self.name, self.track = self.config.name, self.config.track
        self.origin = read_origin(self.checkpoint)
        self.epoch, self.step = self.origin.epoch, self.origin.step
        self.manifests = load_manifests(options.data or list_testable(self.config.data.roots))
        self.models = build_models(self.checkpoint, self.config, options.baselines)
        fingerprints = {manifest.fingerprint for manifest in self.manifests.values()}
        trained_on = self.origin.data
        self.is_joint = len(trained_on) > 1 and (not options.data or fingerprints == set(trained_on))

    def evaluate(self, accelerator: Accelerator) -> Iterator[tuple[DatasetReport, dict[str, Evaluation]]]:
        check_precision(accelerator, self.options.precision)
        make_folder(self.out)
        for root, manifest in self.manifests.items():
            rows = {
                self._label(name): self._evaluate(model.to(accelerator.device), root, manifest, accelerator.device)
                for name, model in self.models.items()
            }
            trained = next(iter(rows))
            rows[trained] = add_thresholds(rows[trained], self.options)
            yield self._begin_report(root, manifest, rows[trained]), rows | self._cut(rows[trained])

    def prefix_of(self, report: DatasetReport) -> str:
        """Return the prefix of the evaluations during training.

        Data that the run was not trained on has its own name, as has each of several datasets of a training.
        """
        if self.origin.data == [report.about.data_fingerprint]:
            return "eval"
        labels = label_datasets([*self.manifests.values()])
        by_fingerprint = {m.fingerprint: label for m, label in zip(self.manifests.values(), labels, strict=True)}
        return f"eval/{by_fingerprint[report.about.data_fingerprint]}"

    def tracked_config(self) -> dict[str, Any]:
        return {"train": to_dict(self.config), "checkpoint": self.checkpoint.name}

    def _cut(self, trained: Evaluation) -> dict[str, Evaluation]:
        """Evaluate the first numbers of the trained model's features, at each length that they were trained for."""
        return {
            self._label(f"{TRAINED}, first {length}"): rank_protocols(
                trained.query.cut(length), trained.gallery.cut(length), self.options
            )
            for length in self.config.model.nested
        }

    def _label(self, name: str) -> str:
        return f"{name} + {FLIP_TEST}" if self.options.flip else name

    def _evaluate(self, model: nn.Module, root: str, manifest: Manifest, device: torch.device) -> Evaluation:
        """Extract the features of query and gallery once, for all protocols."""
        splits = []
        for split in ("query", "gallery"):
            features = extract(
                model, root, manifest, split, Pixels.from_config(self.config.data), batch_size=self.options.batch_size,
                workers=self.options.workers, device=device, dtype=AUTOCAST_DTYPES[self.options.precision],
                flip=self.options.flip,
            )  # fmt: skip
            check_finite(features, f"{root}: {split}", partial(name_image, manifest, split))
            splits.append(features)
        return rank_protocols(splits[0], splits[1], self.options)

    def _begin_report(self, root: str, manifest: Manifest, trained: Evaluation) -> DatasetReport:
        config = self.config
        about = describe(
            manifest.dataset or "data", str(self.checkpoint), manifest.fingerprint, trained.query, trained.gallery,
            describe_pixels(config.data), self.options.flip, root if is_remote(root) else str(Path(root).resolve()),
        )  # fmt: skip
        pixels = Pixels.from_config(config.data, scale=max(1, round(SHOWN_HEIGHT / config.data.height)))

        def read_named(split: str, rows: Sequence[int]) -> Sequence[tuple[np.ndarray, str]]:
            return read_named_images(root, manifest, split, kept_places(manifest, split)[list(rows)].tolist(), pixels)

        facts = {
            "run": self.options.run if is_published(self.checkpoint) else str(self.folder),
            "checkpoint": self.checkpoint.name,
            "data": f"{root} ({manifest.dataset}, fingerprint {manifest.fingerprint[:12]})",
            "encoder": f"{config.model.encoder}, {config.data.height}x{config.data.width} pixels",
            **({"weights": f"average over steps, optim.ema = {config.optim.ema}"} if config.optim.ema else {}),
        }
        if self.options.flip:
            facts[FLIP_TEST] = "features are means of those of an image and of its mirror image"
        broken = f"{len(manifest.skipped)} broken images were left out when the shards were built"
        return DatasetReport(
            self.out, about, facts, read_named, model=self.origin.weights,
            curves=read_curves(RunFolder(self.folder).metrics, config.loss.weights),
            notes=self.list_notes(manifest), warnings=[broken] if manifest.skipped else [],
        )  # fmt: skip

    def list_notes(self, manifest: Manifest) -> list[str]:
        """Return a note if the model was not trained on this dataset."""
        trained_on = self.origin.data
        if not trained_on or manifest.fingerprint in trained_on:
            return []
        return [
            f"Across domains: the checkpoint was trained on other data (fingerprint "
            f"{', '.join(each[:12] for each in trained_on)}) than it is evaluated on ({manifest.fingerprint[:12]})."
        ]


def list_testable(roots: Sequence[str]) -> Sequence[str]:
    """Return those of several datasets of a training that have query and gallery. Others are named on stderr."""
    without = [root for root in roots if not load_manifest(root).has_test_set]
    if not without or len(without) == len(roots):
        return roots
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {', '.join(without)}: no query and gallery, not evaluated", file=sys.stderr, flush=True)
    return [root for root in roots if root not in without]


def load_manifests(roots: Sequence[str]) -> dict[str, Manifest]:
    """Load manifests by root. Raises ValueError if one lists no query or gallery, or if two are of the same data."""
    manifests: dict[str, Manifest] = {}
    for root in roots:
        manifest = load_manifest(root)
        for split in ("query", "gallery"):
            if split not in manifest.splits or (manifest.split(split).pids == JUNK).all():
                raise ValueError(f"{root}: the {split} split holds no image; give --data shards with query and gallery")
        if same := [other for other, known in manifests.items() if known.fingerprint == manifest.fingerprint]:
            raise ValueError(f"--data: {root} holds the same data as {same[0]}; give each dataset once")
        manifests[root] = manifest
    return manifests


def name_image(manifest: Manifest, split: str, row: int) -> str:
    """Return where the image of a row of a split's features is stored, as text for errors."""
    part = manifest.split(split)
    place = int(kept_places(manifest, split)[row])
    identity = int(np.searchsorted(np.cumsum(part.images), place, side="right"))
    nth = place - int(part.images[:identity].sum()) + 1
    return (
        f"image {nth} of identity {part.names[identity]} (pid {part.pids[identity]}, row {row}) in "
        f"{part.shards[part.shard[identity]].name}"
    )


class FeatureSource(Source):
    """Features of another system: no model, no training, and images only if the files have their paths."""

    step = 0

    def __init__(self, options: EvaluateConfig) -> None:
        self.options, self.out = options, Path(options.out)
        self.folder, self.name, self.track = self.out, self.out.resolve().name, TrackConfig()
        make_folder(self.out)
        self.query, self.gallery = map(read_features, options.features)

    def evaluate(self, accelerator: Accelerator) -> Iterator[tuple[DatasetReport, dict[str, Evaluation]]]:
        query, gallery = self.query, self.gallery
        has_paths = bool(query.paths and gallery.paths)

        def read_named(split: str, rows: Sequence[int]) -> Sequence[tuple[np.ndarray | None, str]]:
            files = query if split == "query" else gallery
            if not has_paths:
                return [(None, "")] * len(rows)
            names = [files.paths[row] for row in rows]
            return list(zip(self._read_images(files, rows, report.warnings), names, strict=True))

        facts = {
            "query": str(query.source),
            "gallery": str(gallery.source),
            "features": f"{query.features.embeddings.shape[1]} dimensions",
        }
        about = describe("", f"{query.source}, {gallery.source}", "", query.features, gallery.features)
        report = DatasetReport(self.out, about, facts, read_named)
        if not has_paths:
            report.no_images = "As text: the feature files name no images: they have no paths."
        number = int((gallery.features.pids == 0).sum())
        if gallery.features.distractors is None and number:
            report.warnings.append(
                f"{number:,} gallery images have pid 0 and the file has no distractors key: they count as one identity"
            )
        moved = [split.features.to(accelerator.device) for split in (query, gallery)]
        evaluation = rank_protocols(moved[0], moved[1], self.options)
        yield report, {"features": add_thresholds(evaluation, self.options)}

    def _read_images(
        self, files: ExternalFeatures, rows: Sequence[int], warnings: list[str]
    ) -> list[np.ndarray | None]:
        """Read pictures inside --images or the file's folder; of others, which anyone may have listed, warn."""
        folder = Path(self.options.images or files.source.parent)
        paths = [folder / files.paths[row] for row in rows]
        inside = [is_inside(path, folder) for path in paths]
        if not all(inside):
            warnings.append(f"pictures outside of {folder} are not shown; give --images a folder that holds them all")
        return [read_image(path) if shown else None for path, shown in zip(paths, inside, strict=True)]
