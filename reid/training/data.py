"""The data of a training run: its datasets, the identities that are held out, and the plan of batches."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import numpy as np

from reid.config import Config, check_streams
from reid.config.schema import AUTO
from reid.data.joined import Joined
from reid.data.manifest import JUNK_PID, Manifest, Split
from reid.data.plan import Plan
from reid.data.streams import Stock, apportion
from reid.metrics.features import UNKNOWN
from reid.runs import checkpoint
from reid.runs.folder import RunFolder
from reid.training.validation import hold_out


@dataclass(frozen=True)
class TrainData:
    """The data of a run. held_out (N,) bool: identities of the train split that are held out for validation."""

    joined: Joined
    held_out: np.ndarray
    plan: Plan

    @property
    def split(self) -> Split:
        return self.joined.split

    @property
    def num_classes(self) -> int:
        return len(np.unique(self.split.pids[~self.held_out]))

    @property
    def dataset_of_class(self) -> np.ndarray:
        """(classes,): the dataset of each trained identity, in the order of the labels of batches."""
        _, first = np.unique(self.split.pids[~self.held_out], return_index=True)
        return self.joined.dataset_of_row[~self.held_out][first]

    def describe(self) -> str:
        """Return folder, dataset and counts; if there are several datasets, each in a line of its own."""
        counts, held_out = self.joined.divide(self.plan.image_counts), self.joined.divide(self.held_out)
        streams = np.bincount(self.plan.dataset_of_stream)
        several = len(counts) > 1
        lines = []
        for number, dataset in enumerate(self.joined.datasets):
            line = f"{dataset.root}: {dataset.label if several else dataset.manifest.dataset}"
            line += f", {(counts[number] > 0).sum()} identities, {counts[number].sum()} images"
            line += f", {len(dataset.train.shards)} shards"
            line += f"; {held} identities held out" if (held := int(held_out[number].sum())) else ""
            if several:
                line += f"; {self.plan.shares[number]} of {self.plan.identities} identities a step"
                line += f", {streams[number]} streams"
            lines.append(line)
        return "\n            ".join(lines)


def load_data(config: Config, world_size: int = 1) -> TrainData:
    """Read the manifests and make the plan of batches, which chooses the streams if `batch.streams` is auto.

    Raises:
        ValueError: no shards, the same data twice, too few identities for the plan, the ranks or validation, or an
            evaluation without a match.
    """
    joined = Joined.load(config.data.roots)
    split = joined.split
    held_out = _hold_out(joined, config.data.val_identities)
    given = dict(zip(config.data.roots, config.batch.shares or [], strict=False))
    shares = tuple(given[dataset.root] for dataset in joined.datasets) if given else ()
    plan = Plan(
        image_counts=np.where(held_out, 0, split.images),
        shard_of=split.shard,
        num_shards=len(split.shards),
        identities=config.batch.identities,
        images=config.batch.images,
        streams=_count_streams(config, joined, held_out, shares, world_size),
        seed=config.seed,
        repeat_short=config.batch.short == "repeat",
        steps=config.batch.steps_per_epoch,
        pool_images=config.data.pool_images,
        ranks=config.batch.count_ranks(world_size),
        datasets=joined.dataset_of_shard,
        given_shares=shares,
        labels=joined.labels if len(joined.labels) > 1 else ("",),
    )
    check_rank_sizes(config, plan)
    for dataset in joined.datasets:
        check_matches(dataset.root, dataset.manifest)
    return TrainData(joined, held_out, plan)


def _hold_out(joined: Joined, number: int) -> np.ndarray:
    """Return (N,) bool: the identities that are held out, of each dataset in proportion to those it has."""
    held_out = [np.zeros(len(dataset.train.pids), dtype=bool) for dataset in joined.datasets]
    if number:
        rest = number - len(held_out)  # one identity alone would always be found
        if len(held_out) > 1 and rest < len(held_out):
            raise ValueError(
                f"data.val_identities = {number}: give at least two for each of {len(held_out)} datasets, "
                f"{2 * len(held_out)} or more"
            )
        sizes = [len(rows) for rows in held_out]
        numbers = [1 + more for more in apportion(rest, sizes)] if len(sizes) > 1 else [number]
        for rows, dataset, own in zip(held_out, joined.datasets, numbers, strict=True):
            what = f"{dataset.root}: its share of " * (len(held_out) > 1) + "data.val_identities"
            rows[hold_out(dataset.train, own, what)] = True
    return np.concatenate(held_out)


def _count_streams(config: Config, joined: Joined, held_out: np.ndarray, shares: tuple[int, ...], world: int) -> int:
    """Return S. If it is auto, it does not depend on the number of processes; only whether it fits them does."""
    batch, ranks = config.batch, config.batch.count_ranks(world)
    if batch.streams != AUTO:
        return int(batch.streams)
    stock = Stock.count(np.where(held_out, 0, joined.split.images), joined.split.shard, joined.dataset_of_shard)
    streams = _streams_of_run(config)
    if streams not in stock.list_fitting(batch.identities, shares):  # a new run, or one of another batch: refused later
        streams = stock.choose(batch.identities, shares, batch.ranks or 1)
    if streams % ranks and not stock.list_fitting(batch.identities, shares, ranks):
        return ranks  # the plan then raises an error that names what is missing
    check_streams(replace(batch, streams=streams), world)
    return streams


def _streams_of_run(config: Config) -> int:
    """Return the streams of the run that is resumed, of whichever version; 0 for a new run."""
    saved = checkpoint.find(RunFolder(config.folder).checkpoints) if config.resume == "auto" else []
    for path in saved:
        with contextlib.suppress(ValueError, LookupError):  # damaged: the resume reports it
            return int(checkpoint.read_state(path)["describes"]["plan"]["batch.streams"])
    return 0


def describe_batch(plan: Plan) -> str:
    """Return identities and images of a step, with the number of images that short groups leave."""
    if plan.images_per_step == plan.identities * plan.images:
        return f"{plan.identities} identities x {plan.images} images"
    counts = plan.image_counts[plan.image_counts > 0]
    return (
        f"{plan.identities} identities x up to {plan.images} images, {plan.images_per_step:.4g} images a step on "
        f"average, as {(counts < plan.images).sum()} of {len(counts)} identities have fewer (batch.short = keep)"
    )


def check_rank_sizes(config: Config, plan: Plan) -> None:
    """Raise ValueError if a step can give a virtual rank a single image."""
    single = int((plan.image_counts == 1).sum())
    if single and plan.identities == plan.ranks and not plan.repeat_short and not config.model.sync_batchnorm:
        raise ValueError(
            f"batch.identities = {plan.identities} on {plan.ranks} ranks: {single} identities have one image, and a "
            "rank that holds one of them holds nothing else, but BatchNorm needs two images; raise batch.identities, "
            "lower batch.ranks, launch fewer processes, or set batch.short = repeat"
        )


def check_matches(root: str, manifest: Manifest) -> None:
    """Raise ValueError if there are query and gallery, and no query can have a match."""
    if not manifest.has_test_set:
        return
    query, gallery = manifest.split("query"), manifest.split("gallery")
    seen_by = {pid: set(cameras) for pid, cameras in zip(gallery.pids.tolist(), gallery.cameras, strict=True)}
    for pid, cameras in zip(query.pids.tolist(), query.cameras, strict=True):
        others = set() if pid in (JUNK_PID, manifest.distractor_pid) else seen_by.get(pid, set())
        if others and any(camera == UNKNOWN or others - {camera} for camera in cameras):
            return
    raise ValueError(
        f"data.root = {root}: no query has an image of its identity from another camera in the gallery, so "
        "there is nothing to evaluate; build the shards with identities and cameras numbered alike in both, without "
        "cameras (an empty column of a CSV) if there is only one, or only from the train images"
    )
