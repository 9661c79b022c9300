"""The layout of a step's global batch: which rows of which rank show which identity.

Every rank knows it before the batch exists, so that counts, anchors and denominators of the losses need no
communication, and the host never waits for the device to learn a shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """One rank's view of a global batch: B rows of this rank, N rows of all W ranks, C identities.

    A rank is a process. Its rows are those of one or several virtual ranks, one after another. It sums its features in
    S *slots*, one for each of its identities; S is equal on every rank. A weight is W / M for a row that is one of the
    M terms of a mean over all ranks, and 0 for any other row: the weighted sum over this rank's rows is then the rank's
    share of the mean.
    """

    slot: Tensor
    """(B,) int64, in [0, S)."""
    identity: Tensor
    """(B,) int64: identity of each row, in [0, C)."""
    labels: Tensor
    """(C,) int64: label of each identity."""
    counts: Tensor
    """(C,) float: rows of each identity."""
    leave_out: Tensor
    """(B,) float: n / (n - 1), or 0 for an identity with n = 1 row. That many times the distance from a row to its
    identity's mean is the distance to the mean without the row."""
    anchor_weight: Tensor
    """(B,) float: weight of a row whose identity has another row."""
    push_weight: Tensor
    """(B,) float: `anchor_weight`, or 0 if the global batch has one identity."""
    triplet_weight: Tensor
    """(B,) float: weight of a row that has a positive and a negative among the rows of its virtual rank."""
    round_weight: Tensor
    """(B,) float: weight of a row, and of its centroid, in the mean over the anchors of a round, then over rounds."""
    image_weight: Tensor
    """() float: weight of every row."""
    row_identity: Tensor
    """(N,) int64: identity of the rows of all ranks, in rank order."""
    row_round: Tensor
    """(N,) int64: how many rows of the same identity come before each."""
    slots: int
    """S."""
    longest: int
    """Rows of the rank that has most."""
    start: int
    """Rows of the ranks before this one."""
    sizes: tuple[int, ...]
    """Rows of each virtual rank of this rank."""
    virtual_rank: Tensor | None = None
    """(B,) int64: which of them each row belongs to; None if there is one."""
    merge: Tensor | None = None
    """(W·S,) int64: identity of each slot of all ranks; None if there is one slot for each identity."""
    keep: Tensor | None = None
    """(N,) int64: place of each row if every rank is padded to the largest; None if all ranks have B rows."""


def build_layout(
    labels: Sequence[np.ndarray], rank: int = 0, slots: int = 0, dtype: torch.dtype = torch.float32, share: int = 1
) -> Layout:
    """Return the layout of a global batch as one rank sees it.

    Args:
        labels: of each virtual rank the labels of its rows, any int64, in any order. A label may lie on several ranks.
        rank: the rank that will use the layout.
        slots: S, at least; a constant keeps shapes constant from step to step.
        dtype: of the weights, that of the features.
        share: V / W, virtual ranks of a rank.
    """
    virtual_sizes = tuple(map(len, labels))
    labels = [np.concatenate(labels[first : first + share]) for first in range(0, len(labels), share)]
    world = len(labels)
    own = [np.unique(part, return_inverse=True) for part in labels]
    slots = max(slots, *(len(unique) for unique, _ in own))
    identities, rows, merge = _number_identities(own, slots)
    row_identity = np.concatenate(rows)
    counts = np.bincount(row_identity, minlength=len(identities))
    row_round = _count_before(row_identity)
    longest = max(map(len, labels))
    keep = np.concatenate([r * longest + np.arange(len(part)) for r, part in enumerate(labels)])

    mine = rows[rank]
    has_positive = counts[mine] >= 2
    anchors = int(counts[counts >= 2].sum())
    anchor_weight = has_positive * (world / max(anchors, 1))

    start = sum(map(len, labels[:rank]))
    here = slice(start, start + len(mine))
    is_local_anchor = _has_positive_and_negative(row_identity, np.repeat(np.arange(len(virtual_sizes)), virtual_sizes))
    triplet_weight = is_local_anchor[here] * (world / max(int(is_local_anchor.sum()), 1))
    round_weight = world * _weigh_rounds(row_identity, row_round, counts)[here]
    sizes = virtual_sizes[rank * share : (rank + 1) * share]

    def floats(values: np.ndarray | float) -> Tensor:
        return torch.as_tensor(values, dtype=dtype)

    return Layout(
        slot=torch.from_numpy(own[rank][1].astype(np.int64)),
        identity=torch.from_numpy(mine),
        labels=torch.from_numpy(identities.astype(np.int64)),
        counts=floats(counts),
        leave_out=floats(has_positive * counts[mine] / np.maximum(counts[mine] - 1, 1)),
        anchor_weight=floats(anchor_weight),
        push_weight=floats(anchor_weight * (len(identities) >= 2)),
        triplet_weight=floats(triplet_weight),
        round_weight=floats(round_weight),
        image_weight=floats(world / len(row_identity)),
        row_identity=torch.from_numpy(row_identity),
        row_round=torch.from_numpy(row_round),
        slots=slots,
        longest=longest,
        start=start,
        sizes=sizes,
        virtual_rank=None if share == 1 else torch.from_numpy(np.repeat(np.arange(share), sizes)),
        merge=None if len(identities) == world * slots else torch.from_numpy(merge.ravel()),
        keep=None if len(keep) == world * longest else torch.from_numpy(keep),
    )


def _number_identities(
    own: Sequence[tuple[np.ndarray, np.ndarray]], slots: int
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Number the identities of all ranks: in the order of their slots, or of their labels if these do not correspond.

    Args:
        own: of each rank its distinct labels, ascending, and for each row (B,) which of them it has.
        slots: S.

    Returns:
        The labels (C,); for each rank the identity of each row (B,); the identity of each slot of all ranks (W, S).
    """
    everyone = np.concatenate([unique for unique, _ in own])
    identities, of_slot = everyone, np.arange(len(everyone))
    if len(everyone) < len(own) * slots or len(np.unique(everyone)) < len(everyone):
        identities, of_slot = np.unique(everyone, return_inverse=True)
    first = np.cumsum([0] + [len(unique) for unique, _ in own])
    rows = [of_slot[start + inverse] for start, (_, inverse) in zip(first, own, strict=False)]
    merge = np.zeros((len(own), slots), dtype=np.int64)  # an empty slot adds zeros to the first identity
    for place, start, (unique, _) in zip(merge, first, own, strict=False):
        place[: len(unique)] = of_slot[start : start + len(unique)]
    return identities, rows, merge


def _count_before(values: np.ndarray) -> np.ndarray:
    """Return (N,) for each of `values` (N,) how many equal ones come before it."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    before = np.empty(len(values), dtype=np.int64)
    before[order] = np.arange(len(values)) - np.searchsorted(ordered, ordered)
    return before


def _has_positive_and_negative(identity: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Return (N,) bool: rows with a row of the same `identity` (N,), and one of another, in the same `rank` (N,)."""
    most = identity.max(initial=0) + 1
    pairs, pair, rows = np.unique(rank * most + identity, return_inverse=True, return_counts=True)
    return (rows[pair] >= 2) & (np.bincount(pairs // most)[rank] >= 2)


def _weigh_rounds(identity: np.ndarray, round_of: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return (N,) the weight of each row in the mean over the anchors of its round, then over rounds with anchors."""
    has_centroid = counts[identity] >= 2
    anchors = 2 * np.bincount(round_of, has_centroid)  # the query and its centroid
    return has_centroid / np.maximum(anchors[round_of] * np.count_nonzero(anchors), 1)
