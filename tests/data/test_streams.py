"""reid/data/streams.py: how many streams fit, how datasets share them, and the streams of small datasets."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.data.plan import Plan
from reid.data.streams import Stock, apportion

SHARDS = st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any)  # identities of each shard of a dataset


def make_knobs(datasets: list[list[int]], images: int = 4) -> dict:
    """The arguments of a plan of these datasets: for each its shards, for each of them its identities."""
    sizes = [size for shards in datasets for size in shards]
    return {
        "image_counts": np.full(sum(sizes), images),
        "shard_of": np.repeat(np.arange(len(sizes)), sizes),
        "num_shards": len(sizes),
        "datasets": np.repeat(np.arange(len(datasets)), [len(shards) for shards in datasets]),
        "labels": tuple(f"set{number}" for number in range(len(datasets))) if len(datasets) > 1 else ("",),
        "images": 4,
    }


def make_stock(datasets: list[list[int]]) -> Stock:
    knobs = make_knobs(datasets)
    return Stock.count(knobs["image_counts"], knobs["shard_of"], knobs["datasets"])


@settings(max_examples=150)
@given(datasets=st.lists(SHARDS, min_size=1, max_size=3), identities=st.integers(1, 12), ranks=st.integers(1, 3))
def test_what_fits_is_what_a_plan_takes_and_every_epoch_of_it_can_be_read(datasets, identities, ranks):
    stock, knobs = make_stock(datasets), make_knobs(datasets)
    fitting = stock.list_fitting(identities, ranks=ranks)
    for streams in (s for s in range(1, identities + 1) if identities % s == 0 and s % ranks == 0):
        if streams not in fitting:
            with pytest.raises(ValueError, match="batch"):
                Plan(**knobs, identities=identities, streams=streams, ranks=ranks)
            continue
        plan = Plan(**knobs, identities=identities, streams=streams, steps=2)
        assert sum(plan.shares) == identities
        for epoch in range(3):
            rows = np.concatenate([plan.stream_steps(epoch, s).identities for s in range(streams)], axis=1)
            of_rows = plan.datasets[plan.shard_of[rows]]
            for step, row in enumerate(rows):
                assert len(set(row.tolist())) == identities
                assert np.bincount(of_rows[step], minlength=len(datasets)).tolist() == list(plan.shares)
    chosen = stock.choose(identities, ranks=ranks)
    if fitting:
        assert chosen == max([s for s in fitting if s <= identities // 2] or fitting)
    else:
        with pytest.raises(ValueError, match="batch"):
            Plan(**knobs, identities=identities, streams=chosen, ranks=ranks)


@pytest.mark.parametrize(
    ("sizes", "identities", "streams"),
    [
        ([8] * 64, 16, 8),  # a large dataset: as the default of earlier versions
        ([4] * 6 + [3] * 2, 16, 8),  # 30 identities
        ([3] * 4 + [2] * 4, 16, 8),  # 20
        ([20], 16, 1),
        ([10, 10, 10], 16, 2),
        ([1] * 8 + [20], 16, 1),  # one stream may get the shards of one identity
        ([9, 9], 16, 2),
        ([2] * 64, 64, 32),
        ([5] * 4, 1, 1),
    ],
)
def test_the_streams_of_small_and_large_datasets(sizes, identities, streams):
    assert make_stock([sizes]).choose(identities) == streams
    Plan(**make_knobs([sizes]), identities=identities, streams=streams)


@given(total=st.integers(1, 60), weights=st.lists(st.integers(1, 1000), min_size=1, max_size=5))
def test_parts_are_in_proportion_and_none_is_empty(total, weights):
    parts = apportion(max(total, len(weights)), weights)
    assert sum(parts) == max(total, len(weights)) and min(parts) >= 1
    for part, weight in zip(parts, weights, strict=True):
        assert part <= max(1, total * weight / sum(weights) + 1)


def test_the_streams_of_each_dataset_are_spread_over_the_ranks():
    plan = Plan(**make_knobs([[4] * 8, [4] * 4, [4] * 4]), identities=16, streams=8, given_shares=(8, 4, 4))
    assert plan.dataset_of_stream.tolist() == [0, 1, 2, 0, 0, 1, 2, 0]
    assert plan.shares == (8, 4, 4)


@pytest.mark.parametrize(
    ("datasets", "shares", "streams", "words"),
    [
        ([[4] * 5, [4] * 4], (5, 3), 4, r"set0: its share of 5 .* not a multiple of .* = 2, .*batch.streams to 8, "),
        ([[4] * 4, [1]], (4, 4), 8, r"set1: a share = 4, and only 1 identities are trained on; .*other batch.shares"),
        ([[4] * 4, [8]], (4, 4), 4, r"set1: 1 training shards .*\(2 of them .*--shards 2 or more, or .*streams to 2"),
        ([[4] * 4, [9, 1]], (4, 4), 4, r"set1: a stream may hold only 1 identities but .* = 2 .*batch.streams to 2"),
        ([[4] * 4, [4] * 4], (), 1, r"batch.streams = 1 is less than the 2 datasets, .*batch.streams to 8"),
    ],
)
def test_errors_of_datasets_say_what_to_change(datasets, shares, streams, words):
    knobs = make_knobs(datasets) | {"identities": 8, "given_shares": shares}
    with pytest.raises(ValueError, match=words) as raised:
        Plan(**knobs, streams=streams)
    if fits := re.search(r"batch\.streams to (\d+)", str(raised.value)):
        Plan(**knobs, streams=int(fits[1])).stream_steps(0, 0)
