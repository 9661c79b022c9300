"""reid/training/ema.py: the average against a loop over its tensors."""

from __future__ import annotations

import pytest
import torch

from reid.training.ema import WeightAverage
from tests.support.models import make_model
from tests.support.narrow import use_narrow_resnet10


def test_the_average_follows_weights_and_statistics_and_copies_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    use_narrow_resnet10(monkeypatch)
    torch.manual_seed(0)
    model = make_model(3, pool="gem")
    average = WeightAverage(model, decay=0.5)
    wanted = {name: value.double() for name, value in model.state_dict().items()}
    for step, decay in ((0, 0.1), (3, 4 / 13), (40, 0.5)):
        for value in model.state_dict().values():
            value.copy_(torch.randn_like(value)) if value.is_floating_point() else value.add_(2)
        average.update(model, step)
        for name, value in model.state_dict().items():
            moved = decay * wanted[name] + (1 - decay) * value.double()
            wanted[name] = moved if value.is_floating_point() else value.double()
    found = average.model.state_dict()
    assert found.keys() == wanted.keys() and found["neck.num_batches_tracked"] == 6
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-6, msg=name)
    assert not average.model.training and not any(p.requires_grad for p in average.model.parameters())
