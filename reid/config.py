"""Every knob of training and evaluation: dataclasses, read from YAML and dotted flags, checked at the start."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

set_parsing_settings(docstring_parse_attribute_docstrings=True)


@dataclass
class DataConfig:
    """The shards and how they are read."""

    root: str = "data/market1501"
    """Folder of a finished build (`python -m shards build`), with manifest.json."""
    height: int = 256
    """Image height in pixels that the encoder sees."""
    width: int = 128
    """Image width in pixels that the encoder sees."""
    workers: int = 2
    """Decoding processes per rank; 0 decodes in the training process. More than streams per rank are not started."""
    max_pixels: int = 50_000_000
    """An image with more pixels is refused (guard against decompression bombs)."""


@dataclass
class BatchConfig:
    """The global batch: P identities x K images, the same for any number of ranks."""

    identities: int = 16
    """P, identities in the batch of all ranks together; ranks share them equally."""
    images: int = 4
    """K, images per identity."""
    streams: int = 8
    """S, fixed cuts of an epoch: divides `identities`, is divided by the number of ranks; another S, other batches."""
    short: Literal["keep", "repeat"] = "keep"
    """Identity with fewer than K images: keep its short group, or repeat images up to K (as BoT does)."""
    steps_per_epoch: int = 0
    """Optimizer steps per epoch; 0 = one pass over the images."""


@dataclass
class AugmentConfig:
    """Random changes to training images; parameters are drawn from (seed, epoch, stream, step)."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    pad: int = 10
    """Pixels of padding before the random crop back to size."""
    fill: Literal["black", "edge"] = "black"
    """What the padding shows: black, or the nearest pixel of the image."""
    rotate_degrees: float = 0.0
    """Largest random rotation either way, in degrees."""
    scale: float = 0.0
    """Largest random zoom either way, as a fraction (0.1 = 0.9x to 1.1x)."""
    erase: float = 0.5
    """Probability of random erasing (one rectangle, filled with the mean colour)."""
    erase_area: tuple[float, float] = (0.02, 0.4)
    """Smallest and largest erased area, as a fraction of the image."""


@dataclass
class ModelConfig:
    """Encoder, pooling and heads."""

    encoder: Literal["resnet10", "resnet18", "resnet34", "resnet50"] = "resnet50"
    """Backbone; resnet10 (one block per stage) is meant for CPU work."""
    weights: str = "imagenet"
    """Initial encoder weights: imagenet (downloaded by torchvision), none, or a local .safetensors/.pth file."""
    last_stride: Literal[1, 2] = 1
    """Stride of the last stage; 1 keeps twice the resolution (BoT: +1.4 mAP)."""
    stem_stride: Literal[1, 2, 4] = 4
    """Reduction before the first stage: 4 as on ImageNet; 2 without the max-pool; 1 without any stride."""
    pool: Literal["gap", "gem"] = "gap"
    """Global average pooling, or generalised-mean pooling with a learned exponent."""
    head: Literal["linear", "cosine", "euclidean"] = "linear"
    """Classifier on the feature after the neck: w·f; cos(w, f); or minus the squared distance to a learned center."""
    head_temperature: float = 1.0
    """What the logits are divided by; the cosine head wants about 0.06, the euclidean head 1 or more."""


@dataclass
class LossConfig:
    """Weights and parameters of the objective; a weight of 0 switches a term off."""

    cross_entropy: float = 1.0
    """Weight of the cross-entropy on identity logits."""
    smoothing: float = 0.1
    """Label smoothing."""
    triplet: float = 1.0
    """Weight of the batch-hard triplet loss."""
    triplet_margin: float | None = 0.5
    """Margin of the triplet loss; null for the soft margin."""
    triplet_scope: Literal["local", "global"] = "local"
    """Mine triplets in the batch of one rank, or of all ranks."""
    quadruplet: float = 0.0
    """Weight of the quadruplet loss; its first margin is `triplet_margin`, its scope `triplet_scope`."""
    quadruplet_margin2: float = 0.25
    """Second margin of the quadruplet loss; smaller than the first."""
    mctl: float = 1.0
    """Weight of the modified centroid triplet loss."""
    ctl: float = 0.0
    """Weight of the centroid triplet loss."""
    w1: float = 0.1
    """MCTL: weight of the pull towards the own centroid; the push has 1 - w1 unless w2 is given."""
    w2: float | None = None
    """MCTL: weight of the push away from the nearest other centroid; null = 1 - w1."""
    margin: float = 0.5
    """Margin of MCTL and CTL, in units of feature distance."""
    reading: Literal["paper", "rounds"] = "paper"
    """How MCTL and CTL choose anchors and centroids (see reid/losses.py)."""
    normalize: bool = False
    """MCTL and CTL on unit vectors instead of raw features."""
    relative: bool = False
    """Measure MCTL's and CTL's distances, and so `margin`, in units of the running mean distance between centroids."""
    center: float = 5e-4
    """Weight of the center loss."""
    center_lr: float = 0.5
    """Step of the closed-form SGD update of the centers."""


@dataclass
class OptimConfig:
    """Optimizer and schedule."""

    lr: float = 3.5e-4
    """Learning rate of Adam after the warm-up."""
    weight_decay: float = 5e-4
    """L2 penalty (Adam's coupled form, as in BoT)."""
    epochs: int = 120
    """Epochs of training."""
    milestones: list[int] = field(default_factory=lambda: [40, 70])
    """Epochs at which the learning rate is multiplied by `gamma`."""
    gamma: float = 0.1
    """Factor at each milestone."""
    warmup_epochs: int = 10
    """Epochs over which the learning rate rises linearly."""
    warmup_factor: float = 0.01
    """Fraction of `lr` at the very first step."""
    clip_norm: float = 0.0
    """Clip the gradient's global norm to this; 0 = never."""


@dataclass
class EvalConfig:
    """Evaluation inside training; `evaluate.py` does the rest."""

    every_epochs: int = 0
    """Evaluate the image and centroid protocols every so many epochs; 0 = after the last epoch only."""
    batch_size: int = 128
    """Images per forward pass and rank."""


@dataclass
class TrackConfig:
    """Logs, checkpoints and Weights & Biases."""

    every_steps: int = 10
    """Steps between two lines of metrics.jsonl."""
    wandb: Literal["online", "offline", "off"] = "offline"
    """Weights & Biases mode; offline runs land in the run's folder, for `wandb sync`."""
    project: str = "mctl-reid"
    """W&B project."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept (one is written each epoch)."""


@dataclass
class Config:
    """One training run."""

    name: str = "run"
    """Name of the run; it lives in <runs>/<name>."""
    runs: str = "runs"
    """Folder of all runs."""
    seed: int = 0
    """Seed of weights, plan and augmentation."""
    resume: Literal["never", "auto"] = "never"
    """auto: continue from this run's newest checkpoint, if there is one; never: refuse a folder with checkpoints."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Autocast; auto = bf16 on CUDA, none on CPU."""
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    track: TrackConfig = field(default_factory=TrackConfig)

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name


@dataclass
class EvaluateConfig:
    """One evaluation by `evaluate.py`."""

    run: str = ""
    """Folder of the training run, e.g. runs/quickstart."""
    checkpoint: str = "newest"
    """Which of the run's checkpoints: newest, or the name of a folder in checkpoints/."""
    data: str = ""
    """Shards to evaluate on; empty = those the run was trained on."""
    baselines: list[Literal["untrained", "histogram"]] = field(default_factory=list)
    """Rows to put beside the trained encoder: the untrained encoder, a colour histogram."""
    protocols: list[Literal["image", "centroid", "centroid_all"]] = field(
        default_factory=lambda: ["image", "centroid", "centroid_all"]
    )
    """Evaluation protocols; all are reported side by side."""
    max_rank: int = 50
    """Length of the CMC curve."""
    batch_size: int = 128
    """Images per forward pass and rank."""
    workers: int = 2
    """Decoding processes per rank."""
    wandb: Literal["online", "offline", "off"] = "offline"
    """Weights & Biases mode."""
    project: str = "mctl-reid"
    """W&B project."""


AnyConfig = TypeVar("AnyConfig", Config, EvaluateConfig)


class _Parser(ArgumentParser):
    """jsonargparse, with the nearest known knob in the error for an unknown one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error(message + self._suggestion(message), ex)
        raise AssertionError("unreachable: the parser exits")

    def _suggestion(self, message: str) -> str:
        flag = re.search(r"nrecognized arguments: --([\w.]+)", message)
        key = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
        top = re.search(r"[Oo]ption '([\w.]+)' is not accepted", message)
        if not (flag or key or top):
            return ""
        unknown = flag[1] if flag else f"{key[1]}.{key[2]}" if key else top[1] if top else ""
        known = [action.dest for action in self._actions if action.dest not in ("help", "print_config")]
        near = difflib.get_close_matches(unknown, known, n=1, cutoff=0.0)
        return f"\nThe nearest known knob is --{near[0]}; --help lists all." if near else ""


def make_parser(kind: type[AnyConfig]) -> ArgumentParser:
    """The parser of a program: --config FILE, --print_config, and a dotted flag for each knob."""
    parser = _Parser(description=kind.__doc__, usage="%(prog)s [--config FILE] [--<knob>=<value> ...]")
    parser.add_argument("--config", action="config", help="YAML file; flags after it override its values")
    parser.add_class_arguments(kind)
    return parser


def parse(kind: type[AnyConfig], args: Sequence[str] | None = None) -> AnyConfig:
    """The config of `args` (default: the command line) with defaults filled in.

    An unknown knob or a value of a wrong type ends the program with the knob's name and the nearest known one.
    """
    parser = make_parser(kind)
    namespace = parser.instantiate(parser.parse_args(args))
    return kind(**{f.name: namespace[f.name] for f in fields(kind)})


def load(path: Path) -> Config:
    """The config of a finished or interrupted run, from its config.yaml."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; is {path.parent} the folder of a training run?")
    return parse(Config, [f"--config={path}"])


def save(config: Config, path: Path) -> None:
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))


def to_dict(config: Config | EvaluateConfig) -> dict[str, Any]:
    """Plain nested dictionary (tuples become lists), as written to config.yaml and sent to W&B."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


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
        ("track.every_steps", config.track.every_steps),
        ("track.keep_checkpoints", config.track.keep_checkpoints),
        ("data.max_pixels", config.data.max_pixels),
        ("eval.batch_size", config.eval.batch_size),
    ]
    for name, size in sizes:
        if size < 1:
            raise ValueError(f"{name} = {size} must be at least 1")
    not_negative: list[tuple[str, float]] = [
        ("data.workers", config.data.workers),
        ("batch.steps_per_epoch", batch.steps_per_epoch),
        ("augment.pad", config.augment.pad),
        ("augment.rotate_degrees", config.augment.rotate_degrees),
        ("eval.every_epochs", config.eval.every_epochs),
        ("optim.weight_decay", optim.weight_decay),
        ("optim.warmup_epochs", optim.warmup_epochs),
        ("optim.clip_norm", optim.clip_norm),
        ("optim.gamma", optim.gamma),
        ("loss.center_lr", loss.center_lr),
        *((f"loss.{name}", getattr(loss, name)) for name in ("cross_entropy", "triplet", "quadruplet", "mctl", "ctl")),
        ("loss.center", loss.center),
        *(("optim.milestones", milestone) for milestone in optim.milestones),
    ]
    for name, value in not_negative:
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} = {value} must be a finite number, 0 or more")
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
    shares: list[tuple[str, float]] = [
        ("augment.flip", config.augment.flip),
        ("augment.erase", config.augment.erase),
        ("augment.scale", config.augment.scale),
        *(("augment.erase_area", area) for area in config.augment.erase_area),
        ("loss.w1", loss.w1),
        ("loss.smoothing", loss.smoothing),
        ("optim.warmup_factor", optim.warmup_factor),
    ]
    for name, share in shares:
        if not 0 <= share <= 1:
            raise ValueError(f"{name} = {share} lies outside [0, 1]")
    if config.augment.erase_area[0] > config.augment.erase_area[1]:
        raise ValueError(f"augment.erase_area = {config.augment.erase_area}: give the smaller fraction first")
    positive = [("loss.margin", loss.margin), ("loss.triplet_margin", loss.triplet_margin), ("optim.lr", optim.lr)]
    for name, margin in positive:
        if margin is not None and not margin > 0:
            raise ValueError(f"{name} = {margin} must be greater than 0")
    if loss.quadruplet and not 0 < loss.quadruplet_margin2 < (loss.triplet_margin or 0.5):
        raise ValueError(
            f"loss.quadruplet_margin2 = {loss.quadruplet_margin2} must lie between 0 and loss.triplet_margin = "
            f"{loss.triplet_margin or 0.5}"
        )
    if not any([loss.cross_entropy, loss.triplet, loss.quadruplet, loss.mctl, loss.ctl, loss.center]):
        raise ValueError("every loss weight is 0; give one of loss.{cross_entropy,triplet,quadruplet,mctl,ctl,center}")


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
