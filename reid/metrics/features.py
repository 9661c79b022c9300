"""Features of one split with their labels."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

JUNK = -1  # pid of images that a ranking neither rewards nor punishes
UNKNOWN = -1  # camid of images without a camera: never equal to another


@dataclass
class Features:
    """Features and labels of one split: torch tensors, or numpy arrays and lists, which are converted.

    Args:
        embeddings: (N, D) as the model gives them, not normalized; kept as float32.
        pids: (N,) integers; -1 = junk.
        camids: (N,) integers; -1 = unknown.
        distractors: (N,) bool, True for images that match no query, whatever their pid. None: every pid but -1 is an
            identity, 0 too.
        taken_from: the split that these rows were taken from by `take`; None if they are all of it.

    Labels are moved to the embeddings' device. Raises ValueError on wrong shapes.
    """

    embeddings: Tensor
    pids: Tensor
    camids: Tensor
    distractors: Tensor | None = None
    taken_from: Features | None = None

    def __post_init__(self) -> None:
        given = _to_tensor("embeddings", self.embeddings, "fiu", "numbers")
        self.embeddings = given.float()
        if self.embeddings.ndim != 2:
            raise ValueError(f"embeddings have shape {tuple(self.embeddings.shape)}; give (images, dimensions)")
        self.pids = self._labels("pids", self.pids)
        self.camids = self._labels("camids", self.camids)
        if self.distractors is not None:
            flags = self._labels("distractors", self.distractors, "biu", "booleans")
            if (flags != flags.bool()).any():
                raise ValueError("distractors hold other numbers than 0 and 1; give booleans")
            self.distractors = flags.bool()
        if given.dtype == torch.float64:
            lost = (self.embeddings == 0).all(1) & (given != 0).any(1) & (self.pids != JUNK)
            if lost.any():  # what is not 0 in float32 is checked by the ranking
                raise ValueError(f"embeddings: row {int(lost.nonzero()[0])} is too small for float32; scale all rows")

    def _labels(self, name: str, values: Tensor, kinds: str = "iu", wanted: str = "integers") -> Tensor:
        given = _to_tensor(name, values, kinds, wanted)
        if given.shape != (len(self),):
            raise ValueError(f"{name} have shape {tuple(given.shape)}; {len(self)} embeddings need ({len(self)},)")
        labels = given.to(self.embeddings.device, torch.int64)
        if given.dtype == torch.uint64 and bool((labels < 0).any()):  # the conversion wraps
            raise ValueError(f"{name} hold numbers of 2**63 or more; give int64")
        return labels

    def __len__(self) -> int:
        return len(self.embeddings)

    def to(self, device: torch.device) -> Features:
        """Return the features on a device. Nothing is copied if they are there: a mapped file stays mapped."""
        return Features(self.embeddings.to(device), self.pids, self.camids, self.distractors)

    def take(self, rows: Tensor | slice) -> Features:
        """Return some rows, which keep a reference to the split: `ctl_published` needs all queries for each gallery."""
        return Features(
            self.embeddings[rows],
            self.pids[rows],
            self.camids[rows],
            None if self.distractors is None else self.distractors[rows],
            taken_from=self if self.taken_from is None else self.taken_from,
        )

    def cut(self, length: int) -> Features:
        """Return the same images with the first `length` numbers of their features."""
        return Features(self.embeddings[:, :length].contiguous(), self.pids, self.camids, self.distractors)

    def is_distractor(self) -> Tensor:
        """Return (N,) bool, all False without a mask."""
        return torch.zeros_like(self.pids, dtype=torch.bool) if self.distractors is None else self.distractors


def _to_tensor(name: str, values: Tensor, kinds: str, wanted: str) -> Tensor:
    """Return numbers of a tensor, an array or a list as a tensor without gradient; memory is shared if possible.

    kinds: NumPy's letters of the types allowed. Raises ValueError, which names `name`, on another type.
    """
    if np.ma.isMaskedArray(values):
        raise ValueError(f"{name} are a masked array; give one without a mask")
    if isinstance(values, Tensor):
        if values.layout != torch.strided or values.is_meta or values.is_quantized:
            raise ValueError(f"{name} are a tensor that is sparse, quantized or without values; give a plain one")
        dtype = values.dtype
        kind = "b" if dtype == torch.bool else "c" if dtype.is_complex else "f" if dtype.is_floating_point else "i"
    else:
        try:
            values = np.asarray(values)
        except ValueError as error:
            raise ValueError(f"{name} are no array ({error}); give {wanted}") from error
        values = values if values.size else values.astype(np.uint8)  # an empty list arrives as float
        dtype, kind = values.dtype, values.dtype.kind
    if kind not in kinds or dtype.itemsize > 8:  # NumPy's long double is no type of torch
        raise ValueError(f"{name} are {dtype}; give {wanted}")
    if isinstance(values, np.ndarray):  # torch reads neither another byte order nor negative strides
        values = values.astype(dtype.newbyteorder("="), copy=any(stride < 0 for stride in values.strides))
    with warnings.catch_warnings(action="ignore"):  # torch warns of memory that cannot be written; nothing writes
        return torch.as_tensor(values).detach()
