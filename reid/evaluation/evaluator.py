"""Extraction and ranking of features over all ranks, and the two sources of features: a run, and feature files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from reid.config import EvaluateConfig
from reid.data.eval_loader import EvalLoader, read_images
from reid.data.images import Pixels
from reid.data.manifest import Manifest, load_manifest
from reid.data.normalization import describe_pixels
from reid.distributed import check_precision, gather_objects, gather_padded, gather_sizes, rank, world_size
from reid.evaluation.dataset_report import DatasetReport, Evaluation
from reid.evaluation.external_features import ExternalFeatures, check_finite, read_features, read_image
from reid.evaluation.verification import identify, verify
from reid.files import check_writable, is_inside, make_folder
from reid.metrics.features import JUNK, UNKNOWN, Features
from reid.metrics.protocols import PROTOCOLS
from reid.metrics.rerank import Ranks, Reranked
from reid.metrics.retrieval import Result, evaluate, evaluate_search, merge
from reid.model.features import FLIP_TEST, compute_features
from reid.model.hub import is_published
from reid.precision import AUTOCAST_DTYPES, forward_pass
from reid.runs.folder import RunFolder
from reid.runs.models import TRAINED, build_models, find_run, read_config, read_origin

if TYPE_CHECKING:
    from accelerate import Accelerator

SHOWN_HEIGHT = 128  # least height of images in rank lists; small encoders use fewer pixels


@torch.no_grad()
def extract(
    model: nn.Module,
    root: str | Path,
    manifest: Manifest,
    split: str,
    pixels: Pixels,
    *,
    batch_size: int,
    workers: int | str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    rows: np.ndarray | None = None,
    flip: bool = False,
) -> Features:
    """Extract the features (after the neck, not normalized) of a split; ranks share the shards.

    Args:
        model: the unwrapped module, because a DDP wrapper would wait for the other ranks.
        dtype: autocast of the forward pass, if not float32.
        rows: identities to extract; None = all.
        flip: see `compute_features`.

    Returns:
        Float32 features of every image but junk, each exactly once, in storage order; equal on every rank.
    """
    part = manifest.split(split)
    loader = EvalLoader(root, part, list(range(len(part.shards)))[rank() :: world_size()], pixels, batch_size, rows)
    was_training = model.training
    model.eval()
    embeddings, labels = [], [torch.empty(0, 3, dtype=torch.int64)]
    for batch in loader.batches(workers):
        with forward_pass(device, dtype):
            images = pixels.normalization.apply(batch.images.to(device, non_blocking=True))
            embeddings.append(compute_features(model, images, flip))
        labels.append(torch.stack([batch.index, batch.pids, batch.camids], dim=1))
    model.train(was_training)
    width = max(gather_sizes(embeddings[0].shape[1] if embeddings else 0, device))
    local = torch.cat(embeddings) if embeddings else torch.empty(0, width, device=device)
    sizes = gather_sizes(len(local), device)
    all_labels, features = gather_padded(torch.cat(labels).to(device), sizes), gather_padded(local, sizes)
    order = torch.argsort(all_labels[:, 0])
    index, pids, camids = all_labels[order].T.contiguous()
    expected = torch.from_numpy(np.flatnonzero(np.repeat(loader.wanted, part.images)))
    if not torch.equal(index.cpu(), expected):
        raise ValueError(f"{root}: {len(index)} {split} images were read, the manifest lists {len(expected)}")
    distractors = None if manifest.distractor_pid is None else pids == manifest.distractor_pid
    return Features(features[order], pids, camids, distractors)


def evaluate_over_ranks(
    query: Features, gallery: Features, protocol: str, metric: str = "cosine", max_rank: int = 50
) -> Result:
    """Do `evaluate`; each rank ranks a slice of the queries, and the result is equal on every rank."""
    part = query.take(torch.arange(len(query)).tensor_split(world_size())[rank()])
    return merge(gather_objects(evaluate(part, gallery, protocol, metric, max_rank, partial=True)))


def gather_tensors(local: Tensor) -> Tensor:
    """Concatenate a tensor (N, ...) of every rank in rank order; N may differ between ranks."""
    return gather_padded(local, gather_sizes(len(local), local.device))


def rank_protocols(query: Features, gallery: Features, options: EvaluateConfig) -> Evaluation:
    """Evaluate the protocols of the options, and re-rank. Ranks share the work.

    A protocol without a possible match is left out with a warning. Raises ValueError if that leaves none.
    """
    results: dict[str, Result] = {}
    errors: dict[str, ValueError] = {}
    max_rank = max(options.max_rank, *options.ranks)
    for name in options.protocols:
        try:
            results[name] = evaluate_over_ranks(query, gallery, name, options.metric, max_rank)
        except ValueError as error:
            errors[name] = error
    if not results:
        raise next(iter(errors.values()))
    can_rerank = [row for row in PROTOCOLS.values() if row.can_rerank and row.name in options.protocols]
    knobs = options.metric, options.rerank_k1, options.rerank_k2, options.rerank_lambda
    for row in can_rerank if options.rerank else []:
        try:
            search = Reranked(query, gallery, row.name, *knobs, Ranks(rank(), world_size(), gather_tensors))
            results[row.reranked_name] = merge(gather_objects(evaluate_search(search, max_rank)))
        except ValueError as error:
            errors[row.reranked_name] = error
    return Evaluation(query, gallery, results, [f"{name} is left out: {error}" for name, error in errors.items()])


def add_thresholds(evaluation: Evaluation, options: EvaluateConfig) -> Evaluation:
    """Measure the thresholds that the options ask for; one that cannot be measured is a warning."""
    query, gallery = evaluation.query, evaluation.gallery
    measures: dict[str, Callable[[], dict[str, Any]]] = {}
    if options.verification:
        measures["verification"] = lambda: verify(query, gallery)
    if (share := options.open_set) is not None:
        measures["open_set"] = lambda: identify(query, gallery, share)
    thresholds, warnings = {}, list(evaluation.warnings)
    for name, measure in measures.items():
        try:
            thresholds[name] = measure()
        except ValueError as error:
            warnings.append(f"{name} is left out: {error}")
    return replace(evaluation, thresholds=thresholds, warnings=warnings)


class RunSource:
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
        self.manifests = load_manifests(options.data or list_testable(self.config.data.roots))
        self.models = build_models(self.checkpoint, self.config, options.baselines)

    def evaluate(self, accelerator: Accelerator) -> Iterator[tuple[DatasetReport, dict[str, Evaluation]]]:
        """Evaluate all models on each dataset. The trained model is the first."""
        check_precision(accelerator, self.options.precision)
        make_folder(self.out)
        for root, manifest in self.manifests.items():
            rows = {
                self._label(name): self._evaluate(model.to(accelerator.device), root, manifest, accelerator.device)
                for name, model in self.models.items()
            }
            trained = next(iter(rows))
            rows[trained] = add_thresholds(rows[trained], self.options)
            yield self._describe(root, manifest), rows | self._cut(rows[trained])

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

    def _describe(self, root: str, manifest: Manifest) -> DatasetReport:
        config = self.config
        pixels = Pixels.from_config(config.data, scale=max(1, round(SHOWN_HEIGHT / config.data.height)))

        def read(split: str, rows: Sequence[int]) -> list[np.ndarray]:
            return read_images(root, manifest, split, kept_places(manifest, split)[list(rows)].tolist(), pixels)

        facts = {
            "run": self.options.run if is_published(self.checkpoint) else str(self.folder),
            "checkpoint": self.checkpoint.name,
            "data": f"{root} ({manifest.dataset}, fingerprint {manifest.fingerprint[:12]})",
            "encoder": f"{config.model.encoder}, {config.data.height}x{config.data.width} pixels",
            **({"weights": f"average over steps, optim.ema = {config.optim.ema}"} if config.optim.ema else {}),
        }
        if self.options.flip:
            facts[FLIP_TEST] = "features are means of those of an image and of its mirror image"
        name = manifest.dataset or "data"
        origin = read_origin(self.checkpoint)
        report = DatasetReport(
            self.out, name, str(self.checkpoint), facts, read, manifest.fingerprint, describe_pixels(config.data),
            self.options.flip, origin.weights,
        )  # fmt: skip
        if origin.data and manifest.fingerprint not in origin.data:
            report.notes.append(
                f"Across domains: the checkpoint was trained on other data (fingerprint "
                f"{', '.join(each[:12] for each in origin.data)}) than it is evaluated on "
                f"({manifest.fingerprint[:12]})."
            )
        if manifest.skipped:
            report.warnings.append(f"{len(manifest.skipped)} broken images were left out when the shards were built")
        return report


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
            if not (manifest.split(split).pids != JUNK).any():
                raise ValueError(f"{root}: the {split} split holds no image; there is nothing to evaluate")
        if same := [other for other, known in manifests.items() if known.fingerprint == manifest.fingerprint]:
            raise ValueError(f"--data: {root} holds the same data as {same[0]}; give each dataset once")
        manifests[root] = manifest
    return manifests


def name_image(manifest: Manifest, split: str, row: int) -> str:
    """Say where the image of a row of a split's features is stored, for a person who looks for it."""
    part = manifest.split(split)
    place = int(kept_places(manifest, split)[row])
    identity = int(np.searchsorted(np.cumsum(part.images), place, side="right"))
    nth = place - int(part.images[:identity].sum()) + 1
    return (
        f"image {nth} of identity {part.names[identity]} (pid {part.pids[identity]}, row {row}) in "
        f"{part.shards[part.shard[identity]].name}"
    )


def kept_places(manifest: Manifest, split: str) -> np.ndarray:
    """Return (N,) the places in storage order of the images that have features: all but junk."""
    part = manifest.split(split)
    return np.flatnonzero(np.repeat(part.pids != JUNK, part.images))


class FeatureSource:
    """Features of another system: no model, and images only if the files have their paths."""

    def __init__(self, options: EvaluateConfig) -> None:
        self.options, self.out = options, Path(options.out)
        make_folder(self.out)
        self.query, self.gallery = map(read_features, options.features)

    def evaluate(self, accelerator: Accelerator) -> Iterator[tuple[DatasetReport, dict[str, Evaluation]]]:
        """Evaluate the one dataset."""
        query, gallery = self.query, self.gallery
        has_paths = bool(query.paths and gallery.paths)

        def read(split: str, rows: Sequence[int]) -> list[np.ndarray | None]:
            files = query if split == "query" else gallery
            return self._read_images(files, rows, report.warnings) if has_paths else [None] * len(rows)

        facts = {
            "query": str(query.source),
            "gallery": str(gallery.source),
            "features": f"{query.features.embeddings.shape[1]} dimensions",
        }
        report = DatasetReport(self.out, "", f"{query.source}, {gallery.source}", facts, read)
        if not has_paths:
            report.no_images = "As text: the feature files name no images: they have no paths."
        if not all((split.features.camids != UNKNOWN).any() for split in (query, gallery)):
            report.notes.append(
                "No camera ids: images of the query's identity by its own camera are not removed. Metrics are then "
                "higher than published ones, which remove them."
            )
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
