"""Rules that a configuration must keep."""

from __future__ import annotations

import math
from pathlib import Path

from reid.config.schema import Config, EvaluateConfig, ModelConfig


def check_evaluation(options: EvaluateConfig) -> None:
    """Refuse, before anything is read, what does not say one evaluation. Raises ValueError."""
    runs = bool(options.run or options.checkpoint != "newest")
    if runs + bool(options.features) + bool(options.compare) != 1:
        raise ValueError(
            "say what to evaluate, one of: --run FOLDER (of a training run, e.g. runs/quickstart), --features QUERY "
            f"GALLERY, --compare A B; given are run {options.run!r}, checkpoint {options.checkpoint!r}, features "
            f"{options.features}, compare {options.compare}"
        )
    if options.features and len(options.features) != 2:
        raise ValueError(f"--features {' '.join(options.features)}: give two, the query's and the gallery's")
    if options.features and not options.out:
        raise ValueError("--out is missing: the folder for the report on --features, e.g. --out reports/other")
    if options.compare and len(options.compare) < 2:
        raise ValueError(f"--compare {options.compare[0]}: give two runs or reports, or more")
    needless = [name for name in ("data", "baselines", "save_features") if getattr(options, name) and not runs]
    if needless:
        raise ValueError(f"--{needless[0]} goes with --run alone")
    if options.images and not options.features:
        raise ValueError("--images goes with --features alone: it is where the paths in feature files count from")
    if options.rerank and options.compare:
        raise ValueError(
            "--rerank has no effect on --compare, which reads finished reports; re-rank when you make them"
        )
    if not options.protocols:
        raise ValueError("--protocols is empty; give at least one of image, centroid, centroid_all, ctl_published")
    if not options.ranks or min(options.ranks) < 1:
        raise ValueError(f"--ranks {options.ranks}: the first rank is 1; give at least one rank")
    least = {"max_rank": 1, "batch_size": 1, "workers": 0, "timeout_s": 1, "rerank_k1": 1, "rerank_k2": 1}
    for name, bound in least.items():
        if getattr(options, name) < bound:
            raise ValueError(f"--{name}={getattr(options, name)} must be at least {bound}")
    if not 0 <= options.rerank_lambda <= 1:
        raise ValueError(f"--rerank_lambda={options.rerank_lambda} lies outside [0, 1]")


def check(config: Config, world_size: int) -> None:
    """Refuse, before anything is read or started, what could only fail later. Raises ValueError."""
    batch, optim, loss = config.batch, config.optim, config.loss
    sizes: list[tuple[str, int]] = [
        ("data.height", config.data.height),
        ("data.width", config.data.width),
        ("batch.identities", batch.identities),
        ("batch.images", batch.images),
        ("batch.streams", batch.streams),
        ("optim.epochs", optim.epochs),
        ("optim.reference_identities", optim.reference_identities),
        ("track.every_steps", config.track.every_steps),
        ("track.keep_checkpoints", config.track.keep_checkpoints),
        ("data.max_pixels", config.data.max_pixels),
        ("timeout_s", config.timeout_s),
        ("eval.batch_size", config.eval.batch_size),
    ]
    for name, size in sizes:
        if size < 1:
            raise ValueError(f"{name} = {size} must be at least 1")
    not_negative: list[tuple[str, float]] = [
        ("data.workers", config.data.workers),
        ("data.pool_images", config.data.pool_images),
        ("data.val_identities", config.data.val_identities),
        ("track.checkpoint_steps", config.track.checkpoint_steps),
        ("batch.steps_per_epoch", batch.steps_per_epoch),
        ("augment.pad", config.augment.pad),
        ("augment.rotate_degrees", config.augment.rotate_degrees),
        ("eval.every_epochs", config.eval.every_epochs),
        ("optim.weight_decay", optim.weight_decay),
        ("optim.warmup_epochs", optim.warmup_epochs),
        ("model.frozen_epochs", config.model.frozen_epochs),
        ("optim.clip_norm", optim.clip_norm),
        ("optim.gamma", optim.gamma),
        ("loss.center_lr", loss.center_lr),
        *((f"loss.{name}", getattr(loss, name)) for name in ("cross_entropy", "triplet", "quadruplet", "mctl", "ctl")),
        ("loss.center", loss.center),
        ("loss.w2", loss.w2 or 0.0),
        *(("optim.milestones", milestone) for milestone in optim.milestones),
    ]
    for name, value in not_negative:
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} = {value} must be a finite number, 0 or more")
    if not 0 <= config.seed < 2**64:
        raise ValueError(f"seed = {config.seed} must be at least 0 and less than 2^64")
    if not config.name or Path(config.name).name != config.name:
        raise ValueError(f"name = {config.name!r} must be the plain name of a folder, without / or ..")
    if batch.identities % batch.streams:
        raise ValueError(
            f"batch.identities = {batch.identities} does not divide among batch.streams = {batch.streams}; "
            f"use one of {_divisors(batch.identities)} streams"
        )
    if batch.streams % world_size:
        raise ValueError(
            f"batch.streams = {batch.streams} does not divide among {world_size} ranks; use a multiple of {world_size} "
            f"that divides batch.identities = {batch.identities}, or launch {_divisors(batch.streams)} processes"
        )
    if batch.identities // world_size * batch.images < 2:
        raise ValueError(
            f"batch.identities = {batch.identities} and batch.images = {batch.images} give {world_size} rank(s) one "
            "image each, and BatchNorm needs two; raise one of them, or launch fewer processes"
        )
    paired = [name for name in ("triplet", "quadruplet", "mctl", "ctl") if getattr(loss, name)]
    if batch.images == 1 and paired:
        raise ValueError(
            f"batch.images = 1 leaves loss.{paired[0]} without a second image of any identity; use 2 or more, or set "
            "its weight to 0"
        )
    shares: list[tuple[str, float]] = [
        ("augment.flip", config.augment.flip),
        ("augment.erase", config.augment.erase),
        ("augment.scale", config.augment.scale),
        *(("augment.erase_area", area) for area in config.augment.erase_area),
        ("loss.w1", loss.w1),
        ("loss.smoothing", loss.smoothing),
        ("optim.warmup_factor", optim.warmup_factor),
        ("optim.momentum", optim.momentum),
    ]
    for name, share in shares:
        if not 0 <= share <= 1:
            raise ValueError(f"{name} = {share} lies outside [0, 1]")
    if config.augment.erase_area[0] > config.augment.erase_area[1]:
        raise ValueError(f"augment.erase_area = {config.augment.erase_area}: give the smaller fraction first")
    positive = [
        ("loss.margin", loss.margin),
        ("loss.triplet_margin", loss.triplet_margin),
        ("optim.lr", optim.lr),
        ("optim.head_lr_factor", optim.head_lr_factor),
        ("optim.bias_lr_factor", optim.bias_lr_factor),
        ("model.head_temperature", config.model.head_temperature),
    ]
    for name, margin in positive:
        if margin is not None and not 0 < margin < math.inf:
            raise ValueError(f"{name} = {margin} must be greater than 0, and finite")
    if config.model.frozen_epochs and not loss.cross_entropy:
        raise ValueError(
            f"model.frozen_epochs = {config.model.frozen_epochs} trains the classifier alone at first, and "
            "loss.cross_entropy = 0 has nothing for it to learn; set one of them otherwise"
        )
    if loss.quadruplet and not 0 < loss.quadruplet_margin2 < (loss.triplet_margin or 0.5):
        raise ValueError(
            f"loss.quadruplet_margin2 = {loss.quadruplet_margin2} must lie between 0 and loss.triplet_margin = "
            f"{loss.triplet_margin or 0.5}"
        )
    _check_frozen(config.model)
    if not any([loss.cross_entropy, loss.triplet, loss.quadruplet, loss.mctl, loss.ctl, loss.center]):
        raise ValueError("every loss weight is 0; give one of loss.{cross_entropy,triplet,quadruplet,mctl,ctl,center}")


def _check_frozen(model: ModelConfig) -> None:
    """An encoder without weights has nothing worth keeping still: its BatchNorm's statistics are 0 and 1."""
    if model.weights != "none":
        return
    for name, value, default in (("norm", model.norm, "batch"), ("frozen_epochs", model.frozen_epochs, 0)):
        if value != default:
            raise ValueError(
                f"model.{name} = {value} keeps what model.weights = none has not; give weights or leave it at {default}"
            )


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
