"""Every knob of training and evaluation, with its type, range, default and documentation."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from reid.config.ranges import Count, Factor, Fraction, NonNegative, Positive, Section, Seed, Size, Weight, weights_of

MAX_NAME = 200  # bytes of a run's name; file systems allow 255
MAX_DIVISOR = 1024
AUTO = "auto"  # of a knob whose value is chosen from the data or the machine
LONGEST_DISTANCE = 2.0  # of unit vectors
# Knobs of `model` that do not change what a checkpoint is.
OF_A_FILE = ("weights_key", "weights_grid", "weights_partial", "weights_neck")  # how a file of weights is read
NOT_SAVED = ("weights", *OF_A_FILE, "drop_path", "norm", "sync_batchnorm", "frozen_epochs")
# Knobs of `model` that earlier versions did not have, and what these did.
LATER: dict[str, Any] = {"embedding": 0, "nested": []}
DTYPES = ("float32", "bfloat16", "float16")  # of an Embedder; here, so that parsers need no torch


@dataclass
class DataConfig(Section):
    """The shards and how they are read."""

    root: list[str] | str = "data/market1501"
    """Folder of shards (`reid shards build`), with manifest.json, or its http, https, s3 or gs URL; or a list of
    several datasets to train on together."""
    height: Size = 256
    """Height in pixels of the encoder's input."""
    width: Size = 128
    """Width in pixels of the encoder's input."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How pictures are resized, with antialiasing; null = as the encoder was pre-trained."""
    mean: tuple[Fraction, Fraction, Fraction] | None = None
    """Mean of red, green and blue (0 to 1) that is subtracted from pixels; null = the encoder's own."""
    std: tuple[Positive, Positive, Positive] | None = None
    """Standard deviation of red, green and blue that pixels are then divided by; null = the encoder's own."""
    workers: Count | Literal["auto"] = "auto"
    """Decoding processes per rank, at most one per stream; 0 decodes in the training process; auto = as many as the
    rank's share of the CPUs, less one for the training process."""
    max_pixels: Size = 50_000_000
    """Refuse images with more pixels (protection against decompression bombs)."""
    pool_images: Count = 16_384
    """Size of a stream's shuffle buffer in encoded images; 0 = all of its share of the data."""
    val_identities: Count = 0
    """Train identities held out for validation; 0 = none, and evaluations during training use the test set."""
    on_damage: Literal["stop", "skip"] = "stop"
    """Damaged training data: stop, with its place; or skip the identity for the epoch, and count it."""

    @property
    def roots(self) -> list[str]:
        """The folders or URLs of shards."""
        return [self.root] if isinstance(self.root, str) else self.root

    def check(self) -> None:
        if not self.roots or not all(self.roots):
            raise ValueError(f"data.root = {self.root!r}: give the folder of shards, or a list of such folders")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width


@dataclass
class BatchConfig(Section):
    """The global batch: P identities x K images, the same for any number of ranks."""

    identities: Size = 16
    """P, identities in the global batch, shared equally by the ranks."""
    images: Size = 4
    """K, images per identity."""
    streams: Size | Literal["auto"] = "auto"
    """S, parts of an epoch: divides `identities`, is a multiple of the number of ranks; other S, other batches. auto =
    the most that shards and identities allow with two identities of a stream in a step; a resumed run keeps its S."""
    shares: list[Size] | None = None
    """With several datasets in `data.root`: how many of `identities` are of each; null = in proportion to their
    identities."""
    ranks: Count = 0
    """V, virtual ranks: each has its own BatchNorm statistics and local triplets; 0 = the number of processes."""
    short: Literal["keep", "repeat"] = "keep"
    """Identity with fewer than K images: keep its short group, or repeat images up to K (like BoT)."""
    steps_per_epoch: Count = 0
    """Optimizer steps per epoch; 0 = one pass over the images."""

    def check(self) -> None:
        if isinstance(self.streams, int) and self.identities % self.streams:
            raise ValueError(
                f"batch.identities = {self.identities} does not divide among batch.streams = {self.streams}; "
                f"use one of {list_divisors(self.identities)} streams"
            )

        if self.shares is not None and sum(self.shares) != self.identities:
            raise ValueError(
                f"batch.shares = {self.shares} are {sum(self.shares)} together, not batch.identities = "
                f"{self.identities}; change one of them, or set batch.shares = null"
            )

    def count_ranks(self, world_size: int) -> int:
        """Return V, the number of virtual ranks, for a number of processes."""
        return self.ranks or world_size


@dataclass
class AugmentConfig(Section):
    """Augmentation of training images; parameters are drawn from (seed, epoch, stream, step)."""

    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    pad: Count = 10
    """Pixels of padding before the random crop back to size."""
    fill: Literal["black", "edge"] = "black"
    """Value of the padding: black, or the nearest pixel of the image."""
    rotate_degrees: NonNegative = 0.0
    """Maximum random rotation in both directions, in degrees."""
    scale: Fraction = 0.0
    """Maximum random zoom in both directions, as a fraction (0.1 = 0.9x to 1.1x)."""
    erase: Fraction = 0.5
    """Probability of random erasing (one rectangle, filled with the mean colour)."""
    erase_area: tuple[Fraction, Fraction] = (0.02, 0.4)
    """Minimum and maximum erased area, as a fraction of the image."""
    jitter: Fraction = 0.0
    """Probability of colour jitter: a random change of brightness, contrast, saturation and hue."""
    jitter_strengths: tuple[Fraction, Fraction, Fraction, Fraction] = (0.15, 0.15, 0.1, 0.1)
    """Maximum change of brightness, contrast and saturation (0.1 = 0.9x to 1.1x), and of hue (turns, at most 0.5)."""
    grey: Fraction = 0.0
    """Probability of a picture without colours."""
    blur: Fraction = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)
    """Minimum and maximum standard deviation of the blur, in pixels."""
    policy: Literal["none", "trivial"] = "none"
    """trivial: for each image one of eight operations on colours and sharpness, of random strength (TrivialAugment)."""

    def check(self) -> None:
        for name in ("erase_area", "blur_sigma"):
            if (ends := getattr(self, name))[0] > ends[1]:
                raise ValueError(f"augment.{name} = {ends}: give the smaller number first")
        if self.jitter_strengths[3] > 0.5:
            raise ValueError(
                f"augment.jitter_strengths = {self.jitter_strengths}: the last one is of the hue, in turns of the "
                "colour wheel; 0.5 allows all hues"
            )


@dataclass
class ModelConfig(Section):
    """Encoder, pooling and heads."""

    encoder: str = "resnet50"
    """Backbone: `reid model list` shows all; resnet10 is for CPUs; timm/<name>, timm/hf-hub:<org>/<name>."""
    weights: str = "imagenet"
    """Initial weights: imagenet (downloaded once), none, a .safetensors or .pth file, a run, hf:<org>/<name>."""
    weights_key: str = ""
    """Part of a file that holds the encoder, e.g. teacher or state_dict.module; empty = the one that fits best."""
    weights_grid: tuple[Size, Size] | None = None
    """Rows and columns of patches that a file's position embeddings are for; null = as the file says."""
    weights_partial: bool = False
    """Load what fits of a file that has less than 90% of the encoder, other shapes or more layers."""
    weights_neck: bool = False
    """Load the neck of a run, too, and its embedding layer, not only its encoder."""
    last_stride: Literal[1, 2] = 1
    """Stride of a ResNet's last stage, timm's too; 1 doubles the resolution (BoT: +1.4 mAP). Others have none."""
    stem_stride: Literal[1, 2, 4] = 4
    """Reduction before the first stage: 4 as for ImageNet; 2 without the max-pool; 1 without any stride."""
    pool: Literal["gap", "gem"] = "gap"
    """Global average pooling, or generalized-mean pooling with a learned exponent; a ViT uses its class token."""
    embedding: Count = 0
    """Length of the features, by a linear layer between encoder and neck; 0 = the encoder's own, without the layer."""
    drop_path: Fraction | None = None
    """Stochastic depth: chance to leave out the last residual block of the encoder for an image, falling to 0 in the
    first; null = the encoder's own (0.1 to 0.5 for Swin and ConvNeXt of torchvision and Swin of timm, 0 for most)."""
    nested: list[Size] = field(default_factory=list)
    """Lengths, ascending, at which the first numbers of a feature are trained to be features, too (Matryoshka)."""
    norm: Literal["batch", "frozen"] = "batch"
    """Encoder's BatchNorm: statistics of each batch, or always those of `weights` (weight and bias still learn)."""
    sync_batchnorm: bool = False
    """BatchNorm over the images of all ranks instead of each virtual rank's."""
    frozen_epochs: Count = 0
    """First epochs in which only embedding, neck and classifier learn, and the encoder is frozen."""
    head: Literal["linear", "cosine", "euclidean"] = "linear"
    """Classifier on the feature after the neck: w·f; cos(w, f); or minus the squared distance to a learned center."""
    head_temperature: Positive = 1.0
    """Divisor of the logits; about 0.06 for the cosine head, 1 or more for the euclidean head."""

    def without_weights(self) -> ModelConfig:
        """Return the same network with weights = none, to which trained weights can be loaded."""
        start: dict[str, Any] = {knob.name: knob.default for knob in fields(self) if knob.name in NOT_SAVED}
        return replace(self, **start | {"weights": "none"})

    def check(self) -> None:
        if self.drop_path == 1:
            raise ValueError("model.drop_path = 1.0 would always leave out the last block; give less than 1, e.g. 0.1")
        if self.nested != sorted(set(self.nested)):
            raise ValueError(f"model.nested = {self.nested}: give different lengths, the smallest first")
        for name in OF_A_FILE:
            if (value := getattr(self, name)) and self.weights in ("none", "imagenet"):
                given = list(value) if isinstance(value, tuple) else value
                raise ValueError(
                    f"model.{name} = {given} is about a file, and model.weights = {self.weights} is none; leave it at "
                    f"its default"
                )
        if self.weights != "none":
            return
        for name, value, default in (("norm", self.norm, "batch"), ("frozen_epochs", self.frozen_epochs, 0)):
            if value != default:
                raise ValueError(
                    f"model.{name} = {value} keeps pretrained values, and model.weights = none has none; give weights, "
                    f"or leave it at {default}"
                )


@dataclass
class LossConfig(Section):
    """Weights and parameters of the losses; a weight of 0 switches a loss off."""

    cross_entropy: Weight = 1.0
    """Weight of the cross-entropy on identity logits."""
    smoothing: Fraction = 0.1
    """Label smoothing."""
    triplet: Weight = 1.0
    """Weight of the batch-hard triplet loss."""
    triplet_margin: Positive | None = 0.3
    """Margin of the triplet loss; null for the soft margin."""
    triplet_scope: Literal["local", "global"] = "local"
    """Mine triplets in the batch of one virtual rank, or of all ranks."""
    triplet_space: Literal["raw", "unit", "neck"] = "neck"
    """Features that triplet and quadruplet loss compare; see `space`."""
    quadruplet: Weight = 0.0
    """Weight of the quadruplet loss; its first margin is `triplet_margin` (0.5 if null), its scope `triplet_scope`."""
    quadruplet_margin2: float = 0.25
    """Second margin of the quadruplet loss; smaller than the first."""
    mctl: Weight = 1.0
    """Weight of the modified centroid triplet loss."""
    ctl: Weight = 0.0
    """Weight of the centroid triplet loss."""
    w1: Fraction = 0.3
    """MCTL: weight of the pull towards the positive centroid; the push has 1 - w1 unless w2 is given."""
    w2: NonNegative | None = None
    """MCTL: weight of the push away from the nearest other centroid; null = 1 - w1."""
    margin: Positive = 1.414
    """Margin of MCTL and CTL, a distance in their `space`; sqrt(2) is that of unrelated unit vectors after the neck."""
    reading: Literal["paper", "rounds"] = "paper"
    """How MCTL and CTL choose anchors and centroids (docs/method.md)."""
    space: Literal["raw", "unit", "neck"] = "neck"
    """Features that MCTL and CTL compare: before the neck; the same divided by their norms; after the neck, divided by
    their norms, as in evaluation: unrelated identities are then about sqrt(2) apart."""
    circle: Weight = 0.0
    """Weight of the circle loss on pairs of images of all ranks."""
    circle_margin: Fraction = 0.25
    """Margin of the circle loss, on cosines."""
    circle_scale: Positive = 64.0
    """Scale of the circle loss."""
    contrastive: Weight = 0.0
    """Weight of the supervised contrastive loss on pairs of images of all ranks."""
    contrastive_temperature: Positive = 0.1
    """Temperature of the supervised contrastive loss."""
    multi_similarity: Weight = 0.0
    """Weight of the multi-similarity loss on pairs of images of all ranks."""
    pair_space: Literal["unit", "neck"] = "neck"
    """Features of which the losses on pairs take cosines; see `space`."""
    angular_margin: NonNegative = 0.0
    """Margin of ArcFace in radians, on the logit of the identity; needs `model.head` = cosine."""
    cosine_margin: NonNegative = 0.0
    """Margin of CosFace, subtracted from the cosine of the identity; needs `model.head` = cosine."""
    center: Weight = 5e-4
    """Weight of the center loss."""
    center_lr: NonNegative = 0.5
    """Step of the closed-form SGD update of the centers."""

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each loss by its name, in the order of the fields."""
        return {name: getattr(self, name) for name in weights_of(LossConfig)}

    @property
    def compared_spaces(self) -> tuple[str, ...]:
        """The spaces in which losses compare features with each other."""
        used = (
            self.space if self.mctl or self.ctl else None,
            self.triplet_space if self.triplet or self.quadruplet else None,
            self.pair_space if self.compares_pairs else None,
        )
        return tuple(dict.fromkeys(space for space in used if space is not None))

    @property
    def spaces(self) -> tuple[str, ...]:
        """The spaces in which losses use features."""
        return tuple(dict.fromkeys([*self.compared_spaces, *(["raw"] if self.center else [])]))

    @property
    def compares_pairs(self) -> bool:
        """Whether there is a loss on pairs of images."""
        return bool(self.circle or self.contrastive or self.multi_similarity)

    @property
    def quadruplet_margin(self) -> float:
        """First margin of the quadruplet loss, which has no soft version."""
        return self.triplet_margin or 0.5

    def check(self) -> None:
        if self.quadruplet and not 0 < self.quadruplet_margin2 < self.quadruplet_margin:
            raise ValueError(
                f"loss.quadruplet_margin2 = {self.quadruplet_margin2} must lie between 0 and loss.triplet_margin = "
                f"{self.quadruplet_margin}"
            )
        for name, weight, space in (
            ("margin", self.mctl or self.ctl, self.space),
            ("triplet_margin", self.triplet or self.quadruplet, self.triplet_space),
        ):
            margin = getattr(self, name)
            if weight and space != "raw" and margin is not None and margin > LONGEST_DISTANCE:
                raise ValueError(
                    f"loss.{name} = {margin} is above {LONGEST_DISTANCE:g}, the largest distance of unit vectors; "
                    f"lower it, or compare raw features (loss.{name.replace('margin', 'space')} = raw)"
                )
        if not any(self.weights.values()):
            raise ValueError(f"every loss weight is 0; give one of loss.{{{','.join(self.weights)}}}")


@dataclass
class OptimConfig(Section):
    """Optimizer and schedule."""

    algorithm: Literal["adam", "adamw", "sgd"] = "adam"
    """Adam with an L2 penalty (as in BoT), AdamW with decoupled decay, or SGD with momentum."""
    lr: Positive = 3.5e-4
    """Learning rate after the warm-up."""
    lr_rule: Literal["none", "linear", "sqrt"] = "none"
    """How `lr` grows with `batch.identities` / `reference_identities`: not at all, linearly, or by the square root."""
    reference_identities: Size = 16
    """Global number of identities in a batch for which `lr` was chosen; used by `lr_rule`."""
    head_lr_factor: Positive = 1.0
    """Learning rate of embedding, neck and classifier, as a multiple of the encoder's."""
    bias_lr_factor: Positive = 1.0
    """Learning rate of biases, as a multiple of that of weights (2 in Caffe and in BoT's code)."""
    layer_decay: Factor = 1.0
    """Factor of the learning rate for each layer of the encoder, from the heads down, e.g. 0.75; 1 = equal rates.
    Layers are blocks of a transformer or ConvNeXt, and stages of a ResNet."""
    momentum: Fraction = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov's form of the momentum of SGD."""
    weight_decay: NonNegative = 5e-4
    """L2 penalty, or the decay of AdamW."""
    decay_norm: bool = True
    """Weight decay also on biases and on the weights of normalization layers."""
    epochs: Size = 120
    """Epochs of training."""
    schedule: Literal["milestones", "cosine"] = "milestones"
    """After the warm-up: a factor of `gamma` at each milestone, or a cosine down to 0 at the end."""
    milestones: list[Count] = field(default_factory=lambda: [40, 70])
    """Numbers of finished epochs after which the learning rate is multiplied by `gamma`."""
    gamma: NonNegative = 0.1
    """Factor at each milestone."""
    warmup_epochs: Count = 10
    """Epochs over which the learning rate rises linearly."""
    warmup_factor: Fraction = 0.01
    """Fraction of `lr` at the first step."""
    clip_norm: NonNegative = 0.0
    """Clip the gradient's global norm to this; 0 = never."""
    ema: Fraction = 0.0
    """Decay, e.g. 0.999, of an exponential moving average of all weights, which is evaluated and saved as the model; at
    step t at most (1 + t) / (10 + t); 0 = no average."""

    def check(self) -> None:
        if self.ema == 1:
            raise ValueError("optim.ema = 1.0 would keep the initial weights; give less than 1, e.g. 0.999")
        if self.nesterov and (self.algorithm != "sgd" or not self.momentum):
            raise ValueError(
                f"optim.nesterov = true is for SGD with momentum, here it is {self.algorithm}, optim.momentum = "
                f"{self.momentum}; set optim.algorithm = sgd and a momentum above 0, or optim.nesterov = false"
            )


@dataclass
class EvalConfig(Section):
    """Evaluation during training."""

    every_epochs: Count = 0
    """Epochs between evaluations of the image and centroid protocols; 0 = only after the last epoch."""
    batch_size: Size = 128
    """Images per forward pass and rank."""


@dataclass
class TrackConfig(Section):
    """Logs, checkpoints and Weights & Biases."""

    every_steps: Size = 10
    """Steps between two lines of metrics.jsonl."""
    wandb: Literal["online", "offline", "off"] = "offline"
    """Weights & Biases mode; offline runs are written to the run's folder, for `wandb sync`."""
    project: str = "mctl-reid"
    """W&B project."""
    name: str = ""
    """Name in W&B; empty = the run's name, or in a sweep its knobs, as m5-w0.1-s0."""
    group: str = ""
    """W&B group of the run and its evaluations; empty = the run's name, or the sweep."""
    console: bool = True
    """Keep what the program prints in the W&B run, too."""
    keep_checkpoints: Size = 2
    """Newest checkpoints kept, in addition to the best (one is written each epoch)."""
    artifacts: bool = False
    """Send the manifest and the best checkpoint to W&B as artifacts."""
    checkpoint_steps: Count = 0
    """Steps between additional checkpoints; 0 = only at the end of each epoch."""


@dataclass
class SpeedConfig(Section):
    """Knobs that change the time of a step, and hardly its result."""

    channels_last: bool = True
    """Memory format of images and weights on CUDA that is fastest on tensor cores."""
    compile: bool = False
    """torch.compile the model: minutes at the start, then faster steps."""
    deterministic: bool = False
    """Only deterministic kernels: slower, and bit-equal results on the same GPU."""
    pin_memory: bool = True
    """Copy batches to the GPU while it computes (page-locked memory); no effect on a CPU."""
    recompute: bool = False
    """Forget a virtual rank's activations after its forward pass, and compute them again for its backward pass: the
    memory of one virtual rank instead of all, for a third more time."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of a transformer's blocks, and compute the blocks again in the backward pass: less memory,
    for a third more time."""


@dataclass
class Config(Section):
    """One training run."""

    name: str = "run"
    """Name of the run; it lives in <runs>/<name>."""
    runs: str = "runs"
    """Folder of all runs."""
    seed: Seed = 0
    """Seed of weights, plan and augmentation; 0 or more."""
    resume: Literal["never", "auto"] = "never"
    """auto: resume from this run's newest checkpoint, if there is one; never: refuse a folder with checkpoints."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: CUDA if available, otherwise the CPU; cuda: an error if not available; cpu."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Autocast; auto = bf16 on CUDA, none on CPU."""
    dry_run: bool = False
    """Check everything, train two steps, write nothing."""
    timeout_s: Size = 600
    """Seconds that a rank waits for the others before the run ends with an error."""
    stop_file: str = ""
    """The run saves a checkpoint and stops when this file appears; SIGTERM, SIGUSR1 and SIGHUP do the same."""
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

    def check(self) -> None:
        name = self.name  # of a folder that can only lie directly in `runs`
        is_plain = name.isprintable() and name == name.strip() and name.strip(".") and not {"/", "\\"} & set(name)
        if not is_plain or len(name.encode()) > MAX_NAME:
            raise ValueError(
                f"name = {name!r} must be the plain name of a folder: printable, at most {MAX_NAME} bytes, not "
                "only dots, without slashes and without spaces around it"
            )


@dataclass
class EvaluateConfig(Section):
    """One evaluation: of a run, of another system's features, or a comparison of finished reports."""

    run: str = ""
    """Folder of the training run, e.g. runs/quickstart, or hf:<org>/<name>; `--run` may be omitted."""
    checkpoint: str = "newest"
    """Which of the run's checkpoints: newest, best, the name of a folder in checkpoints/, or a path without --run."""
    data: list[str] = field(default_factory=list)
    """Shards to evaluate on, one or several folders; empty = those the run was trained on."""
    features: list[str] = field(default_factory=list)
    """Instead of a run: features of query and gallery from any system, two .npz files or folders of .npy files."""
    images: str = ""
    """Folder of the relative `paths` in feature files; empty = the folder of each file."""
    compare: list[str] = field(default_factory=list)
    """Runs or report folders to compare with the first of them, query by query."""
    out: str = ""
    """Folder of the report; empty = <run>/eval. Runs write one folder per dataset into it."""
    save_features: bool = False
    """Write query.npz and gallery.npz, which --features reads, into the report's folder."""
    baselines: list[Literal["untrained", "histogram"]] = field(default_factory=list)
    """Models to compare with the trained encoder: the untrained encoder, a colour histogram."""
    protocols: list[Literal["image", "centroid", "centroid_all", "ctl_published"]] = field(
        default_factory=lambda: ["image", "centroid", "centroid_all", "ctl_published"]
    )
    """Evaluation protocols; all are reported side by side."""
    metric: Literal["cosine", "euclidean"] = "cosine"
    """Similarity of features: cosine (normalized after any averaging), or the distance of raw features."""
    ranks: list[int] = field(default_factory=lambda: [1, 5, 10])
    """Ranks of the CMC that the tables show."""
    max_rank: Size = 50
    """Length of the CMC curve; longer if --ranks needs more."""
    rerank: bool = False
    """Add a row for each of the protocols image and centroid_all, after k-reciprocal re-ranking."""
    rerank_k1: Size = 20
    """k1: number of neighbours that must be mutual."""
    rerank_k2: Size = 6
    """k2: number of neighbours averaged in the query expansion."""
    rerank_lambda: Fraction = 0.3
    """Weight of the original distance in the final one."""
    verification: bool = False
    """Add thresholds on the cosine of two images, with true and false positive rates, and a file of them."""
    open_set: Fraction | None = None
    """Add thresholds for people who are not in the gallery: the share of identities left out; 0 = unchanged."""
    flip: bool = False
    """Flip test: features are the means of those of an image and of its mirror image; twice the time."""
    precision: Literal["no", "bf16"] = "no"
    """Autocast of the forward pass; no = float32 throughout."""
    batch_size: Size = 128
    """Images per forward pass and rank."""
    workers: Count = 2
    """Decoding processes per rank."""
    timeout_s: Size = 3600
    """Seconds that ranks wait for rank 0, which draws."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """Weights & Biases mode; auto = that of the run's training, offline for --features."""
    project: str = ""
    """W&B project; empty = that of the run's training, mctl-reid for --features."""

    def check(self) -> None:
        if not self.protocols:
            raise ValueError("--protocols is empty; give at least one of image, centroid, centroid_all, ctl_published")
        if not self.ranks or min(self.ranks) < 1:
            raise ValueError(f"--ranks {self.ranks}: the first rank is 1; give at least one rank")


def list_divisors(number: int) -> str:
    """Return the divisors of a number, the smaller ones of a large number, as text for errors."""
    shown = [str(d) for d in range(1, min(number, MAX_DIVISOR) + 1) if number % d == 0]
    return ", ".join(shown + ["..."] * (number > MAX_DIVISOR))
