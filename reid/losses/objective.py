"""The weighted sum of the losses that training minimizes, and diagnostics of the centroid losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid.config import LossConfig
from reid.data.layout import Layout
from reid.losses.anchors import Anchors, Images, find_anchors
from reid.losses.centroid import anchors_in_rounds, centroid_triplet_of, modified_centroid_triplet_of
from reid.losses.distances import as_float, unit_vectors
from reid.losses.gather import GlobalBatch, find_layout
from reid.losses.identity import CenterLoss, cross_entropy, with_margin
from reid.losses.pairs import circle_of, find_pairs, multi_similarity_of, supervised_contrastive_of
from reid.losses.triplet import batch_hard_triplet_of, images_in_scope, quadruplet_of

FULL = 0  # stands for all numbers of a feature among its lengths
ONLY_FULL = ("center",)  # losses that nested lengths do not have


class Losses(NamedTuple):
    """What the objective computes in a step. `total` and `terms` are shares: their mean over ranks is global."""

    total: Tensor
    """() the weighted sum, with gradient."""
    terms: dict[str, Tensor]
    """The losses by name, without gradient."""
    features: Tensor
    """(B, D), without gradient."""
    layout: Layout
    """Of the global batch."""
    sums: Tensor | None
    """(C, D) sums of the features of all ranks, without gradient, that move the centers of the center loss."""
    logits: Tensor
    """(B, number of classes), without gradient, with the margin of the cross-entropy."""
    anchors: dict[str, Anchors]
    """Of the triplet loss among `images`; of MCTL and CTL among `centroids`."""


class Objective(nn.Module):
    """The weighted sum of the losses; a weight of 0 switches a loss and its cost off.

    Args:
        config: weights and parameters of the losses.
        num_classes: identities that are trained on.
        dim: D, length of a feature.
        generator: of the initial centers; default: torch's global one.
        temperature: divisor of the logits, if they are cosines.
        nested: lengths at which the first numbers of a feature are features, too (Matryoshka; Kusupati et al., NeurIPS
            2022). A loss is then the mean of itself over these lengths and the full one. The center loss, a sum over
            the numbers of a feature, has the full length only.
    """

    weights: Tensor

    def __init__(
        self, config: LossConfig, num_classes: int, dim: int, generator: torch.Generator | None = None,
        temperature: float = 1.0, nested: Sequence[int] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.config, self.temperature = config, temperature
        self.lengths = (FULL, *nested)
        self.center = CenterLoss(num_classes, dim, config.center_lr, generator)
        self.names = tuple(name for name, weight in config.weights.items() if weight)
        weights = [
            config.weights[name] / (1 if name in ONLY_FULL else len(self.lengths))
            for length in self.lengths
            for name in self._names_at(length)
        ]
        self.register_buffer("weights", torch.tensor(weights), persistent=False)

    def forward(
        self, features: Tensor, after_neck: Tensor, logits: Tensor, labels: Tensor, layout: Layout | None = None
    ) -> Losses:
        """Compute this rank's share of the objective.

        Args:
            features: (B, D), before the neck.
            after_neck: (B, D), after it.
            logits: (B, number of classes); with Z nested lengths (B, 1 + Z, number of classes), the full length first.
            labels: (B,) int64, in [0, number of classes).
            layout: of the global batch; default: found, for which the host waits for the device.
        """
        with torch.autocast(features.device.type, enabled=False):
            # Widened once, so that the gradients of the losses add up in float32.
            features, logits = as_float(features), as_float(logits)
            layout = layout or find_layout(labels, features.dtype)
            rows = self._in_spaces(features, after_neck)
            batch = GlobalBatch(rows, layout, self._shared_spaces, self._shares_images)  # one gather for all lengths
            parts = logits.unbind(dim=1) if len(self.lengths) > 1 else (logits,)
            of_lengths = [self._with_margin(part, labels) for part in parts]
            found = [
                self._compute(batch, length, of_length, labels, features)
                for length, of_length in zip(self.lengths, of_lengths, strict=True)
            ]
            stacked = torch.stack([term for terms, _ in found for term in terms.values()])
            total = stacked.dot(self.weights.to(stacked.dtype))
        return Losses(
            total=total,
            terms={name: _mean([terms[name].detach() for terms, _ in found if name in terms]) for name in self.names},
            features=features.detach(),
            layout=layout,
            sums=batch.sums["raw"].detach() if self.config.center else None,
            logits=of_lengths[0].detach(),
            anchors=found[0][1],
        )

    def _names_at(self, length: int) -> tuple[str, ...]:
        """Return the names of the losses that a length has."""
        return tuple(name for name in self.names if length == FULL or name not in ONLY_FULL)

    def _in_spaces(self, features: Tensor, after_neck: Tensor) -> dict[str, Tensor]:
        """Return what the losses use of features, by space and length."""
        rows = {space: _in_space(space, features, after_neck) for space in self.config.spaces}
        for length in self.lengths[1:]:
            for space in self.config.compared_spaces:
                rows[_name(space, length)] = _in_space(space, features[:, :length], after_neck[:, :length])
        return rows

    def _compute(
        self, batch: GlobalBatch, length: int, logits: Tensor, labels: Tensor, features: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Anchors]]:
        """Return the losses of a length by name, and its anchors. logits: (B, C) of this length; features: of all."""
        config, layout = self.config, batch.layout
        images = None
        if config.triplet or config.quadruplet:
            images = images_in_scope(batch, _name(config.triplet_space, length), config.triplet_scope)
        anchors = self._find_anchors(batch, images, _name(config.space, length))
        pairs: Any = find_pairs(batch, _name(config.pair_space, length)) if config.compares_pairs else None
        losses = {
            "cross_entropy": lambda: cross_entropy(logits, labels, config.smoothing, layout),
            "triplet": lambda: batch_hard_triplet_of(anchors["images"], config.triplet_margin),
            "quadruplet": lambda: quadruplet_of(
                anchors["images"],
                images_in_scope(batch, _name(config.triplet_space, length), config.triplet_scope),
                layout.identity,
                config.quadruplet_margin,
                config.quadruplet_margin2,
            ),
            "mctl": lambda: modified_centroid_triplet_of(anchors["centroids"], config.w1, config.margin, config.w2),
            "ctl": lambda: centroid_triplet_of(anchors["centroids"], config.margin),
            "circle": lambda: circle_of(pairs, config.circle_margin, config.circle_scale),
            "contrastive": lambda: supervised_contrastive_of(pairs, config.contrastive_temperature),
            "multi_similarity": lambda: multi_similarity_of(pairs),
            "center": lambda: self.center(features, labels, layout),
        }
        return {name: losses[name]() for name in self._names_at(length)}, anchors

    def _with_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        config = self.config
        if not config.cross_entropy or not (config.angular_margin or config.cosine_margin):
            return logits
        return with_margin(logits, labels, config.angular_margin, config.cosine_margin, self.temperature)

    @property
    def _shared_spaces(self) -> list[str]:
        """The spaces in which a loss needs other ranks: all but that of triplets which are mined in one rank."""
        config = self.config
        needed = {config.space} if config.mctl or config.ctl else set()
        needed |= {config.triplet_space} if config.triplet_scope == "global" else set()
        needed |= {config.pair_space} if config.compares_pairs else set()
        nested = [
            _name(space, length) for length in self.lengths[1:] for space in config.compared_spaces if space in needed
        ]
        needed |= {"raw"} if config.center else set()
        return [space for space in config.spaces if space in needed] + nested

    @property
    def _shares_images(self) -> bool:
        """Whether a loss compares the images of all ranks."""
        config = self.config
        mines_globally = (config.triplet or config.quadruplet) and config.triplet_scope == "global"
        in_rounds = (config.mctl or config.ctl) and config.reading == "rounds"
        return bool(mines_globally or in_rounds or config.compares_pairs)

    def _find_anchors(self, batch: GlobalBatch, images: Images | None, space: str) -> dict[str, Anchors]:
        """Return the anchors among `images`, and those of MCTL and CTL, in `space`, among `centroids`."""
        config = self.config
        uses_centroids = bool(config.mctl or config.ctl)
        in_rounds = uses_centroids and config.reading == "rounds"
        centroids = space if uses_centroids and not in_rounds else None
        anchors = find_anchors(batch, images, centroids) if images or centroids else {}
        if in_rounds:
            anchors["centroids"] = anchors_in_rounds(batch, space)
        return anchors

    def update_centers(self, losses: Losses) -> None:
        """Move the centers by a batch that `forward` has seen; once per optimizer step, on every rank."""
        if losses.sums is not None:
            self.center.update(losses.sums, losses.layout)

    def by_image(self, losses: Losses) -> dict[str, tuple[Tensor, Tensor]]:
        """Return what the log has as means, for each image or anchor of a step.

        Returns:
            Values and weights (A,) by name; their weighted sum is this rank's share of the mean. cross_entropy at the
            full length; triplet_d_ap and triplet_d_an; d_ap and d_an of MCTL or CTL: see `diagnose`.
        """
        found: dict[str, tuple[Tensor, Tensor]] = {}
        layout = losses.layout
        if self.config.cross_entropy:
            labels = layout.labels[layout.identity]
            values = F.cross_entropy(losses.logits, labels, reduction="none", label_smoothing=self.config.smoothing)
            found["cross_entropy"] = values, layout.image_weight.expand_as(values)
        for kind, prefix in (("images", "triplet_"), ("centroids", "")):
            if kind in losses.anchors:
                anchors = losses.anchors[kind]
                found[f"{prefix}d_ap"] = anchors.d_ap, anchors.weight
                found[f"{prefix}d_an"] = anchors.d_an, anchors.push_weight
        return found

    @torch.no_grad()
    def diagnose(self, losses: Losses) -> dict[str, Tensor]:
        """Describe the features and anchors of a step, as shares.

        Returns:
            feature_norm: mean norm of the features. With the triplet loss triplet_d_ap, triplet_d_an: mean distances of
            its pairs. With MCTL or CTL also hinge_active: fraction of anchors whose hinge is active; d_ap, d_an: mean
            distances; negative_entropy: entropy in nats of which identity is the nearest negative, among the anchors
            of a virtual rank: near 0, one identity is the nearest negative of most anchors.
        """
        found = {"feature_norm": losses.features.norm(dim=1).sum() * losses.layout.image_weight}
        if "images" in losses.anchors:
            triplet = losses.anchors["images"]
            found["triplet_d_ap"] = triplet.weight.dot(triplet.d_ap)
            found["triplet_d_an"] = triplet.weight.dot(triplet.d_an)
        if "centroids" in losses.anchors:
            centroids, against_positive = losses.anchors["centroids"], not self.config.mctl
            found |= diagnose(centroids, self.config.margin, against_positive, losses.layout)
        return found


def _name(space: str, length: int) -> str:
    """Name the space of the first `length` numbers of the features in a space."""
    return space if length == FULL else f"{space}, first {length}"


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean()


def _in_space(space: str, features: Tensor, after_neck: Tensor) -> Tensor:
    """Return features (B, D) as losses compare them: as they are, or in the spaces unit and neck divided by norms."""
    return features if space == "raw" else unit_vectors(features if space == "unit" else as_float(after_neck))


def diagnose(
    anchors: Anchors, margin: float, against_positive: bool = False, layout: Layout | None = None
) -> dict[str, Tensor]:
    """Return hinge_active, d_ap, d_an and negative_entropy of anchors; see `Objective.diagnose`.

    Args:
        against_positive: the hinge is CTL's, d_ap + margin > d_an, not MCTL's, d_an < margin.
        layout: of the batch; default: one virtual rank.
    """
    gap = anchors.d_ap + margin - anchors.d_an if against_positive else margin - anchors.d_an
    rank = torch.zeros_like(anchors.nearest)
    if layout is not None and layout.virtual_rank is not None:
        rank = layout.virtual_rank.repeat(len(rank) // len(layout.virtual_rank))  # in rounds each row is two anchors
    together = rank[:, None] == rank
    weight = anchors.push_weight / (together.to(gap.dtype) @ anchors.push_weight).clamp(min=1e-12)
    shared = (together & (anchors.nearest[:, None] == anchors.nearest)).to(weight.dtype) @ weight
    return {
        "hinge_active": anchors.push_weight.dot((gap > 0).to(gap.dtype)),
        "d_ap": anchors.weight.dot(anchors.d_ap),
        "d_an": anchors.push_weight.dot(anchors.d_an),
        "negative_entropy": -(weight * shared.clamp(min=1e-12).log()).sum() / (len(layout.sizes) if layout else 1),
    }
