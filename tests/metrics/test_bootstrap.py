"""Intervals and paired differences, against loops and against what simulated data must give."""

import numpy as np
import pytest

from reid.metrics import bootstrap
from reid.metrics.bootstrap import Difference, intervals, paired


def values(count, seed=0):
    return np.random.default_rng(seed).beta(2, 1, count)


def means_by_hand(x, resamples, seed):
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        drawn = [x[i] for i in rng.integers(len(x), size=len(x))]
        means.append(sum(drawn) / len(x))
    return means


def quantile_by_hand(means, share):
    """Linear between the two draws on either side."""
    ordered = sorted(means)
    place = share * (len(ordered) - 1)
    below = int(place)
    return ordered[below] + (place - below) * (ordered[min(below + 1, len(ordered) - 1)] - ordered[below])


def interval(values, *knobs, **more):
    return tuple(intervals(values[:, None], *knobs, **more)[0].tolist())


@pytest.mark.parametrize(("count", "level", "seed"), [(1, 0.95, 0), (7, 0.95, 0), (40, 0.8, 3)])
def test_interval_agrees_with_a_loop(count, level, seed):
    x = values(count)
    means = means_by_hand(x, 300, seed)
    expected = [quantile_by_hand(means, (1 - level) / 2), quantile_by_hand(means, (1 + level) / 2)]
    assert interval(x, level, 300, seed) == pytest.approx(expected, abs=1e-12)


def test_paired_agrees_with_a_loop():
    a, b = values(30), values(30, seed=1)
    means = means_by_hand(a - b, 300, 5)
    found = paired(a, b, 0.9, 300, 5)
    beyond = min(sum(m <= 0 for m in means), sum(m >= 0 for m in means))
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b))
    assert [found.low, found.high] == pytest.approx([quantile_by_hand(means, 0.05), quantile_by_hand(means, 0.95)])
    assert found.p == pytest.approx(2 * (beyond + 1) / 301)


def test_draws_in_parts_equal_draws_at_once(monkeypatch):
    x = values(50)
    complete = interval(x)
    monkeypatch.setattr(bootstrap, "DRAWS", 120)
    assert interval(x) == complete


def test_the_same_call_gives_the_same_and_another_seed_another():
    x = values(50)
    assert interval(x) == interval(x) != interval(x, seed=1)


def test_figures_share_their_draws():
    columns = np.stack([values(40), values(40, seed=1)], axis=1)
    assert intervals(columns).tolist() == [list(interval(column)) for column in columns.T]


def test_equal_values_have_no_width():
    assert interval(np.full(9, 0.25)) == (0.25, 0.25)


def test_interval_has_the_width_of_the_normal_approximation():
    x = values(2000)
    low, high = interval(x)
    assert (high - low) / 2 == pytest.approx(1.96 * x.std() / np.sqrt(len(x)), rel=0.06)
    assert (high + low) / 2 == pytest.approx(x.mean(), abs=0.1 * (high - low))


def test_intervals_hold_the_truth_as_often_as_they_say():
    """400 samples of 100 values with mean 2/3: 80% intervals hold it 320 times, give or take three deviations of 8."""
    held = sum(low <= 2 / 3 <= high for low, high in (interval(values(100, i), 0.8, 200, i) for i in range(400)))
    assert abs(held - 320) < 24


def test_pairing_sees_a_difference_inside_both_intervals():
    rng = np.random.default_rng(2)
    hard = values(400)
    a, b = hard + 0.02 + rng.normal(0, 0.05, 400), hard + rng.normal(0, 0.05, 400)
    assert interval(a)[0] < np.mean(b) < interval(a)[1]
    found = paired(a, b)
    assert found.low > 0 and found.p < 0.01 and found.mean == pytest.approx(0.02, abs=0.01)
    assert paired(a, rng.permutation(b)).p > 0.05


def test_runs_without_a_difference_are_called_different_as_often_as_p_says():
    """300 pairs from one distribution: p is below 0.2 about 60 times, give or take three deviations of 7."""
    rng = np.random.default_rng(3)
    small = sum(paired(*rng.random((2, 80)), resamples=200, seed=i).p < 0.2 for i in range(300))
    assert abs(small - 60) < 21


def test_swapping_the_runs_turns_the_difference_round():
    a, b = values(60), values(60, seed=1)
    one, other = paired(a, b), paired(b, a)
    assert (other.mean, other.low, other.high) == pytest.approx((-one.mean, -one.high, -one.low))
    assert one.p == other.p


def test_a_run_does_not_differ_from_itself():
    assert paired(values(20), values(20)) == Difference(0, 0, 0, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired(np.ones((2, 2)), [1]), r"a have shape \(2, 2\)"),
        (lambda: paired([1, np.nan], [1, 2]), "a: value 1 is not finite"),
        (lambda: paired([1.0], [1.0], level=95), "level is 95; give a share between 0 and 1"),
        (lambda: paired([1.0], [1.0], resamples=0), "resamples is 0"),
        (lambda: paired([1, 2], [1, 2, 3]), "a has 2 values, b 3; give both runs' values of the same queries"),
        (lambda: paired([1], []), r"b have shape \(0,\); give one value per query, at least one"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
