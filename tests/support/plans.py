"""A plan of the size of a real dataset."""

from __future__ import annotations

import numpy as np

from reid.data.plan import Plan


def market_like(rng: np.random.Generator) -> Plan:
    """751 identities of about 17.2 images in 64 shards of about the same size."""
    counts = np.maximum(2, rng.gamma(4, 17.7 / 4, 751).astype(int))
    shard_of, load = np.zeros(751, dtype=np.int64), np.zeros(64)
    for row in np.argsort(-counts):
        shard_of[row] = load.argmin()
        load[shard_of[row]] += counts[row]
    order = np.argsort(shard_of, kind="stable")
    return Plan(counts[order], shard_of[order], num_shards=64, identities=64, images=4, streams=16)
