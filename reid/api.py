"""What `import reid` offers beside training and the Embedder: evaluation, and batches for your own training loop."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reid.config import AugmentConfig, BatchConfig, Config, DataConfig, EvaluateConfig, change, check, to_flags
from reid.data.augmentation import Augmentation
from reid.data.normalization import Normalization
from reid.data.train_loader import Batch, TrainLoader
from reid.distributed import rank, separate_accelerator, world_size
from reid.evaluation.evaluate import evaluate as evaluate_options
from reid.precision import find_device
from reid.reports.tables import Results
from reid.training.data import TrainData, load_data

SECTIONS = {"data": DataConfig, "batch": BatchConfig}  # whose knobs `open_loader` takes


@dataclass(frozen=True, repr=False)
class EvaluateResult:
    """What an evaluation found, by dataset. On other ranks than 0 it is empty.

    Attributes:
        folders: of the reports.
        metrics: of the model by protocol, as in the report's metrics.json: `metrics["market1501"]["image"]["mAP"]`.
        baselines: of other models, by their names and protocol, as in baselines.json.
    """

    folders: dict[str, Path]
    metrics: dict[str, dict[str, dict[str, Any]]]
    baselines: dict[str, Results]

    def __repr__(self) -> str:
        parts = []
        for dataset, by_protocol in self.metrics.items():
            name, metrics = next(iter(by_protocol.items()))
            parts.append(f"{dataset}: {name} mAP {metrics['mAP']:.4f}, rank-1 {metrics['cmc'][0]:.4f}")
        return f"EvaluateResult({'; '.join(parts)})"


def evaluate(run: str | os.PathLike[str] = "", **options: Any) -> EvaluateResult:
    """Evaluate a run, or features of any system, and write a report, as `reid evaluate` does.

    Started by a launcher, all processes must call it, after their last communication: it ends the process group.

        reid.evaluate("runs/mine", baselines=["untrained"])
        reid.evaluate(features=["query.npz", "gallery.npz"], out="reports/other")

    Args:
        run: folder of a training run; leave it out for features.
        options: every other flag of the program (docs/knobs.md), e.g. checkpoint, protocols, rerank, verification.

    Raises:
        ValueError: an option, the run or the features are wrong.
    """
    known = {field.name for field in fields(EvaluateConfig)} - {"run", "compare"}
    if unknown := sorted(options.keys() - known):
        hint = "; reid.evaluation.comparison.compare compares reports" if unknown == ["compare"] else ""
        raise ValueError(f"evaluate: no option {unknown[0]!r}; choose from {', '.join(sorted(known))}{hint}")
    config = change(EvaluateConfig(run=os.fspath(run)), to_flags(options))
    with separate_accelerator():
        reports = evaluate_options(config)
    metrics, baselines = {}, {}
    for folder, models in reports.items():
        (_, metrics[folder.name]), *others = models.items()
        baselines[folder.name] = dict(others)
    return EvaluateResult({folder.name: folder for folder in reports}, metrics, baselines)


class BatchLoader:
    """The training batches of a folder of shards, for a loop of your own. `open_loader` makes one.

    Each iteration is one epoch of `len(loader)` steps and yields (images, pids, camids) of this rank:
    images (B, 3, height, width) float32, augmented and normalized, on the device; pids (B,) int64 on the device, 0 to
    `num_classes` - 1; camids (B,) int64 on the device, -1 is unknown. The next iteration is the next epoch.
    It is no DataLoader: leave it out of `accelerator.prepare`, it already reads this rank's part only.

    Attributes:
        epoch: of the next iteration, from 0. Set it to continue a training.
        num_classes: identities that are trained on.
    """

    def __init__(self, config: Config, data: TrainData, device: torch.device) -> None:
        self.device, self.epoch, self.num_classes = device, 0, data.num_classes
        augmentation = Augmentation(config.augment, Normalization.from_config(config.data))
        self.loader = TrainLoader(config.data, data.joined, data.plan, augmentation, rank(), world_size())
        # The next epoch of workers that read on, and their batches.
        self._reading: tuple[int, Iterator[tuple[int, int, Batch]]] = (-1, iter(()))

    def __len__(self) -> int:
        return self.loader.plan.steps_per_epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        following, batches = self._reading
        self._reading = (-1, batches)  # until this epoch has ended: a loop may leave it
        if following != epoch:
            batches = self.loader.batches(sys.maxsize, (epoch, 0))
        for _, step, batch in islice(batches, len(self)):
            moved = batch.to(self.device, pin=True)
            images = self.loader.augmentation.apply(moved.images, moved.changes)
            if step == len(self) - 1:
                self._reading = (epoch + 1, batches)
            yield images, moved.labels, batch.camids.to(self.device, non_blocking=True)

    def __repr__(self) -> str:
        loader, plan = self.loader, self.loader.plan
        return (
            f"BatchLoader({loader.joined.where}: {self.num_classes} identities, {len(self)} steps an epoch of "
            f"{plan.identities} identities x {plan.images} images, rank {loader.rank} of {loader.world_size}, "
            f"on {self.device})"
        )


def open_loader(
    root: str | os.PathLike[str] | list[str],
    device: str | torch.device = "auto",
    seed: int = 0,
    augment: AugmentConfig | None = None,
    **knobs: Any,
) -> BatchLoader:
    """Open a folder of shards as training batches of P identities x K images.

        loader = reid.open_loader("data/market1501", identities=16, images=4, height=256, width=128)

    The batch is the global one: it is the same for any number of ranks, and each rank reads its part. Make the
    Accelerator, or the process group, first.

    Args:
        root: folder of shards (`reid shards build`) or its URL, or a list of several.
        device: auto (CUDA if there is one), or any of torch's names; in a loop with accelerate `accelerator.device`.
        seed: of batches and augmentation.
        augment: knobs of the augmentation; default: those of training. `AugmentConfig(flip=0, pad=0, erase=0)` is none.
        knobs: of the sections `data` and `batch` by their names (docs/knobs.md), with the defaults of training:
            identities, images, height, width, workers, mean, std, val_identities, on_damage, ...

    Raises:
        ValueError: no shards, a wrong knob or device, or a launcher without a process group.
    """
    sections = {field.name: f"{name}.{field.name}" for name, kind in SECTIONS.items() for field in fields(kind)}
    known = sorted(sections.keys() - {"root", "ranks"})
    if unknown := sorted(knobs.keys() - known):
        raise ValueError(f"open_loader: no knob {unknown[0]!r}; choose from {', '.join(known)}")
    config = Config(seed=seed, augment=augment or AugmentConfig())
    config = change(config, to_flags({sections[name]: value for name, value in knobs.items()}))
    config.data.root = [*map(os.fspath, root)] if isinstance(root, list) else os.fspath(root)
    promised = int(os.environ.get("WORLD_SIZE", "1"))
    if promised > world_size():  # not the reverse: a process group may be started without a launcher
        raise ValueError(
            f"open_loader: the launcher promised WORLD_SIZE = {promised} processes, and the process group has "
            f"{world_size()}; make the Accelerator, or call torch.distributed.init_process_group, before it"
        )
    check(config, world_size())
    return BatchLoader(config, load_data(config, world_size()), find_device(str(device)))
