"""A validation part of the training identities, so that a model can be chosen without a look at the test set.

Some identities are held out of training, with all their images. They are searched as a test set is: of each camera that
saw an identity, but the last, one image is a query; the others are the gallery.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reid.data.manifest import Split
from reid.metrics import Features

SEED = 0  # of the choice: the same identities for every run on the same data, whatever the run's seed


def hold_out(split: Split, number: int) -> np.ndarray:
    """`number` rows of a train split, ascending, of identities that can be found. ValueError if there are too few."""
    several = np.array([len(set(cameras) - {-1}) > 1 or set(cameras) == {-1} for cameras in split.cameras], dtype=bool)
    eligible = np.flatnonzero(several & (split.images > 1) & (split.pids >= 0))
    if number > len(eligible) or number >= len(split.pids):
        raise ValueError(
            f"data.val_identities = {number}: {len(eligible)} of the {len(split.pids)} train identities have images of "
            "two cameras (or several images without a camera) and can be held out; give a smaller number"
        )
    return np.sort(np.random.default_rng(SEED).permutation(eligible)[:number])


def split_queries(features: Features) -> tuple[Features, Features]:
    """Query and gallery.

    The first image of each (identity, camera) is a query, but for the identity's last camera, whose images all stay in
    the gallery: so each query has a match. Without cameras the identity's first image is the query.
    """
    pids, camids = features.pids.cpu().numpy(), features.camids.cpu().numpy()
    pairs, first = np.unique(np.stack([pids, camids], axis=1), axis=0, return_index=True)
    last_camera = np.append(pairs[1:, 0] != pairs[:-1, 0], True)
    query = torch.zeros(len(features), dtype=torch.bool)
    query[torch.from_numpy(first[~last_camera | (pairs[:, 1] == -1)])] = True
    return features.take(_places(query)), features.take(_places(~query))


def _places(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(1)
