"""How well the tensors of a file fit an encoder, by their names and shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from reid.model.positions import POSITIONS, TOKENS

ENOUGH = 0.9  # share of the encoder's numbers that a file must hold, unless model.weights_partial
# Follows from the architecture, or starts at a sensible value: step counters, GeM's exponent, Swin's index tables.
DERIVED = ("num_batches_tracked", "avgpool.p", "relative_position_index", "attn_mask")
# ImageNet classifiers, which no encoder here has. ConvNeXt's normalization under classifier.0 is loaded nevertheless.
# Normalizations of SOLIDER's earlier stages, for other tasks.
HEADS = ("fc.", "classifier.", "head.", "heads.", "norm0.", "norm1.", "norm2.")
# Names in files of earlier versions of torchvision, which its published files still have.
OLD_NAMES = ((".mlp.linear_1.", ".mlp.0."), (".mlp.linear_2.", ".mlp.3."))


def is_derived(name: str) -> bool:
    """Return whether a tensor does not count: files may lack it."""
    return name.endswith(DERIVED)


@dataclass(frozen=True)
class Fit:
    """The tensors of an encoder that a file has, in the encoder's order. Derived tensors are left out."""

    fitting: list[str] = field(default_factory=list)
    """Of the same name and shape; position embeddings also if they can be resized."""
    other_shape: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    """Tensors of the file that belong to the encoder's layers or tokens, and that the encoder does not have."""
    numbers: int = 0
    """Elements of the fitting tensors."""
    of_numbers: int = 0
    """Elements of the encoder's tensors."""

    @property
    def share(self) -> float:
        """Part of the encoder's numbers that fit."""
        return self.numbers / max(self.of_numbers, 1)

    @property
    def percent(self) -> str:
        """The share as text, rounded down: 100% means all."""
        return f"{math.floor(1000 * self.share) / 10:.1f}%"

    @property
    def of_tensors(self) -> int:
        return len(self.fitting) + len(self.other_shape) + len(self.missing)

    @property
    def rank(self) -> tuple[int, int, int]:
        """Larger for a better fit."""
        return self.numbers, len(self.fitting), -len(self.foreign)

    @property
    def is_good(self) -> bool:
        """Whether the file is of this encoder: enough numbers, no other shape, and no layer that the encoder lacks."""
        return self.share >= ENOUGH and not self.other_shape and not self.foreign


def judge(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Fit:
    """Compare the tensors of a file, by the encoder's names, with those of the encoder (`state_dict`)."""
    fit = Fit(
        foreign=[name for name in tensors if name not in own and _changes_features(name, own)],
        of_numbers=sum(value.numel() for name, value in own.items() if not is_derived(name)),
    )
    numbers = 0
    for name, value in own.items():
        if is_derived(name):
            continue
        fits = name in tensors and (tensors[name].shape == value.shape or _is_resizable(name, tensors[name], value))
        (fit.fitting if fits else fit.other_shape if name in tensors else fit.missing).append(name)
        numbers += value.numel() if fits else 0
    return Fit(fit.fitting, fit.other_shape, fit.missing, fit.foreign, numbers, fit.of_numbers)


def present_name(name: str, own: Mapping[str, Tensor]) -> str:
    """Return the name that a tensor has today in an encoder, of its name in a file."""
    today = name
    for old, new in OLD_NAMES:
        today = today.replace(old, new)
    return today if name not in own and today in own else name


def _is_resizable(name: str, stored: Tensor, own: Tensor) -> bool:
    return name in POSITIONS and stored.ndim == own.ndim == 3 and stored.shape[2] == own.shape[2] and stored.numel() > 0


def _changes_features(name: str, own: Iterable[str]) -> bool:
    """Return whether a tensor that the encoder lacks would change its features: it belongs to a layer or a token.

    A classifier, a projection, or a token for another purpose (mask_token, sie_embed) would not.
    """
    if name.startswith(HEADS) or is_derived(name):
        return False
    layers = {re.sub(r"\d+", "", key.split(".")[0]) for key in own} | {*TOKENS, "norm_pre"}
    return re.sub(r"\d+", "", name.split(".")[0]) in layers
