"""Batch-hard triplet and quadruplet losses, mined in the batch of one rank or of all ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reid.config import LossConfig
from reid.distributed import gather_padded, gather_sizes, global_mean, rank
from reid.losses.distances import as_float, check_batch, check_margin, euclidean, find_nearest

SCOPES = ("local", "global")


def batch_hard_triplet(
    features: Tensor,
    pids: Tensor,
    margin: float | None = LossConfig.triplet_margin,
    scope: str = "local",
    diagnostics: dict[str, Tensor] | None = None,
) -> Tensor:
    """Batch-hard triplet loss (Hermans, Beyer & Leibe, 2017).

        L = mean over anchors of  max(0, max_p d(a, p) - min_n d(a, n) + margin);  margin None: softplus(d_ap - d_an)

    Rows without a positive or without a negative are not anchors; the mean is over the anchors of all ranks.

    Args:
        features: (B, D).
        pids: (B,) int64.
        margin: greater than 0, or None for the soft margin.
        scope: local mines in this rank's batch, global in that of all ranks.
        diagnostics: receives triplet_d_ap and triplet_d_an, the shares of the mean distances, without gradient.

    Returns:
        A scalar, this rank's share.
    """
    if margin is not None:
        check_margin(margin)
    with torch.autocast(features.device.type, enabled=False):
        hard = _mine_hardest(features, pids, scope)
        gap = hard.d_ap - hard.d_an
        values = F.softplus(gap) if margin is None else F.relu(gap + margin)
        sums = (torch.stack([values, hard.d_ap.detach(), hard.d_an.detach()]) * hard.is_anchor).sum(dim=1)
        loss, d_ap, d_an = global_mean(sums, hard.is_anchor.sum())  # one all-reduce for all
        if diagnostics is not None:
            diagnostics |= {"triplet_d_ap": d_ap.detach(), "triplet_d_an": d_an.detach()}
        return loss


def quadruplet(
    features: Tensor,
    pids: Tensor,
    margin: float = 0.5,
    margin2: float = LossConfig.quadruplet_margin2,
    scope: str = "local",
) -> Tensor:
    """Quadruplet loss (Chen et al., CVPR 2017) in batch-hard form.

        L = mean over anchors of  max(0, d(a, p) - d(a, n1) + margin) + max(0, d(a, p) - d(n1, n2) + margin2)

    p is the farthest positive of the anchor, n1 its nearest negative, and n2 the image of a third identity that is
    nearest to n1. margin2 < margin keeps the second term, which does not involve the anchor's negatives, the weaker
    one. With two identities in the batch there is no second term. Other arguments as for `batch_hard_triplet`.
    """
    check_margin(margin)
    if not 0 < margin2 < margin:
        raise ValueError(f"margin2 = {margin2} must lie between 0 and margin = {margin}")
    with torch.autocast(features.device.type, enabled=False):
        hard = _mine_hardest(features, pids, scope)
        n1, n1_pids = hard.candidates[hard.nearest], hard.candidate_pids[hard.nearest]
        taken = (pids[:, None] == hard.candidate_pids) | (n1_pids[:, None] == hard.candidate_pids)
        n2, has_third = find_nearest(n1.detach(), hard.candidates, forbidden=taken)
        second = F.relu(hard.d_ap - euclidean(n1, hard.candidates[n2]) + margin2) * has_third
        values = F.relu(hard.d_ap - hard.d_an + margin) + second
        return global_mean((values * hard.is_anchor).sum(), hard.is_anchor.sum())


@dataclass(frozen=True)
class _Hardest:
    """Farthest positive and nearest negative of each of this rank's rows, among N candidates.

    d_ap, d_an (B,), with gradient. nearest (B,): index of the negative. is_anchor (B,) bool: has both. candidates
    (N, D), with gradient, and candidate_pids (N,): the rows of this rank, or of all ranks.
    """

    d_ap: Tensor
    d_an: Tensor
    nearest: Tensor
    is_anchor: Tensor
    candidates: Tensor
    candidate_pids: Tensor


def _mine_hardest(features: Tensor, pids: Tensor, scope: str) -> _Hardest:
    if scope not in SCOPES:
        raise ValueError(f"scope = {scope!r}; choose one of {', '.join(SCOPES)}")
    check_batch(features, pids)
    features = as_float(features)
    candidates, candidate_pids, start = features, pids, 0
    if scope == "global":
        sizes = gather_sizes(len(features), features.device)
        candidates, candidate_pids = gather_padded(features, sizes), gather_padded(pids, sizes)
        start = sum(sizes[: rank()])
    same = pids[:, None] == candidate_pids
    itself = torch.zeros_like(same)
    itself.diagonal(start).fill_(True)
    hardest, has_positive = find_nearest(features, candidates, forbidden=~same | itself, farthest=True)
    nearest, has_negative = find_nearest(features, candidates, forbidden=same)
    return _Hardest(
        d_ap=euclidean(features, candidates[hardest]),
        d_an=euclidean(features, candidates[nearest]),
        nearest=nearest,
        is_anchor=has_positive & has_negative,
        candidates=candidates,
        candidate_pids=candidate_pids,
    )
