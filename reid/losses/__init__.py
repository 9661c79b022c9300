"""Every loss of the objective, exact for any number of ranks.

A loss returns this rank's *share*: the mean of the shares over ranks is the loss of one process on the concatenated
batch, and DDP's averaging makes the gradient that process's gradient (docs/exactness.md). With one rank the share is
the loss. No function returns early on a condition that depends on the data: all ranks build the same graph, and so
enter the same collectives in the backward pass. What does not count has weight 0.
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
