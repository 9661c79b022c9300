"""Rules between the sections of a configuration."""

from __future__ import annotations

from dataclasses import fields

from reid.config.ranges import Section
from reid.config.schema import AUTO, BatchConfig, Config, EvaluateConfig, list_divisors


def check(config: Config, world_size: int) -> None:
    """Check a configuration before anything is read or started, its sections included.

    Raises:
        ValueError: names the knob, its value and the fix.
    """
    for section in (config, *(getattr(config, field.name) for field in fields(config))):
        if isinstance(section, Section):
            section.validate()
    batch, loss = config.batch, config.loss
    datasets = len(config.data.roots)
    if batch.shares is not None and len(batch.shares) != datasets:
        raise ValueError(
            f"batch.shares = {batch.shares}: give one number for each of the {datasets} datasets in data.root, or null"
        )
    if batch.identities < datasets:
        raise ValueError(
            f"batch.identities = {batch.identities}: give at least one for each of the {datasets} datasets in data.root"
        )
    _check_ranks(batch, world_size)
    paired = [
        name
        for name in ("triplet", "quadruplet", "mctl", "ctl", "circle", "contrastive", "multi_similarity")
        if getattr(loss, name)
    ]
    if batch.images == 1 and paired:
        raise ValueError(
            f"batch.images = 1 leaves loss.{paired[0]} without a second image of any identity; use 2 or more, or set "
            "its weight to 0"
        )
    margins = [name for name in ("angular_margin", "cosine_margin") if getattr(loss, name)]
    if margins and config.model.head != "cosine":
        raise ValueError(
            f"loss.{margins[0]} = {getattr(loss, margins[0])} is for cosines, and model.head = {config.model.head} has "
            "none; set model.head = cosine and model.head_temperature, or the margin to 0"
        )
    if config.model.frozen_epochs and not loss.cross_entropy and "neck" not in loss.spaces:
        raise ValueError(
            f"model.frozen_epochs = {config.model.frozen_epochs} trains only neck and classifier at first, and "
            "loss.cross_entropy = 0 has nothing for it to learn; change one of them"
        )


def _check_ranks(batch: BatchConfig, world_size: int) -> None:
    """Raise ValueError if the batch cannot be cut into the virtual ranks, and these among the processes."""
    ranks = batch.count_ranks(world_size)
    if ranks % world_size:
        raise ValueError(
            f"batch.ranks = {ranks} is not a multiple of the {world_size} processes; use a multiple of {world_size}, "
            f"or launch {list_divisors(ranks)} processes"
        )
    if batch.streams != AUTO:
        check_streams(batch, world_size)
    elif batch.identities % ranks:
        raise ValueError(
            f"batch.identities = {batch.identities} does not divide among {ranks} ranks; use a multiple of {ranks}, or "
            f"{_fewer_ranks(batch, batch.identities)}"
        )
    if batch.identities // ranks * batch.images < 2:
        raise ValueError(
            f"batch.identities = {batch.identities} and batch.images = {batch.images} give {ranks} rank(s) one "
            "image each, and BatchNorm needs two; raise one of them, lower batch.ranks, or launch fewer processes"
        )


def check_streams(batch: BatchConfig, world_size: int) -> None:
    """Raise ValueError if the streams, of which the number is known, do not divide among the virtual ranks."""
    ranks, streams = batch.count_ranks(world_size), int(batch.streams)
    if streams % ranks:
        raise ValueError(
            f"batch.streams = {streams} does not divide among {ranks} ranks; use a multiple of {ranks} "
            f"that divides batch.identities = {batch.identities}, or {_fewer_ranks(batch, streams)}"
        )


def _fewer_ranks(batch: BatchConfig, divided: int) -> str:
    fitting = list_divisors(divided)
    return f"set batch.ranks to one of {fitting}" if batch.ranks else f"launch {fitting} processes"


def check_evaluation(options: EvaluateConfig) -> None:
    """Check that the options describe one evaluation, before anything is read.

    Raises:
        ValueError: names the flag and the fix.
    """
    options.validate()
    runs = bool(options.run or options.checkpoint != "newest")
    if runs + bool(options.features) + bool(options.compare) != 1:
        raise ValueError(
            "give one of: --run FOLDER (of a training run, as runs/quickstart), --features QUERY GALLERY, --compare A B"
        )
    if options.features and len(options.features) != 2:
        raise ValueError(f"--features {' '.join(options.features)}: give two, the query's and the gallery's")
    if options.features and not options.out:
        raise ValueError("--out is missing: the folder for the report on --features, e.g. --out reports/other")
    if options.compare and len(options.compare) < 2:
        raise ValueError(f"--compare {options.compare[0]}: give two runs or reports, or more")
    unused = [name for name in ("data", "baselines", "save_features", "flip") if getattr(options, name) and not runs]
    if unused:
        raise ValueError(f"--{unused[0]} works only with --run")
    if options.images and not options.features:
        raise ValueError("--images works only with --features: it is the folder of the paths in feature files")
    if options.compare and (options.verification or options.open_set is not None):
        raise ValueError("--verification and --open_set measure features; --compare reads finished reports")
    if options.rerank and options.compare:
        raise ValueError(
            "--rerank has no effect on --compare, which reads finished reports; re-rank when you make them"
        )
