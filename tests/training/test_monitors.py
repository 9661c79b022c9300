"""Speed, non-finite values and idle hinges."""

import re
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reid.config import LossConfig
from reid.losses.anchors import Anchors
from reid.training import monitors as watch_module
from reid.training.monitors import FiniteWatch, HingeWatch, MarginGuide, Meter
from tests.support.batches import losses_of

NAMES = ["0002", "0007", "0010"]


class Clock:
    """A clock that only the test advances; seconds."""

    now = 1000.0

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watch_module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_the_first_bad_images_are_named() -> None:
    watch = FiniteWatch(NAMES)
    ids = torch.tensor([[0, 1], [1, 4], [2, 0]])
    features = torch.ones(3, 4)
    loss = torch.tensor(1.0)
    watch.record(10, ids, losses_of(features, loss))
    features[1, 2] = float("nan")
    watch.record(11, ids, losses_of(features, loss))
    watch.record(12, ids, losses_of(torch.full((3, 4), float("inf")), loss))
    with pytest.raises(
        ValueError, match=r"not finite: mctl; first at step 12: rank 0, 1 of 3 .*0007 image 4.*; lower it"
    ):
        watch.check({"loss": 1.0, "mctl": float("nan")}, "lower it")


def test_finite_values_start_afresh() -> None:
    watch = FiniteWatch(NAMES)
    watch.record(1, torch.tensor([[0, 0]]), losses_of(torch.ones(1, 2), torch.tensor(1.0)))
    watch.check({"loss": 1.0}, "lower it")
    assert not watch.steps
    with pytest.raises(ValueError, match="loss; all features are finite"):
        watch.check({"loss": float("inf")}, "lower it")


def test_a_loss_that_overflows_with_finite_features_names_its_own_step() -> None:
    watch = FiniteWatch(NAMES)
    ids = torch.tensor([[0, 1], [1, 4], [2, 0]])
    watch.record(4, ids, losses_of(torch.ones(3, 4), torch.tensor(2.0)))
    watch.record(5, ids, losses_of(torch.ones(3, 4), torch.tensor(float("inf"))))
    watch.record(6, ids, losses_of(torch.full((3, 4), float("nan")), torch.tensor(float("nan"))))
    with pytest.raises(ValueError, match="not finite: loss; first at step 6: all features are finite; lower it"):
        watch.check({"loss": float("nan")}, "lower it")


def test_a_restarted_meter_forgets_the_time_before(clock: Clock) -> None:
    meter = Meter(num_processes=1)
    meter.count(1000)
    clock.advance(60)  # an evaluation
    meter.restart()
    meter.count(10)
    clock.advance(0.5)
    values = meter.read()
    assert (values["images_per_s"], values["steps_per_s"], values["data_wait_share"]) == (20, 2, 0)


def test_an_idle_hinge_is_said_after_the_warm_up_and_again() -> None:
    watch = HingeWatch(first_epoch=2)
    warned = []
    for epoch, active in enumerate([0.0, 0.0, 0.25, 0.0, 0.0, 0.0, 0.0, 0.25, 0.0]):
        for share in (active, 0.0):
            watch.record({"hinge_active": share})
        if text := watch.end_epoch(0.5, epoch):
            assert "loss.margin = 0.5" in text and "loss.space" in text
            warned.append(epoch)
    assert warned == [3, 4, 6, 8]  # idle for 1, 2 and 4 epochs; active; idle for 1
    watch.record({})
    assert HingeWatch().end_epoch(0.5) is None


def test_the_meter_counts_all_ranks_and_waiting(clock: Clock) -> None:
    meter = Meter(num_processes=3)

    def slow() -> Iterator[int]:
        for item in range(2):
            clock.advance(0.25)
            yield item

    for reading in range(2):  # each counts from the one before
        for _ in meter.timed(slow()):
            meter.count(10)
            clock.advance(0.75)
        values = meter.read()
        rates = values["images_per_s"], values["steps_per_s"], values["data_wait_share"]
        assert rates == (30, 1, 0.25), reading  # 3 ranks x 20 images in 2 s, of which 0.5 s were spent waiting


@pytest.mark.parametrize("loss", [LossConfig(margin=1.4), LossConfig(margin=0.4, mctl=0.0, ctl=1.0)])
def test_the_margin_guide_names_the_margin_that_half_of_the_anchors_would_need(loss: LossConfig) -> None:
    guide = MarginGuide(loss, epoch=1)
    rng = torch.Generator().manual_seed(0)
    d_ap, d_an = torch.rand(2, 3, 41, generator=rng) + torch.tensor([0.0, 1.0])[:, None, None]
    weight = torch.ones(41)
    weight[0] = 0  # no anchor
    for epoch, ap, an in zip((0, 1, 1), d_ap, d_an, strict=True):
        losses = losses_of(torch.ones(3, 4), torch.tensor(1.0))
        guide.record(epoch, losses._replace(anchors={"centroids": Anchors(ap, an, an.long(), weight, weight)}))
    assert guide.end_epoch(0) is None
    text = guide.end_epoch(1)
    ap, an = d_ap[1:, 1:].flatten().double(), d_an[1:, 1:].flatten().double()
    gap = an if loss.mctl else an - ap
    assert "loss.space = neck" in text and f"loss.margin = {loss.margin}" in text
    quantiles = [float(word) for word in re.findall(r"\d\.\d+", text)][:6]
    assert quantiles == pytest.approx([*np.quantile(ap, [0.1, 0.5, 0.9]), *np.quantile(an, [0.1, 0.5, 0.9])], rel=5e-3)
    assert f"active for {(gap < loss.margin).double().mean():.0%}" in text and f"{gap.median():.3g} would be" in text
