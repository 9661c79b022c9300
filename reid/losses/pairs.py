"""Losses that compare each image with all images of the global batch by their cosines: alternatives to triplets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reid.config import LossConfig
from reid.losses.gather import GlobalBatch, find_global_batch

NEVER = -1e9  # exponent of a pair that does not count: exp gives 0, also if no pair of a row counts


@dataclass(frozen=True)
class Pairs:
    """All pairs of a row of this rank and an image of any rank; a row is no pair with itself."""

    cosine: Tensor
    """(B, N), with gradient."""
    same: Tensor
    """(B, N) bool, pairs of one identity."""
    other: Tensor
    """(B, N) bool, pairs of two identities."""
    weight: Tensor
    """(B,) weight of each row in the mean over all rows, of all ranks, that have pairs of both kinds; 0 for others."""


def find_pairs(batch: GlobalBatch, space: str) -> Pairs:
    """Return the pairs of a global batch, compared in a space of unit vectors."""
    layout, rows = batch.layout, batch.features[space]
    same = layout.identity[:, None] == layout.row_identity
    is_itself = (
        torch.arange(len(layout.row_identity), device=rows.device)
        == (torch.arange(layout.start, layout.start + len(rows), device=rows.device)[:, None])
    )
    return Pairs(rows @ batch.images[space].T, same & ~is_itself, ~same, layout.push_weight)


def circle(
    features: Tensor, pids: Tensor, margin: float = LossConfig.circle_margin, scale: float = LossConfig.circle_scale
) -> Tensor:
    """Circle loss (Sun et al., CVPR 2020) on pairs.

        L = mean over rows of  log(1 + sum_n exp(s a_n (c_n - m)) * sum_p exp(-s a_p (c_p - 1 + m)))

    c_p are the cosines with the other images of the identity, c_n those with images of other identities; their weights
    a_p = max(0, 1 + m - c_p) and a_n = max(0, c_n + m) are without gradient. Rows without a positive or without a
    negative do not count.

    Args:
        features: (B, D), of any norm.
        pids: (B,) int64.
        margin: m, from 0 to 1.
        scale: s, greater than 0.

    Returns:
        A scalar, this rank's share.

    Raises:
        ValueError: margin or scale is out of range, or the shapes do not fit.
    """
    return circle_of(_pairs_of(features, pids), margin, scale)


def circle_of(pairs: Pairs, margin: float, scale: float) -> Tensor:
    """Compute the circle loss from pairs; see `circle`."""
    if not 0 <= margin <= 1:
        raise ValueError(f"margin = {margin} lies outside [0, 1]; the paper uses 0.25")
    if not scale > 0:
        raise ValueError(f"scale = {scale} must be greater than 0")
    cosine, fixed = pairs.cosine, pairs.cosine.detach()
    pull = -scale * F.relu(1 + margin - fixed) * (cosine - 1 + margin)
    push = scale * F.relu(fixed + margin) * (cosine - margin)
    total = _log_sum(pull, pairs.same) + _log_sum(push, pairs.other)
    return pairs.weight.dot(F.softplus(total))


def supervised_contrastive(
    features: Tensor, pids: Tensor, temperature: float = LossConfig.contrastive_temperature
) -> Tensor:
    """Supervised contrastive loss (Khosla et al., NeurIPS 2020), with the mean outside the logarithm.

        L = mean over rows of  mean over p of  -log(exp(c_p / t) / sum over all other images of exp(c / t))

    temperature: t, greater than 0, else ValueError. Other arguments, and rows that do not count, as in `circle`.
    """
    return supervised_contrastive_of(_pairs_of(features, pids), temperature)


def supervised_contrastive_of(pairs: Pairs, temperature: float) -> Tensor:
    """Compute the supervised contrastive loss from pairs; see `supervised_contrastive`."""
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature} must be greater than 0")
    logits = pairs.cosine / temperature
    log_p = logits - _log_sum(logits, pairs.same | pairs.other)[:, None]
    positives = pairs.same.sum(dim=1).clamp(min=1)
    return -pairs.weight.dot((log_p * pairs.same).sum(dim=1) / positives)


def multi_similarity(features: Tensor, pids: Tensor) -> Tensor:
    """Multi-similarity loss (Wang et al., CVPR 2019), on cosines c as in `circle`.

        L = mean over rows of  log(1 + sum_p exp(-alpha (c_p - base))) / alpha
                             + log(1 + sum_n exp(beta (c_n - base))) / beta

    Only pairs that are hard count: a positive that is at most `margin` nearer than the nearest negative, and a negative
    that is at most `margin` farther than the farthest positive. Arguments, and rows that do not count, as in `circle`.
    alpha, base, beta and margin are the defaults of `multi_similarity_of`; call that for others.
    """
    return multi_similarity_of(_pairs_of(features, pids))


def multi_similarity_of(
    pairs: Pairs, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, margin: float = 0.1
) -> Tensor:
    """Compute the multi-similarity loss from pairs; see `multi_similarity`."""
    cosine, fixed = pairs.cosine, pairs.cosine.detach()
    nearest_other = fixed.masked_fill(~pairs.other, -torch.inf).amax(dim=1, keepdim=True)
    farthest_same = fixed.masked_fill(~pairs.same, torch.inf).amin(dim=1, keepdim=True)
    hard_same = pairs.same & (fixed - margin < nearest_other)
    hard_other = pairs.other & (fixed + margin > farthest_same)
    pull = F.softplus(_log_sum(-alpha * (cosine - base), hard_same)) / alpha
    push = F.softplus(_log_sum(beta * (cosine - base), hard_other)) / beta
    return pairs.weight.dot(pull + push)


def _log_sum(exponents: Tensor, counted: Tensor) -> Tensor:
    """Return (B,) the logarithm of the sum of exp(exponents) (B, N) over the pairs `counted` (B, N)."""
    return exponents.masked_fill(~counted, NEVER).logsumexp(dim=1)


def _pairs_of(features: Tensor, pids: Tensor) -> Pairs:
    with torch.autocast(features.device.type, enabled=False):
        return find_pairs(find_global_batch(features, pids, "unit", shares_images=True), "unit")
