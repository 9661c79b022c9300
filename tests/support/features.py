"""Splits of features for tests of the metrics."""

import numpy as np
import torch

from reid.metrics import Features


def features(embeddings, pids, camids=None, distractors=None):
    embeddings = torch.as_tensor(np.array(embeddings, dtype=np.float32))
    return Features(embeddings, np.array(pids), np.full(len(pids), -1) if camids is None else camids, distractors)


def random_split(size, dim, identities, cameras, seed, with_junk=True):
    rng = np.random.default_rng(seed)
    pids = rng.integers(-1 if with_junk else 1, identities + 1, size)
    return features(rng.normal(size=(size, dim)), pids, rng.integers(0, cameras, size), pids == 0)


def exact_split(size, dim, identities, cameras, seed):
    """As `random_split`, of multiples of 1/16: products are exact in float32, in whatever order they are added up."""
    split = random_split(size, dim, identities, cameras, seed)
    split.embeddings.mul_(16).round_().div_(16)
    return split
