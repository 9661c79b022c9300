"""Every knob of training and evaluation: dataclasses, read from YAML and dotted flags, checked at the start."""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
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
    """Folder of a finished build (`python -m shards build`), with manifest.json; or its http, https, s3 or gs URL."""
    height: int = 256
    """Image height in pixels that the encoder sees."""
    width: int = 128
    """Image width in pixels that the encoder sees."""
    workers: int = 2
    """Decoding processes per rank; 0 decodes in the training process. More than streams per rank are not started."""
    max_pixels: int = 50_000_000
    """An image with more pixels is refused (guard against decompression bombs)."""
    pool_images: int = 16_384
    """Encoded images that a stream keeps in memory to shuffle among; 0 = all of its share of the data."""
    val_identities: int = 0
    """Train identities held out of training, to choose a model by; 0 = none, and evaluations look at the test set."""
    on_damage: Literal["stop", "skip"] = "stop"
    """Damaged training data: stop with the place; or leave the identity out for the epoch, and count it."""


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

    encoder: str = "resnet50"
    """Backbone; `python -m reid.model list` shows all; resnet10 is meant for CPU work; timm/<name> is any of timm."""
    weights: str = "imagenet"
    """Initial encoder weights: imagenet (torchvision's V1, fetched once), none, or a .safetensors or .pth file."""
    last_stride: Literal[1, 2] = 1
    """Stride of a ResNet's last stage; 1 keeps twice the resolution (BoT: +1.4 mAP). Of no effect on others."""
    stem_stride: Literal[1, 2, 4] = 4
    """Reduction before the first stage: 4 as on ImageNet; 2 without the max-pool; 1 without any stride."""
    pool: Literal["gap", "gem"] = "gap"
    """Global average pooling, or generalised-mean pooling with a learned exponent; a ViT has its class token."""
    norm: Literal["batch", "frozen"] = "batch"
    """Encoder's BatchNorm: statistics of each batch, or those of `weights` for ever (weight and bias still learn)."""
    sync_batchnorm: bool = False
    """BatchNorm over the images of all ranks instead of each rank's own."""
    frozen_epochs: int = 0
    """First epochs in which only neck and classifier learn, and the encoder stands still."""
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

    algorithm: Literal["adam", "adamw", "sgd"] = "adam"
    """Adam with an L2 penalty (as in BoT), AdamW with decoupled decay, or SGD with momentum."""
    lr: float = 3.5e-4
    """Learning rate after the warm-up."""
    lr_rule: Literal["none", "linear", "sqrt"] = "none"
    """How `lr` grows with `batch.identities` over `reference_identities`: not at all, in proportion, by the root."""
    reference_identities: int = 16
    """Global number of identities in a batch for which `lr` was chosen; used by `lr_rule`."""
    head_lr_factor: float = 1.0
    """Learning rate of neck and classifier, as a multiple of the encoder's."""
    bias_lr_factor: float = 1.0
    """Learning rate of biases, as a multiple of that of weights (Caffe's habit, and BoT's code's default, is 2)."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty, or the decay of AdamW."""
    decay_norm: bool = True
    """Weight decay also on biases and on the weights of normalisation layers."""
    epochs: int = 120
    """Epochs of training."""
    schedule: Literal["milestones", "cosine"] = "milestones"
    """After the warm-up: a factor of `gamma` at each milestone, or a cosine down to 0 at the end."""
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
    """Newest checkpoints kept, beside the best (one is written each epoch)."""
    artifacts: bool = False
    """Send the manifest and the best checkpoint to W&B as artifacts."""
    checkpoint_steps: int = 0
    """Write a checkpoint also every so many steps; 0 = at the end of each epoch alone."""


@dataclass
class SpeedConfig:
    """What changes the time of a step, and hardly its result."""

    channels_last: bool = True
    """Keep images and weights in the memory order that convolutions on tensor cores want."""
    compile: bool = False
    """torch.compile the model: minutes at the start, faster steps after."""
    deterministic: bool = False
    """Only deterministic kernels: slower, and the same bits again on the same GPU."""
    pin_memory: bool = True
    """Copy batches to the GPU while it computes (page-locked memory); without effect on a CPU."""


@dataclass
class Config:
    """One training run."""

    name: str = "run"
    """Name of the run; it lives in <runs>/<name>."""
    runs: str = "runs"
    """Folder of all runs."""
    seed: int = 0
    """Seed of weights, plan and augmentation; 0 or more."""
    resume: Literal["never", "auto"] = "never"
    """auto: continue from this run's newest checkpoint, if there is one; never: refuse a folder with checkpoints."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: CUDA where it is there; cuda: an error where it is not; cpu: even where it is."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Autocast; auto = bf16 on CUDA, none on CPU."""
    dry_run: bool = False
    """Check everything, make two steps, write nothing."""
    timeout_s: int = 600
    """Seconds that a process waits for the others before the run ends with an error."""
    stop_file: str = ""
    """A file whose appearance stops the run at the next step, with a checkpoint; SIGTERM and SIGUSR1 do the same."""
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name


@dataclass
class EvaluateConfig:
    """One evaluation by `evaluate.py`: of a run, of another system's features, or a comparison of finished reports."""

    run: str = ""
    """Folder of the training run, e.g. runs/quickstart."""
    checkpoint: str = "newest"
    """Which of the run's checkpoints: newest, best, the name of a folder in checkpoints/, or a path without --run."""
    data: list[str] = field(default_factory=list)
    """Shards to evaluate on, one folder or several; empty = those the run was trained on."""
    features: list[str] = field(default_factory=list)
    """Instead of a run: any system's features of query and gallery, two .npz files or folders of .npy files."""
    images: str = ""
    """Folder that the `paths` in feature files count from; empty = the folder of each file."""
    compare: list[str] = field(default_factory=list)
    """Runs or report folders to compare with the first of them, query by query."""
    out: str = ""
    """Folder of the report; empty = <run>/eval. Runs write into a folder per dataset there."""
    save_features: bool = False
    """Write query.npz and gallery.npz, as --features reads them, beside the report."""
    baselines: list[Literal["untrained", "histogram"]] = field(default_factory=list)
    """Rows to put beside the trained encoder: the untrained encoder, a colour histogram."""
    protocols: list[Literal["image", "centroid", "centroid_all", "ctl_published"]] = field(
        default_factory=lambda: ["image", "centroid", "centroid_all", "ctl_published"]
    )
    """Evaluation protocols; all are reported side by side."""
    metric: Literal["cosine", "euclidean"] = "cosine"
    """How features are compared: normalised (after any averaging), or raw by their distance."""
    ranks: list[int] = field(default_factory=lambda: [1, 5, 10])
    """Ranks of the CMC that the tables show."""
    max_rank: int = 50
    """Length of the CMC curve; longer where --ranks asks for more."""
    rerank: bool = False
    """Add a row for the image protocol after k-reciprocal re-ranking."""
    rerank_k1: int = 20
    """Neighbours that must be mutual."""
    rerank_k2: int = 6
    """Neighbours that a query's expansion averages."""
    rerank_lambda: float = 0.3
    """Share of the original distance in the final one."""
    precision: Literal["no", "bf16"] = "no"
    """Autocast of the forward pass; no = float32 throughout."""
    batch_size: int = 128
    """Images per forward pass and rank."""
    workers: int = 2
    """Decoding processes per rank."""
    timeout_s: int = 3600
    """Seconds that processes wait for rank 0, which re-ranks and draws alone."""
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
    words = sys.argv[1:] if args is None else args
    namespace = parser.instantiate(parser.parse_args(spell_out(words, kind) if kind is EvaluateConfig else words))
    return kind(**{f.name: namespace[f.name] for f in fields(kind)})


def spell_out(words: Sequence[str], kind: type[AnyConfig]) -> list[str]:
    """Flags as people type them, in the one form that the parser reads: `--data a b` is `--data=["a", "b"]`, a bare
    `--rerank` is `--rerank=true`, `--ranks=1,5` is `--ranks=["1", "5"]` (a path may have a comma, so lists of paths are
    not split there). Values in brackets and those of other flags stay as they are."""
    lists = {f"--{f.name}": str(f.type) for f in fields(kind) if str(f.type).startswith("list[")}
    switches = {f"--{f.name}" for f in fields(kind) if f.type == "bool"}
    spelled, rest = [], list(words)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag not in switches and flag not in lists:
            spelled.append(flag + equals + value)
            continue
        values = [value] if equals else []
        while rest and not rest[0].startswith("--") and (flag in lists or not values):
            values.append(rest.pop(0))
        if flag in switches:
            spelled.append(f"{flag}={values[0] if values else 'true'}")
        else:
            bracketed = len(values) == 1 and values[0].startswith("[")
            if lists[flag] != "list[str]" and not bracketed:
                values = [part for value in values for part in value.split(",") if part]
            spelled.append(f"{flag}={values[0] if bracketed else json.dumps(values)}")
    return spelled


def load(path: Path) -> Config:
    """The config of a finished or interrupted run, from its config.yaml."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; is {path.parent} the folder of a training run?")
    return parse(Config, [f"--config={path}"])


def save(config: Config, path: Path) -> None:
    path.write_text(to_yaml(config))


def to_yaml(config: Config) -> str:
    """As `load` reads it."""
    text: str = yaml.safe_dump(to_dict(config), sort_keys=False)
    return text


def to_dict(config: Config | EvaluateConfig) -> dict[str, Any]:
    """Plain nested dictionary (tuples become lists), as written to config.yaml and sent to W&B."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


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
