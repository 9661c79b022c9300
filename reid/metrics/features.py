"""Features of one split with their labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

JUNK = -1  # pid of images that nobody should find or miss

UNKNOWN = -1  # camid of images without a camera: never equal to another


@dataclass
class Features:
    """One split's features and labels: torch tensors, or numpy arrays and lists, which are converted.

    embeddings (N, D) as the model gives them, not normalised; kept as float32. pids (N,) int64, -1 = junk.
    camids (N,) int64, -1 = unknown. distractors (N,) bool or None: images that match nobody, whatever their pid; with
    None every pid but -1 is an identity, 0 too. Labels go to the embeddings' device. ValueError on wrong shapes.
    whole: the split that these rows were taken from (`take`), None where they are all of it.
    """

    embeddings: Tensor
    pids: Tensor
    camids: Tensor
    distractors: Tensor | None = None
    whole: Features | None = None

    def __post_init__(self) -> None:
        self.embeddings = torch.as_tensor(self.embeddings).detach().float()
        if self.embeddings.ndim != 2:
            raise ValueError(f"embeddings have shape {tuple(self.embeddings.shape)}; give (images, dimensions)")
        self.pids = self._labels("pids", self.pids)
        self.camids = self._labels("camids", self.camids)
        if self.distractors is not None:
            self.distractors = self._labels("distractors", self.distractors).bool()

    def _labels(self, name: str, values: Tensor) -> Tensor:
        labels = torch.as_tensor(values, device=self.embeddings.device)
        if labels.shape != (len(self),):
            raise ValueError(f"{name} have shape {tuple(labels.shape)}; {len(self)} embeddings need ({len(self)},)")
        if len(labels) and (labels.is_floating_point() or labels.is_complex()):  # an empty list arrives as float
            raise ValueError(f"{name} are {labels.dtype}; give integers")
        return labels.long()

    def __len__(self) -> int:
        return len(self.embeddings)

    def take(self, rows: Tensor | slice) -> Features:
        """Some rows, which remember the whole split: under `ctl_published` a query's gallery depends on the others."""
        return Features(
            self.embeddings[rows],
            self.pids[rows],
            self.camids[rows],
            None if self.distractors is None else self.distractors[rows],
            whole=self if self.whole is None else self.whole,
        )

    def is_distractor(self) -> Tensor:
        """(N,) bool, all False where no mask was given."""
        return torch.zeros_like(self.pids, dtype=torch.bool) if self.distractors is None else self.distractors
