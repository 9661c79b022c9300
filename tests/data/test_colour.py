"""reid/data/colour.py: batched operations against torchvision's, one image at a time, and what is drawn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from reid.config import AugmentConfig
from reid.data.colour import COLUMN, NEUTRAL, POLICY, ColourParameters, blur_kernels, change_colours, draw_colours

H, W = 20, 12
ALL = AugmentConfig(jitter=0.5, grey=0.2, blur=0.5, policy="trivial")
KNOBS = {"jitter": 0.5, "grey": 0.5, "blur": 0.5, "policy": "trivial"}


def images(count: int, seed: int = 0) -> Tensor:
    """Smooth and noisy, dark and bright; among them a grey image, a flat one and one with a flat channel."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 256, (count, 3, H, W)) * rng.uniform(0.2, 1, (count, 3, 1, 1))
    found[0] = found[0, :1]
    found[1] = 77
    found[2, 1] = 200
    return torch.from_numpy(found.astype(np.uint8))


def draw(config: AugmentConfig, count: int, seed: int = 0) -> ColourParameters:
    return draw_colours(config, np.random.default_rng(seed), count)


def change(config: AugmentConfig, batch: Tensor, drawn: ColourParameters) -> Tensor:
    kernels = blur_kernels(config, drawn.sigma, min(batch.shape[2:]))
    return change_colours(config, batch, torch.from_numpy(drawn.values), torch.from_numpy(kernels))


def posterize(image: Tensor, levels: float) -> Tensor:
    return F.posterize(image, int(np.log2(levels))) if levels else image


TORCHVISION: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
    "sharpness": F.adjust_sharpness,
    "posterize": posterize,
    "solarize": lambda image, threshold: F.solarize(image, threshold) if threshold <= 1 else image,
    "autocontrast": lambda image, chosen: F.autocontrast(image) if chosen else image,
}
SOME = {
    "brightness": (0.1, 0.7, 1.9), "contrast": (0.1, 0.7, 1.9), "saturation": (0.0, 0.3, 1.9),
    "hue": (-0.5, -0.1, 0.23, 0.5), "sharpness": (0.1, 0.7, 1.9), "posterize": (2, 16, 128),
    "solarize": (0.0, 0.31, 1.0), "autocontrast": (1.0,),
}  # fmt: skip


@pytest.mark.parametrize("name", NEUTRAL)
def test_each_operation_equals_torchvisions(name: str) -> None:
    values = [value for value in SOME[name] for _ in range(5)]
    batch, drawn = images(len(values)), draw(AugmentConfig(), len(values))
    drawn.values[:, COLUMN[name]] = values
    found = change(ALL, batch, drawn)
    for image, value, given in zip(found, values, batch, strict=True):
        wanted = TORCHVISION[name](given / 255, value)
        torch.testing.assert_close(image / 255, wanted, atol=2e-6, rtol=0, msg=lambda text, v=value: f"{v}: {text}")


def test_all_operations_in_their_order_and_the_blur_equal_torchvisions() -> None:
    """Levels and thresholds are jumps, at which the last bit of an earlier operation decides: few pixels may differ."""
    batch, drawn = images(60), draw(ALL, 60)
    found = change(ALL, batch, drawn) / 255
    differing = 0
    for image, given, values, sigma in zip(found, batch, *drawn, strict=True):
        wanted = given / 255
        for name, operation in TORCHVISION.items():
            wanted = operation(wanted, float(values[COLUMN[name]]))
        if sigma:
            wanted = F.gaussian_blur(wanted, [13, 13], [float(sigma)] * 2)
        differing += int(((image - wanted).abs() > 1e-5).sum())
    assert (drawn.sigma > 0).sum() > 20 and differing <= 0.001 * batch.numel()


def test_a_blur_equals_torchvisions() -> None:
    config = AugmentConfig(blur=1.0)
    batch, drawn = images(8), draw(config, 8)
    for image, given, sigma in zip(change(config, batch, drawn), batch, drawn.sigma.tolist(), strict=True):
        torch.testing.assert_close(image / 255, F.gaussian_blur(given / 255, [13, 13], [sigma] * 2), atol=2e-6, rtol=0)
    assert blur_kernels(config, drawn.sigma, 4).shape == (8, 7)  # mirrored images reach no farther


def test_images_that_are_not_chosen_stay_to_the_last_bit() -> None:
    batch = images(12)
    assert torch.equal(change(ALL, batch, draw(AugmentConfig(), 12)), batch.float())
    assert change(AugmentConfig(), batch, draw(ALL, 12)) is batch


def test_draws_lie_where_the_knobs_say() -> None:
    count = 4000
    jitter = draw(AugmentConfig(jitter=0.4, jitter_strengths=(0.3, 0.2, 0.1, 0.05)), count).values
    changed = jitter != np.array([*NEUTRAL.values()], np.float32)
    assert abs(changed[:, 0].mean() - 0.4) < 0.03 and (changed[:, :4] == changed[:, :1]).all()
    furthest = abs(jitter - np.array([*NEUTRAL.values()])).max(axis=0)
    assert (furthest[:4] <= [0.3 + 1e-6, 0.2 + 1e-6, 0.1 + 1e-6, 0.05 + 1e-6]).all()
    assert (furthest[:4] > [0.29, 0.19, 0.095, 0.045]).all() and not furthest[4:].any()
    grey = draw(AugmentConfig(grey=0.3), count).values[:, COLUMN["saturation"]]
    assert abs((grey == 0).mean() - 0.3) < 0.03 and set(grey.tolist()) == {0.0, 1.0}
    sigma = draw(AugmentConfig(blur=0.3, blur_sigma=(0.5, 1.5)), count).sigma
    assert abs((sigma > 0).mean() - 0.3) < 0.03 and sigma.max() <= 1.5 and 0.5 <= sigma[sigma > 0].min() < 0.51


def test_the_policy_draws_each_operation_as_often_and_never_two() -> None:
    values = draw(AugmentConfig(policy="trivial"), 8000).values
    changed = values != np.array([*NEUTRAL.values()], np.float32)
    assert changed.sum(axis=1).max() == 1
    shares = {name: changed[:, COLUMN[name]].mean() for name in POLICY if name != "identity"}
    assert all(abs(share - 1 / len(POLICY)) < 0.02 for share in shares.values()) and "hue" not in shares
    assert set(values[:, COLUMN["posterize"]].tolist()) == {0, 16, 32, 64, 128, 256}
    assert 0.1 <= values[:, 0].min() < 0.15 and 1.85 < values[:, 0].max() <= 1.9


@pytest.mark.parametrize("knob", KNOBS)
def test_a_knob_changes_images_and_moves_no_other_draw(knob: str) -> None:
    """The other knobs are at what they are when this one is off."""
    others = {name: value for name, value in KNOBS.items() if name != knob}
    one, other = draw(AugmentConfig(**others), 200), draw(AugmentConfig(**KNOBS), 200)
    columns = {"jitter": 4, "grey": 3, "blur": 0, "policy": 8}[knob]
    assert np.array_equal(one.values[:, columns:], other.values[:, columns:])
    assert np.array_equal(one.sigma, other.sigma) == (knob != "blur")
    alone, batch = AugmentConfig(**{knob: KNOBS[knob]}), images(40)
    assert not torch.equal(change(alone, batch, draw(alone, 40)), batch.float())
