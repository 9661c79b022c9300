"""Every loss of the objective, exact for any number of ranks.

A loss returns this rank's *share*: the mean of the shares over ranks is the loss of one process on the concatenated
batch, and DDP's averaging makes the gradient that process's gradient (docs/exactness.md). In a world of one the share
is the loss. Nothing here leaves early on a data-dependent condition: every rank builds the same graph, so that every
rank enters the same collectives backward; what does not count is masked by a weight of zero.
"""

from reid.losses.centroid import centroid_triplet, modified_centroid_triplet
from reid.losses.identity import CenterLoss, cross_entropy
from reid.losses.pairs import circle, multi_similarity, supervised_contrastive
from reid.losses.triplet import batch_hard_triplet, quadruplet

__all__ = [
    "CenterLoss",
    "batch_hard_triplet",
    "centroid_triplet",
    "circle",
    "cross_entropy",
    "modified_centroid_triplet",
    "multi_similarity",
    "quadruplet",
    "supervised_contrastive",
]
