"""A plan of the size of a real dataset, and what a reader of a plan holds in memory."""

from __future__ import annotations

import numpy as np

from reid.data.plan import Plan, StreamSteps


def market_like(rng: np.random.Generator) -> Plan:
    """751 identities of about 17.2 images in 64 shards of about the same size."""
    counts = np.maximum(2, rng.gamma(4, 17.7 / 4, 751).astype(int))
    shard_of, load = np.zeros(751, dtype=np.int64), np.zeros(64)
    for row in np.argsort(-counts):
        shard_of[row] = load.argmin()
        load[shard_of[row]] += counts[row]
    order = np.argsort(shard_of, kind="stable")
    return Plan(counts[order], shard_of[order], num_shards=64, identities=64, images=4, streams=16)


def reading_order(plan: Plan, steps: StreamSteps) -> np.ndarray:
    """The identities of a stream as its shards store them."""
    return np.concatenate([np.flatnonzero(plan.shard_of == shard) for shard in steps.shards])


def peak_pool_images(plan: Plan, steps: StreamSteps) -> int:
    """The most images that the stream's reader holds at once."""
    rows = reading_order(plan, steps)
    order = np.argsort(rows)
    place = steps.readings * len(rows) + order[np.searchsorted(rows[order], steps.identities)]
    count, last_step = int(place.max()) + 1, len(place)
    step = np.broadcast_to(np.arange(last_step)[:, None], place.shape)
    first, last = np.full(count, last_step), np.full(count, -1)
    np.minimum.at(first, place, step)
    np.maximum.at(last, place, step)
    read = np.minimum.accumulate(first[::-1])[::-1]  # identities stored before it are read first
    held = last >= 0
    images = np.resize(plan.image_counts[rows], count)[held]
    change = np.bincount(read[held], images, last_step + 1) - np.bincount(last[held] + 1, images, last_step + 1)
    return int(change.cumsum().max())
