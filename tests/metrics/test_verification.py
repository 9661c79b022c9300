"""Verification and open-set identification against scikit-learn and loops."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

from reid.metrics import verification
from reid.metrics.features import JUNK, Features
from reid.metrics.open_set import answer, choose_thresholds, leave_out
from reid.metrics.verification import (
    Counts,
    count_accepted,
    count_scores,
    equal_error_point,
    rate_interval,
    threshold_at,
)


def split(size: int, seed: int, identities: int = 8) -> Features:
    """Features of people whose images look alike, by three cameras; some cameras unknown, some junk and distractors."""
    rng = np.random.default_rng(seed)
    pids = rng.integers(identities, size=size)
    centers = np.random.default_rng(0).normal(size=(identities, 16))
    embeddings = centers[pids] + 1.2 * rng.normal(size=(size, 16))
    camids = rng.integers(-1, 3, size=size)
    distractors = rng.random(size) < 0.1
    return Features(embeddings, np.where(rng.random(size) < 0.1, JUNK, pids), camids, distractors)


def pairs(query: Features, gallery: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Query, score, whether of one person: of all pairs that count, by a loop."""
    found = []
    unit = [torch.nn.functional.normalize(f.embeddings.double()) for f in (query, gallery)]
    for q in range(len(query)):
        for g in range(len(gallery)):
            same_camera = query.camids[q] == gallery.camids[g] != -1
            if gallery.pids[g] == JUNK or same_camera:
                continue
            identified = not query.is_distractor()[q] and not gallery.is_distractor()[g]
            found.append((q, float(unit[0][q] @ unit[1][g]), bool(identified and query.pids[q] == gallery.pids[g])))
    rows, scores, same = map(np.array, zip(*found, strict=True))
    return rows, scores, same


@pytest.fixture
def features() -> tuple[Features, Features]:
    query = split(40, seed=1)
    return Features(query.embeddings, query.pids.clamp(min=0), query.camids, query.distractors), split(150, seed=2)


def test_rates_are_those_of_scikit_learn(features: tuple[Features, Features]) -> None:
    query, gallery = features
    counts = count_scores(query, gallery)
    _, scores, same = pairs(query, gallery)
    assert (int(counts.genuine.sum()), int(counts.impostor.sum())) == (same.sum(), (~same).sum())
    false, true, thresholds = roc_curve(same, scores, drop_intermediate=False)
    for rate, point in verification.choose_thresholds(counts, (0.2, 1e-1, 1e-2, 1e-3)).items():
        place = np.searchsorted(false, rate, side="right") - 1
        assert (point.false_positive_rate, point.true_positive_rate) == pytest.approx((false[place], true[place]))
        assert thresholds[place + 1] < point.threshold <= thresholds[place]
    point = equal_error_point(counts)
    nearest = np.abs(false - (1 - true)).argmin()
    assert point.false_positive_rate == pytest.approx(false[nearest])


def test_rates_that_need_more_pairs_are_left_out(features: tuple[Features, Features]) -> None:
    counts = count_scores(*features)
    assert [*verification.choose_thresholds(counts, (1e-1, 1e-9))] == [1e-1]
    assert threshold_at(0) > 1 and threshold_at(verification.STEPS) == -1


def test_slices_of_the_queries_add_up(features: tuple[Features, Features], monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = features
    counts = count_scores(query, gallery)
    monkeypatch.setattr(verification, "COUNTED", 1000)
    parts = [count_scores(query.take(torch.arange(len(query))[i::3]), gallery, partial=True) for i in range(3)]
    added = Counts(*(sum(getattr(part, name) for part in parts) for name in ("genuine", "impostor")))
    assert torch.equal(added.genuine, counts.genuine) and torch.equal(added.impostor, counts.impostor)


def test_junk_queries_count_for_nothing(features: tuple[Features, Features]) -> None:
    query, gallery = features
    gallery = Features(gallery.embeddings, gallery.pids.clamp(min=0), gallery.camids)
    some = Features(query.embeddings, query.pids.masked_fill(torch.arange(40) >= 30, JUNK), query.camids)
    kept = some.take(slice(30))
    found, expected = count_scores(some, gallery), count_scores(kept, gallery)
    assert torch.equal(found.genuine, expected.genuine) and torch.equal(found.impostor, expected.impostor)
    counts = count_accepted(some, gallery, gallery.camids.unique(), [0.1])
    assert counts[:30].any() and not counts[30:].any()
    answers = answer(some, leave_out(some, gallery, 0.5))
    assert answers.unmated[:30].any() and not answers.unmated[30:].any() and not answers.mated[30:].any()


def test_a_process_without_queries_counts_none(features: tuple[Features, Features]) -> None:
    query, gallery = features
    none = query.take(slice(0))
    assert not count_scores(none, gallery, partial=True).impostor.any()
    assert count_accepted(none, gallery, gallery.camids.unique(), [0.1], partial=True).shape[0] == 0
    answers = answer(none, gallery, partial=True)
    assert [len(part) for part in (answers.score, answers.right, answers.mated, answers.unmated)] == [0] * 4


def test_accepted_pairs_of_each_query_and_camera(features: tuple[Features, Features]) -> None:
    query, gallery = features
    cameras = gallery.camids.unique()
    thresholds = [threshold_at(verification.STEPS // 4), 0.1]
    found = count_accepted(query, gallery, cameras, thresholds)
    rows, scores, same = pairs(query, gallery)
    assert found.shape == (40, len(cameras), 2, 3)
    for person in (0, 1):
        chosen = same == bool(person)
        expected = [np.bincount(rows[chosen & (scores >= t)], minlength=40) for t in (-2, *thresholds)]
        assert np.array_equal(found[:, :, person].sum(1).numpy(), np.stack(expected, axis=1))
    by_camera = found[:, :, :, 0].sum((0, 2))
    kept = torch.tensor([int(((gallery.camids == c) & (gallery.pids != JUNK)).sum()) for c in cameras])
    assert (by_camera <= kept * 40).all() and by_camera.sum() == len(rows)


def test_an_interval_holds_the_rate_and_grows_with_fewer_identities() -> None:
    rng = np.random.default_rng(3)
    pids = np.repeat(np.arange(60), 4)
    accepted = rng.binomial(20, np.repeat(rng.uniform(0.5, 0.9, size=60), 4))
    number = np.full(len(pids), 20)
    low, high = rate_interval(accepted, number, pids)
    assert low < accepted.sum() / number.sum() < high
    few = rate_interval(accepted[:40], number[:40], pids[:40])
    assert few[1] - few[0] > high - low


def test_open_set_rates_are_those_of_a_loop(features: tuple[Features, Features]) -> None:
    query, gallery = features
    reduced = leave_out(query, gallery, 0.5, seed=4)
    absent = set(gallery.pids[~gallery.is_distractor()].tolist()) - set(reduced.pids[~gallery.is_distractor()].tolist())
    assert len(absent) == 4
    answers = answer(query, reduced)
    rows, _, same = pairs(query, reduced)
    # a query does see images of other people by its own camera
    unit = [torch.nn.functional.normalize(f.embeddings.double()) for f in (query, reduced)]
    table = (unit[0] @ unit[1].T).numpy()
    people = [np.where(f.is_distractor(), -5 - i, f.pids) for i, f in enumerate((query, reduced))]
    own = (people[0][:, None] == people[1]) & (query.camids[:, None] == reduced.camids).numpy()
    own &= (query.camids[:, None] != -1).numpy()
    table[own | (reduced.pids == JUNK).numpy()] = -np.inf
    best = table.argmax(1)
    assert np.allclose(answers.score, table.max(1), atol=1e-6)
    assert np.array_equal(answers.right, people[1][best] == people[0])
    assert np.array_equal(answers.mated, np.bincount(rows[same], minlength=40) > 0)
    assert np.array_equal(answers.unmated, ~np.isin(people[0], people[1][reduced.pids != JUNK]))
    for rate, point in choose_thresholds(answers, (0.5, 0.2)).items():
        alarm = answers.score[answers.unmated] >= point.threshold
        assert point.false_alarm_rate == alarm.mean() <= rate
        lower = np.nextafter(point.threshold, -1) - 1e-6
        assert (answers.score[answers.unmated] >= lower).mean() > rate
    with pytest.raises(ValueError, match=r"--open_set 0\.0"):
        leave_out(query, gallery, 0.0)
    with pytest.raises(ValueError, match="every query"):
        choose_thresholds(answer(*(Features(f.embeddings, f.pids, f.camids) for f in features)))
