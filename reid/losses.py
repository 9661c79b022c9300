"""Every loss of the objective, exact for any number of ranks.

A loss returns this rank's *share*: the mean of the shares over ranks is the loss of one process on the concatenated
batch, and DDP's averaging makes the gradient that process's gradient (docs/exactness.md). In a world of one the share
is the loss. Nothing here leaves early on a data-dependent condition: every rank builds the same graph, so that every
rank enters the same collectives backward; what does not count is masked by a weight of zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid.centroids import Centroids, gather_centroids
from reid.distributed import gather_padded, gather_sizes, global_mean, rank, world_size

READINGS = ("paper", "rounds")
SCOPES = ("local", "global")


@dataclass(frozen=True)
class Anchors:
    """What the centroid losses see: this rank's anchors with their two distances.

    d_ap (A,) to the positive centroid, d_an (A,) to the nearest negative, with gradient; has_negative (A,) bool;
    nearest (A,) int64: which identity of the global batch that negative is; weight (A,): 1 / (number of anchors of the
    global batch), or 0 for a row that is no anchor.
    """

    d_ap: Tensor
    d_an: Tensor
    has_negative: Tensor
    nearest: Tensor
    weight: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """This rank's share of the mean of `values` (A,) over the anchors of all ranks."""
        return world_size() * (self.weight * values).sum()

    def in_units_of(self, unit: Tensor) -> Anchors:
        """The same anchors with distances divided by `unit` (a scalar without gradient)."""
        return replace(self, d_ap=self.d_ap / unit, d_an=self.d_an / unit)


def modified_centroid_triplet(
    features: Tensor,
    pids: Tensor,
    w1: float = 0.1,
    margin: float = 0.5,
    reading: str = "paper",
    normalize: bool = False,
    w2: float | None = None,
) -> Tensor:
    """Modified centroid triplet loss (MCTL; Alnissany & Dayoub, J. Big Data 10:74, 2023).

        L = mean over anchors A of  w1 * d(A, c_p)^2 + w2 * max(0, margin - min_N d(A, c_N))^2

    features (B, D) before the neck; pids (B,) int64. Returns a scalar (this rank's share). c_p is the mean of the
    anchor's identity without the anchor, c_N the mean of another identity, both over the global batch; d is Euclidean
    on raw features, or on unit vectors with `normalize`. w2 is 1 - w1 unless given. An identity with one image in the
    global batch gives no anchor and stays a negative. With one identity in the batch the pull term is left alone.
    `reading="rounds"`: the same two terms inside the K rounds of `centroid_triplet`.
    """
    anchors = centroid_anchors(features, pids, reading, normalize)
    return modified_centroid_triplet_of(anchors, w1, margin, w2)


def modified_centroid_triplet_of(anchors: Anchors, w1: float, margin: float, w2: float | None = None) -> Tensor:
    """MCTL of distances already found; see `modified_centroid_triplet`."""
    if not 0.0 <= w1 <= 1.0:
        raise ValueError(f"w1 = {w1} lies outside [0, 1]; the paper uses 0.1")
    _check_margin(margin)
    w2 = 1.0 - w1 if w2 is None else w2
    push = F.relu(margin - anchors.d_an).square() * anchors.has_negative
    return anchors.mean(w1 * anchors.d_ap.square() + w2 * push)


def centroid_triplet(
    features: Tensor, pids: Tensor, margin: float = 0.5, reading: str = "paper", normalize: bool = False
) -> Tensor:
    """Centroid triplet loss (CTL; Wieczorek, Rychalska & Dąbrowski, ICONIP 2021).

        L = mean over anchors A of  max(0, d(A, c_p) - min_N d(A, c_N) + margin)

    Arguments and result as `modified_centroid_triplet`. Two readings:
    paper: anchors are the samples, c_p leaves the anchor out, c_N are full means.
    rounds: what the authors' code does: in round i each identity offers its i-th image as the query and the mean of
    its other images as the centroid; batch-hard triplet over queries and centroids, both being anchors; the mean is
    over the anchors of a round, then over rounds.
    """
    return centroid_triplet_of(centroid_anchors(features, pids, reading, normalize), margin)


def centroid_triplet_of(anchors: Anchors, margin: float) -> Tensor:
    """CTL of distances already found; see `centroid_triplet`."""
    _check_margin(margin)
    return anchors.mean(F.relu(anchors.d_ap - anchors.d_an + margin) * anchors.has_negative)


def centroid_anchors(
    features: Tensor, pids: Tensor, reading: str = "paper", normalize: bool = False, centroids: Centroids | None = None
) -> Anchors:
    """This rank's anchors for CTL and MCTL. `centroids`, when at hand, are those of the same (normalised) features."""
    if reading not in READINGS:
        raise ValueError(f"reading = {reading!r}; choose one of {', '.join(READINGS)}")
    _check_batch(features, pids)
    with torch.autocast(features.device.type, enabled=False):
        features = as_float(features)
        if normalize:
            features = F.normalize(features, dim=1)
        if reading == "rounds":
            return _anchors_in_rounds(features, pids)
        return _anchors_of_samples(features, pids, centroids or gather_centroids(features, pids))


def _anchors_of_samples(features: Tensor, pids: Tensor, centroids: Centroids) -> Anchors:
    own = centroids.index(pids)
    means = centroids.means
    nearest, has_negative = _nearest(
        features, means, forbidden=own[:, None] == torch.arange(len(means), device=own.device)
    )
    is_anchor = centroids.counts[own] >= 2
    num_anchors = centroids.counts[centroids.counts >= 2].sum().clamp(min=1)
    return Anchors(
        d_ap=euclidean(features, centroids.leave_one_out(features, own)),
        d_an=euclidean(features, means[nearest]),
        has_negative=has_negative,
        nearest=nearest,
        weight=is_anchor / num_anchors,
    )


def _anchors_in_rounds(features: Tensor, pids: Tensor) -> Anchors:
    """All K rounds at once: N queries and N centroids of all ranks, of which only those of one round meet."""
    sizes = gather_sizes(len(features), features.device)
    queries, all_pids = gather_padded(features, sizes), gather_padded(pids, sizes)
    unique, row_of, counts = torch.unique(all_pids, return_inverse=True, return_counts=True)
    round_of = _occurrence(row_of, counts)
    sums = queries.new_zeros((len(unique), features.shape[1])).index_add(0, row_of, queries)
    others = Centroids(sums, counts.to(features.dtype), unique).leave_one_out(queries, row_of)
    has_centroid = counts[row_of] >= 2

    start = sum(sizes[: rank()])
    mine = slice(start, start + len(features))
    entries = torch.cat([queries, others])
    anchors = torch.cat([queries[mine], others[mine]])
    another_round = round_of[mine].repeat(2)[:, None] != round_of.repeat(2)
    same_identity = row_of[mine].repeat(2)[:, None] == row_of.repeat(2)
    absent = ~torch.cat([torch.ones_like(has_centroid), has_centroid])
    nearest, has_negative = _nearest(anchors, entries, forbidden=another_round | same_identity | absent)

    # As torch.bincount with weights, which adds in no fixed order on CUDA; there are at most as many rounds as rows.
    anchors_per_round = 2 * features.new_zeros(len(round_of)).index_add(0, round_of, has_centroid.to(features.dtype))
    num_rounds = (anchors_per_round > 0).sum().clamp(min=1)
    weight = has_centroid[mine] / (anchors_per_round[round_of[mine]].clamp(min=1) * num_rounds)
    return Anchors(
        d_ap=euclidean(queries[mine], others[mine]).repeat(2),
        d_an=euclidean(anchors, entries[nearest]),
        has_negative=has_negative,
        nearest=row_of.repeat(2)[nearest],
        weight=weight.repeat(2),
    )


def _occurrence(column: Tensor, counts: Tensor) -> Tensor:
    """For each row (N,) how many rows of the same column come before it."""
    order = torch.argsort(column, stable=True)
    first = torch.cumsum(counts, dim=0) - counts
    occurrence = torch.empty_like(column)
    occurrence[order] = torch.arange(len(column), device=column.device) - first[column[order]]
    return occurrence


def batch_hard_triplet(features: Tensor, pids: Tensor, margin: float | None = 0.3, scope: str = "local") -> Tensor:
    """Batch-hard triplet loss (Hermans, Beyer & Leibe, 2017).

        L = mean over anchors of  max(0, max_p d(a, p) - min_n d(a, n) + margin);  margin None: softplus(d_ap - d_an)

    features (B, D); pids (B,) int64. `scope="local"` mines in this rank's batch, "global" in that of all ranks. Rows
    without a positive or without a negative are no anchors; the mean is over the anchors of all ranks.
    """
    if margin is not None:
        _check_margin(margin)
    with torch.autocast(features.device.type, enabled=False):
        hard = _mine_hardest(features, pids, scope)
        gap = hard.d_ap - hard.d_an
        values = F.softplus(gap) if margin is None else F.relu(gap + margin)
        return global_mean((values * hard.is_anchor).sum(), hard.is_anchor.sum())


def quadruplet(
    features: Tensor, pids: Tensor, margin: float = 0.5, margin2: float = 0.25, scope: str = "local"
) -> Tensor:
    """Quadruplet loss (Chen et al., CVPR 2017) in batch-hard form.

        L = mean over anchors of  max(0, d(a, p) - d(a, n1) + margin) + max(0, d(a, p) - d(n1, n2) + margin2)

    p is the farthest positive, n1 the nearest negative of the anchor, n2 the image nearest to n1 of a third identity;
    margin2 < margin, so that the second term, which does not touch the anchor's own negatives, stays the weaker one.
    Distances are Euclidean on raw features. With two identities in the batch there is no n2 and no second term.
    Arguments and anchors as `batch_hard_triplet`.
    """
    _check_margin(margin)
    if not 0 < margin2 < margin:
        raise ValueError(f"margin2 = {margin2} must lie between 0 and margin = {margin}")
    with torch.autocast(features.device.type, enabled=False):
        hard = _mine_hardest(features, pids, scope)
        n1, n1_pids = hard.candidates[hard.nearest], hard.candidate_pids[hard.nearest]
        taken = (pids[:, None] == hard.candidate_pids) | (n1_pids[:, None] == hard.candidate_pids)
        n2, has_third = _nearest(n1.detach(), hard.candidates, forbidden=taken)
        second = F.relu(hard.d_ap - euclidean(n1, hard.candidates[n2]) + margin2) * has_third
        values = F.relu(hard.d_ap - hard.d_an + margin) + second
        return global_mean((values * hard.is_anchor).sum(), hard.is_anchor.sum())


@dataclass(frozen=True)
class _Hardest:
    """Farthest positive and nearest negative of each of this rank's rows among N candidates.

    d_ap, d_an (B,) with gradient; nearest (B,) index of the negative; is_anchor (B,) bool: has both.
    candidates (N, D) with gradient and candidate_pids (N,): this rank's rows, or those of all ranks.
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
    _check_batch(features, pids)
    features = as_float(features)
    candidates, candidate_pids, start = features, pids, 0
    if scope == "global":
        sizes = gather_sizes(len(features), features.device)
        candidates, candidate_pids = gather_padded(features, sizes), gather_padded(pids, sizes)
        start = sum(sizes[: rank()])
    same = pids[:, None] == candidate_pids
    itself = torch.zeros_like(same)
    itself.diagonal(start).fill_(True)
    hardest, has_positive = _nearest(features, candidates, forbidden=~same | itself, farthest=True)
    nearest, has_negative = _nearest(features, candidates, forbidden=same)
    return _Hardest(
        d_ap=euclidean(features, candidates[hardest]),
        d_an=euclidean(features, candidates[nearest]),
        nearest=nearest,
        is_anchor=has_positive & has_negative,
        candidates=candidates,
        candidate_pids=candidate_pids,
    )


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy with label smoothing (Szegedy et al., 2016): targets (1 - s) * onehot + s / C.

    logits (B, C); labels (B,) in [0, C). The mean is over the images of all ranks.
    """
    with torch.autocast(logits.device.type, enabled=False):
        total = F.cross_entropy(as_float(logits), labels, label_smoothing=smoothing, reduction="sum")
        return global_mean(total, torch.full((), float(len(labels)), device=labels.device))


class CenterLoss(nn.Module):
    """Center loss (Wen et al., ECCV 2016): L = sum_i |f_i - c_{y_i}|^2 / B, with one learned center per identity.

    The centers (C, D) are a float32 buffer, updated in closed form by plain SGD on the *unweighted* loss from sums
    over all ranks: equal on every rank, outside every gradient scaler, saved with the model.
    """

    centers: Tensor

    def __init__(self, num_classes: int, dim: int, lr: float = 0.5, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.lr = lr
        self.register_buffer("centers", torch.randn(num_classes, dim, generator=generator))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """features (B, D), labels (B,) in [0, C): this rank's share of the loss."""
        with torch.autocast(features.device.type, enabled=False):
            gaps = as_float(features) - self.centers[labels]
            return global_mean(gaps.square().sum(), torch.full((), float(len(labels)), device=labels.device))

    @torch.no_grad()
    def update(self, centroids: Centroids) -> None:
        """One SGD step c_y -= lr * 2 * (n_y c_y - S_y) / B from the sums S and counts n of the global batch.

        A center that the step would make infinite or NaN (features that overflowed) stays where it is.
        """
        rows = self.centers[centroids.pids]
        sums, counts = centroids.sums.detach().to(rows.dtype), centroids.counts.to(rows.dtype)
        gradient = 2 * (counts[:, None] * rows - sums) / counts.sum()
        moved = rows - self.lr * gradient
        self.centers[centroids.pids] = torch.where(moved.isfinite().all(dim=1, keepdim=True), moved, rows)


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Distances (...,) between rows of a and b (..., D), from direct differences, with gradient 0 at distance 0.

    x^2 + y^2 - 2xy would lose the digits of small distances at the norms of raw ResNet features.
    """
    squared = (a - b).square().sum(dim=-1)
    nonzero = squared > 0
    return torch.where(nonzero, squared, torch.ones_like(squared)).sqrt() * nonzero


@torch.no_grad()
def _nearest(anchors: Tensor, candidates: Tensor, forbidden: Tensor, farthest: bool = False) -> tuple[Tensor, Tensor]:
    """Index of the nearest (or farthest) allowed candidate of each anchor, and whether there is one.

    anchors (..., A, D), candidates (..., N, D), forbidden (..., A, N). Mining needs no gradient, so no (A, N, D) array
    and no graph are kept; the chosen pairs' distances are then taken with `euclidean`. Here x^2 + y^2 - 2xy is safe:
    in float64 it errs by 1e-13 of the squared norm, less than direct differences in float32, at a product's cost.
    """
    middle = candidates.mean(dim=-2, keepdim=True)
    a, b = (anchors - middle).double(), (candidates - middle).double()
    squares = a.square().sum(dim=-1)[..., :, None] + b.square().sum(dim=-1)[..., None, :]
    distances = squares - 2 * a @ b.transpose(-1, -2)
    distances = distances.masked_fill(forbidden, -torch.inf if farthest else torch.inf)
    best = distances.argmax(dim=-1) if farthest else distances.argmin(dim=-1)
    return best, ~forbidden.all(dim=-1)


def as_float(tensor: Tensor) -> Tensor:
    """float32 at least: halves are widened, float64 stays (the exactness tests use it)."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _check_batch(features: Tensor, pids: Tensor) -> None:
    if features.ndim != 2 or pids.ndim != 1 or len(features) != len(pids):
        raise ValueError(
            "features must be (B, D) and pids (B,), with the same B; "
            f"got {tuple(features.shape)} and {tuple(pids.shape)}"
        )


def _check_margin(margin: float) -> None:
    if not margin > 0:
        raise ValueError(f"margin = {margin} must be greater than 0")
