"""Losses of one feature and its identity: cross-entropy and center loss."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid.config import LossConfig
from reid.data.layout import Layout
from reid.distributed import world_size
from reid.losses.distances import as_float
from reid.losses.gather import find_layout


def cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: float = LossConfig.smoothing, layout: Layout | None = None
) -> Tensor:
    """Cross-entropy with label smoothing (Szegedy et al., 2016): targets (1 - s) * onehot + s / C.

    Args:
        logits: (B, C).
        labels: (B,) int64, in [0, C).
        layout: of the global batch; default: found, for which the host waits for the device.

    Returns:
        This rank's share of the mean over the images of all ranks.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = as_float(logits)
        layout = layout or find_layout(labels, logits.dtype)
        log_p = F.log_softmax(logits, dim=1)
        of_labels = F.nll_loss(log_p, labels, reduction="sum")
        total = torch.add((1 - smoothing) * of_labels, log_p.sum(), alpha=-smoothing / logits.shape[1])
        return layout.image_weight * total


def with_margin(
    logits: Tensor, labels: Tensor, angular: float = 0.0, cosine: float = 0.0, temperature: float = 1.0
) -> Tensor:
    """Return the logits of cosines with a margin for the identity of each row: (cos(a + angular) - cosine) / T.

    An angular margin is ArcFace (Deng et al., CVPR 2019), a cosine margin CosFace (Wang et al., CVPR 2018). Where the
    angle would exceed pi the cosine continues as a line, so that the logit still falls as the angle a grows.

    Args:
        logits: (B, C), cosines divided by the temperature T.
        labels: (B,) int64.
        angular: in radians, below pi.
        cosine: at least 0.
        temperature: T.
    """
    own = labels[:, None]
    cos = (logits.gather(1, own) * temperature).clamp(-1, 1)
    sin = (1 - cos.square()).clamp(min=1e-12).sqrt()
    moved = cos * math.cos(angular) - sin * math.sin(angular)
    moved = torch.where(cos > -math.cos(angular), moved, cos - angular * math.sin(angular))
    return logits.scatter(1, own, (moved - cosine) / temperature)


class CenterLoss(nn.Module):
    """Center loss (Wen et al., ECCV 2016): L = sum_i |f_i - c_{y_i}|^2 / N over the N images of all ranks.

    c_y is the learned center of identity y. The centers (C, D) are a float32 buffer. `update` makes a step of SGD on
    the *unweighted* loss in closed form, from sums over all ranks, so the centers are equal on every rank and
    independent of a gradient scaler.

    Args:
        num_classes: C, identities that are trained on.
        dim: D, length of a feature.
        lr: learning rate of the centers.
        generator: of the initial centers; default: torch's global one.
    """

    centers: Tensor

    def __init__(
        self, num_classes: int, dim: int, lr: float = LossConfig.center_lr, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.lr = lr
        self.register_buffer("centers", torch.randn(num_classes, dim, generator=generator))

    def forward(self, features: Tensor, labels: Tensor, layout: Layout | None = None) -> Tensor:
        """Return this rank's share of the loss. features (B, D); labels (B,) in [0, C); layout as `cross_entropy`."""
        with torch.autocast(features.device.type, enabled=False):
            features = as_float(features)
            layout = layout or find_layout(labels, features.dtype)
            squares = F.mse_loss(features, self.centers[labels].to(features.dtype), reduction="sum")
            return squares * layout.image_weight

    @torch.no_grad()
    def update(self, sums: Tensor, layout: Layout) -> None:
        """Make the step c_y -= lr * 2 * (n_y c_y - S_y) / N, with sums S, counts n and N images of the global batch.

        A center that would become infinite or NaN, because features overflowed, does not change.

        Args:
            sums: (identities of the global batch, D), `GlobalBatch.sums` of the raw features.
            layout: of the global batch, by labels in [0, C).
        """
        centers = self.centers[layout.labels]
        descent = torch.addcmul(sums, layout.counts[:, None], centers, value=-1)  # times 2 / N: 2 / W of image_weight
        moved = torch.addcmul(centers, descent, layout.image_weight, value=2 * self.lr / world_size())
        is_finite = (moved - moved == 0).all(dim=1, keepdim=True)  # isfinite takes four kernels
        self.centers[layout.labels] = torch.where(is_finite, moved, centers)
