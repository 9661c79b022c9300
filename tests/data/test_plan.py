"""reid/data/plan.py: every promise about an epoch, counted one by one."""

import re
from collections import Counter
from dataclasses import replace
from itertools import chain
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.data import distinct
from reid.data.distinct import take_distinct
from reid.data.plan import Plan
from tests.support.counting import count_instructions
from tests.support.plans import market_like, peak_pool_images, reading_order


def make_plan(counts_of_shards, streams, per_stream, images, **knobs) -> Plan:
    """counts_of_shards: for each shard the images of its identities."""
    return Plan(
        image_counts=np.array([count for counts in counts_of_shards for count in counts]),
        shard_of=np.repeat(np.arange(len(counts_of_shards)), [len(counts) for counts in counts_of_shards]),
        num_shards=len(counts_of_shards),
        identities=streams * per_stream,
        images=images,
        streams=streams,
        **knobs,
    )


@st.composite
def plans(draw) -> Plan:
    streams, per_stream = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    counts = st.lists(st.integers(1, 9), min_size=per_stream, max_size=per_stream + 4)
    return make_plan(
        draw(st.lists(counts, min_size=streams, max_size=3 * streams)),
        streams,
        per_stream,
        images=draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 5)),
        repeat_short=draw(st.booleans()),
        steps=draw(st.integers(0, 12)),
        pool_images=draw(st.sampled_from([0, 15, 20, 40])),
    )


def global_batches(plan: Plan, epoch: int, world_size: int = 1) -> list[tuple[list[int], list[list[int]]]]:
    """Identities and images of every step, ranks one after the other."""
    streams = [s for rank in range(world_size) for s in plan.streams_of_rank(rank, world_size)]
    parts = [plan.stream_steps(epoch, s) for s in streams]
    return [
        (
            [int(row) for part in parts for row in part.identities[step]],
            [images.tolist() for part in parts for images in part.images[step]],
        )
        for step in range(plan.steps_per_epoch)
    ]


@settings(max_examples=60)
@given(plan=plans(), epoch=st.integers(0, 3))
def test_every_promise_of_an_epoch(plan, epoch):
    assert sorted(shard for shards in plan.deal(epoch) for shard in shards) == list(range(plan.num_shards))
    for identities, images in global_batches(plan, epoch):
        assert len(identities) == len(set(identities)) == plan.identities
        for row, chosen in zip(identities, images, strict=True):
            check_group(chosen, int(plan.image_counts[row]), plan.images, plan.repeat_short)
    for stream in range(plan.streams):
        check_stream(plan, epoch, stream)


def check_group(chosen: list[int], count: int, k: int, repeat_short: bool) -> None:
    assert len(chosen) == k
    if count >= k:
        assert len(set(chosen)) == k and set(chosen) <= set(range(count))
    elif repeat_short:
        times = Counter(chosen)
        assert set(times) == set(range(count)) and max(times.values()) - min(times.values()) <= 1
    else:
        assert sorted(chosen[:count]) == list(range(count)) and chosen[count:] == [-1] * (k - count)


def check_stream(plan: Plan, epoch: int, stream: int) -> None:
    steps = plan.stream_steps(epoch, stream)
    assert steps.identities.shape == steps.passes.shape == (plan.steps_per_epoch, plan.groups_per_step)
    assert steps.images.shape == (plan.steps_per_epoch, plan.groups_per_step, plan.images)
    assert set(plan.shard_of[steps.identities.ravel()]) <= set(steps.shards.tolist())
    groups_met, images_met = Counter(), Counter()
    for row, number, chosen in zip(
        steps.identities.ravel(), steps.passes.ravel(), steps.images.reshape(-1, plan.images), strict=True
    ):
        groups_met[row, number] += 1
        images_met.update((row, number, image) for image in set(chosen.tolist()) if image >= 0)
    assert max(images_met.values()) == 1  # no image twice in one pass
    for (row, _), times in groups_met.items():
        assert times <= max(1, plan.image_counts[row] // plan.images)
    bounded = 0 < plan.pool_images < plan.image_counts[np.isin(plan.shard_of, steps.shards)].sum()
    np.testing.assert_array_equal(steps.readings, steps.passes if bounded else 0)
    if bounded:
        # A group that waits for its identity to be free keeps it a little longer: at most a step's worth each.
        slack = (plan.groups_per_step + 1) * int(plan.image_counts.max())
        assert peak_pool_images(plan, steps) <= plan.pool_images + slack


@settings(max_examples=30)
@given(plan=plans())
def test_steps_per_epoch_is_one_pass_or_what_was_asked_for(plan):
    groups = sum(max(1, int(count) // plan.images) for count in plan.image_counts)
    assert plan.steps_per_epoch == (plan.steps or max(1, groups // plan.identities))


def sizes(rng: np.random.Generator, shards: int, per_shard: int) -> list[list[int]]:
    return rng.integers(1, 12, (shards, per_shard)).tolist()


def test_a_stream_alone_gives_the_same_as_all_in_any_order():
    plan = make_plan(sizes(np.random.default_rng(0), 16, 5), streams=8, per_stream=2, images=4, seed=3)
    wanted = [plan.stream_steps(2, stream) for stream in range(8)]
    np.random.seed(1)  # the global generator must not matter
    again = replace(plan, image_counts=plan.image_counts.copy())
    for stream in reversed(range(8)):
        found = again.stream_steps(2, stream)
        for name in ("shards", "identities", "images", "passes"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted[stream], name))


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_the_global_batch_is_the_same_for_any_number_of_ranks(world_size):
    plan = make_plan(sizes(np.random.default_rng(1), 16, 5), streams=8, per_stream=2, images=4)
    assert {len(plan.streams_of_rank(rank, world_size)) for rank in range(world_size)} == {8 // world_size}
    for epoch in range(2):
        assert global_batches(plan, epoch, world_size) == global_batches(plan, epoch)


def test_epoch_and_seed_change_the_deal_and_the_batches():
    plan = make_plan(sizes(np.random.default_rng(2), 16, 5), streams=4, per_stream=2, images=4)
    deals = {tuple(tuple(shards.tolist()) for shards in plan.deal(epoch)) for epoch in range(5)}
    assert len(deals) == 5
    assert global_batches(plan, 0) != global_batches(plan, 1)
    assert global_batches(plan, 0) != global_batches(replace(plan, seed=1), 0)


def test_a_long_epoch_wraps_into_new_shuffles():
    plan = make_plan([[8, 8], [8, 8]], streams=1, per_stream=2, images=4, steps=12)  # 8 groups a pass: 4 steps
    steps = plan.stream_steps(0, 0)
    assert sorted(steps.passes.ravel().tolist()) == [0] * 8 + [1] * 8 + [2] * 8
    chosen = {
        number: {
            (row, tuple(sorted(images)))
            for row, images in zip(
                steps.identities[steps.passes == number].tolist(),
                steps.images[steps.passes == number].tolist(),
                strict=True,
            )
        }
        for number in range(3)
    }
    assert chosen[0] != chosen[1] != chosen[2]


def test_a_group_that_waits_for_a_later_step_is_not_lost():
    """Large identities meet themselves often; still every pass is complete."""
    plan = make_plan([[24, 24, 8, 8]], streams=1, per_stream=2, images=4, steps=80)  # 16 groups a pass, 10 passes
    passes = Counter(plan.stream_steps(0, 0).passes.ravel().tolist())
    assert [passes[number] for number in range(8)] == [16] * 8


def take_one_by_one(owners_of_passes, per_step: int, steps: int) -> list[list[int]]:
    """The slow obvious version: one group after the other."""
    source = ((at, owner) for at, owner in enumerate(owner for owners in owners_of_passes for owner in owners))
    waiting: list[tuple[int, int]] = []
    taken = []
    for _ in range(steps):
        step, rest = {}, []
        queue = chain(waiting, source)
        before, seen = len(waiting), 0
        for at, owner in queue:
            seen += 1
            if owner in step:
                rest.append((at, owner))
            else:
                step[owner] = at
            if len(step) == per_step:
                break
        waiting = rest + waiting[seen:before]
        taken.append(list(step.values()))
    return taken


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    per_step=st.integers(1, 4),
    steps=st.integers(1, 40),
    window=st.sampled_from([1, 2, 512]),
)
def test_windows_of_steps_give_what_one_group_after_the_other_gives(seed, per_step, steps, window):
    rng = np.random.default_rng(seed)
    passes = [rng.permutation([0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4]).tolist() for _ in range(40)]
    with mock.patch.object(distinct, "WINDOW", window):
        found = take_distinct(lambda number: np.array(passes[number]), per_step, steps)
    assert found.tolist() == take_one_by_one(passes, per_step, steps)


def test_one_giant_identity_is_planned_with_a_little_work_for_each_group():
    """4,000 images beside 31 identities of 16: most of its groups wait, and are not looked at again at each step.

    About 70 instructions for each group that is drawn; looking at all that wait takes 1,000.
    """
    plan = make_plan([[4000, 16, 16, 16]] + [[16] * 4] * 7, streams=8, per_stream=2, images=4)
    (stream,) = (stream for stream, shards in enumerate(plan.deal(0)) if 0 in shards)
    found = []
    instructions = count_instructions(lambda: found.append(plan.stream_steps(0, stream)))
    (steps,) = found
    assert (steps.identities == 0).sum() == plan.steps_per_epoch  # it is in each step, once
    drawn = (int(steps.passes.max()) + 1) * int(plan.groups[:4].sum())
    assert instructions <= 200 * drawn, instructions / drawn


def test_a_million_identities_are_planned_in_arrays():
    """A slice of the full size, which tests/bench/loader.py times: 1/50 of the shards, every stream once."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(49, 20_000) + 1
    plan = Plan(counts, np.arange(20_000) // 100, num_shards=200, identities=64, images=4, streams=16, pool_images=4096)
    steps = [plan.stream_steps(0, stream) for stream in range(16)]
    assert sum(part.identities.size for part in steps) == plan.steps_per_epoch * 64
    assert max(peak_pool_images(plan, part) for part in steps) <= 4096 + 200
    seen = np.unique(np.concatenate([part.identities.ravel() for part in steps]))
    assert len(seen) > 0.99 * 20_000


def test_coverage_and_mixing_with_the_numbers_of_market1501():
    rng = np.random.default_rng(0)
    plan = market_like(rng)
    total = int(plan.image_counts.sum())
    assert abs(total / 751 - 17.2) < 0.5
    seen: set[tuple[int, int]] = set()
    met = np.zeros((751, 751), dtype=bool)
    for epoch in range(30):
        parts = [plan.stream_steps(epoch, stream) for stream in range(16)]
        for rows in np.concatenate([part.identities for part in parts], axis=1):
            met[np.ix_(rows, rows)] = True
        if epoch < 3:
            images = {
                (int(row), image)
                for part in parts
                for row, chosen in zip(part.identities.ravel(), part.images.reshape(-1, 4).tolist(), strict=True)
                for image in chosen
                if image >= 0
            }
            assert len(images) >= 0.88 * total
            seen |= images
    assert len(seen) >= 0.99 * total
    random_met = np.zeros((751, 751), dtype=bool)
    share = plan.groups / plan.groups.sum()
    for _ in range(30 * plan.steps_per_epoch):
        rows = rng.choice(751, 64, replace=False, p=share)
        random_met[np.ix_(rows, rows)] = True
    assert met.sum() - 751 >= 0.95 * (random_met.sum() - 751)


def test_errors_say_what_to_change():
    counts = [[4, 4], [4, 4], [4, 4], [4, 4]]
    with pytest.raises(ValueError, match=r"batch\.identities = 6 does not divide among batch\.streams = 4"):
        Plan(np.full(8, 4), np.repeat(np.arange(4), 2), num_shards=4, identities=6, images=4, streams=4)
    with pytest.raises(ValueError, match=r"4 training shards are too few.*--shards 8 or more.*batch.streams to 4"):
        make_plan(counts, streams=8, per_stream=1, images=4)
    with pytest.raises(ValueError, match=r"only 8 identities .*identities to at most 8 with batch.streams = 4"):
        make_plan(counts, streams=4, per_stream=3, images=4)
    with pytest.raises(ValueError, match=r"batch\.streams = 4 does not divide among 3 ranks"):
        make_plan(counts, streams=4, per_stream=1, images=4).streams_of_rank(0, 3)


@pytest.mark.parametrize(
    ("identities", "streams", "ranks"), [(16, 8, 1), (16, 8, 4), (40, 8, 1), (40, 4, 2), (36, 4, 2)]
)
def test_what_an_error_proposes_fits(identities, streams, ranks):
    """37 identities in 4 shards of 10, 10, 9 and 8."""
    shard_of = np.repeat(np.arange(4), [10, 10, 9, 8])
    knobs = {"image_counts": np.full(37, 4), "shard_of": shard_of, "num_shards": 4, "images": 4, "ranks": ranks}
    with pytest.raises(ValueError, match="batch") as raised:
        Plan(**knobs, identities=identities, streams=streams)
    text = str(raised.value)
    if fits := re.search(r"batch\.streams to (\d+), the most that fits", text):
        proposed = [(identities, int(fits[1]))]
    else:
        proposed = [(int(p), int(s)) for p, s in re.findall(r"(\d+) with batch\.streams = (\d+)", text)]
    assert proposed
    for most, s in proposed:
        assert s % ranks == 0
        Plan(**knobs, identities=most, streams=s).stream_steps(0, 0)
        if most < identities:
            with pytest.raises(ValueError, match="batch"):
                Plan(**knobs, identities=most + s, streams=s)


def test_a_pool_too_small_for_a_step_is_refused():
    with pytest.raises(ValueError, match=r"data\.pool_images = 7 is less than the 8 images .*; use 128 or more, or 0"):
        make_plan([[4, 4], [4, 4]], streams=1, per_stream=2, images=4, pool_images=7)


def test_a_bounded_pool_mixes_within_its_window():
    """An identity's groups come from a window that begins where its images begin: never before, never far after."""
    plan = make_plan([[8] * 50, [8] * 50], streams=1, per_stream=1, images=4, pool_images=80)
    steps = plan.stream_steps(0, 0)
    rank_in_reading = np.argsort(reading_order(plan, steps))[steps.identities[:, 0]]
    position = np.arange(len(rank_in_reading)) * 4  # images given before
    assert (position >= 8 * rank_in_reading - 80).all() and (position <= 8 * rank_in_reading + 80).all()
    whole = replace(plan, pool_images=0).stream_steps(0, 0)
    np.testing.assert_array_equal(whole.images, replace(plan, pool_images=800).stream_steps(0, 0).images)


@pytest.mark.parametrize("repeat_short", [False, True])
def test_images_of_a_step(repeat_short):
    plan = make_plan([[1, 2, 9, 3] * 3], streams=1, per_stream=6, images=4, repeat_short=repeat_short)
    epoch = (plan.stream_steps(0, 0).images >= 0).sum(axis=(1, 2))
    assert plan.images_per_step == pytest.approx(24 if repeat_short else 6 * (1 + 2 + 8 + 3) / 5)
    assert sum(epoch) == pytest.approx(plan.images_per_step * len(epoch), abs=6 * 4)


def test_the_poorest_deal_counts():
    """Five shards on two streams: one stream may get the two smallest, which hold 1 + 2 identities."""
    counts = [[4] * 9, [4], [4] * 9, [4] * 2, [4] * 9]
    make_plan(counts, streams=2, per_stream=3, images=4).stream_steps(0, 0)
    with pytest.raises(ValueError, match=r"only 3 identities .* = 4 distinct .*batch\.streams to 1, the most"):
        make_plan(counts, streams=2, per_stream=4, images=4)
