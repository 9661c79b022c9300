"""Speed, non-finite values and idle hinges."""

import time

import pytest
import torch

from reid.watch import FiniteWatch, HingeWatch, Meter

NAMES = ["0002", "0007", "0010"]


def test_the_first_bad_images_are_named() -> None:
    watch = FiniteWatch(NAMES)
    ids = torch.tensor([[0, 1], [1, 4], [2, 0]])
    features = torch.ones(3, 4)
    loss = torch.tensor(1.0)
    watch.see(10, ids, features, loss)
    features[1, 2] = float("nan")
    watch.see(11, ids, features, loss)
    watch.see(12, ids, torch.full((3, 4), float("inf")), loss)
    with pytest.raises(ValueError, match=r"not finite: mctl; first at step 12: rank 0, 1 of 3 .*0007 image 4.*; mend"):
        watch.check({"loss": 1.0, "mctl": float("nan")}, "mend")


def test_finite_values_start_afresh() -> None:
    watch = FiniteWatch(NAMES)
    watch.see(1, torch.tensor([[0, 0]]), torch.ones(1, 2), torch.tensor(1.0))
    watch.check({"loss": 1.0}, "mend")
    assert not watch.steps
    with pytest.raises(ValueError, match="loss; all features are finite"):
        watch.check({"loss": float("inf")}, "mend")


def test_a_loss_that_overflows_with_finite_features_names_its_own_step() -> None:
    watch = FiniteWatch(NAMES)
    ids = torch.tensor([[0, 1], [1, 4], [2, 0]])
    watch.see(4, ids, torch.ones(3, 4), torch.tensor(2.0))
    watch.see(5, ids, torch.ones(3, 4), torch.tensor(float("inf")))
    watch.see(6, ids, torch.full((3, 4), float("nan")), torch.tensor(float("nan")))
    with pytest.raises(ValueError, match="not finite: loss; first at step 6: all features are finite; mend"):
        watch.check({"loss": float("nan")}, "mend")


def test_a_restarted_meter_forgets_the_time_before() -> None:
    meter = Meter(num_processes=1)
    time.sleep(0.2)  # an evaluation
    meter.restart()
    meter.count(10)
    assert meter.read()["images_per_s"] > 100


def test_an_idle_hinge_is_said_once() -> None:
    watch = HingeWatch()
    for active, said in [(0.25, False), (0.0, True), (0.0, False)]:
        for share in (active, 0.0):
            watch.see({"hinge_active": torch.tensor(share)})
        text = watch.end_epoch(0.5)
        assert (text is not None) == said
        if text is not None:
            assert "loss.margin = 0.5" in text and "loss.relative" in text
    watch.see({})
    assert HingeWatch().end_epoch(0.5) is None


def test_the_meter_counts_all_ranks_and_waiting() -> None:
    meter = Meter(num_processes=3)

    def slow():
        time.sleep(0.05)
        yield 1

    for _ in meter.timed(slow()):
        meter.count(10)
        time.sleep(0.05)
    values = meter.read()
    assert 100 < values["images_per_s"] < 300
    assert 0.2 < values["data_wait_share"] < 0.8
