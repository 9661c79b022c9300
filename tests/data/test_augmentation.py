"""reid/data/augmentation.py: batched changes against one image at a time, in loops, numpy and Pillow."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from reid.config import AugmentConfig
from reid.data.augmentation import (
    Augmentation,
    Changes,
    Parameters,
    concatenate,
)
from reid.data.colour import COLUMN, NEUTRAL
from reid.data.normalization import IMAGENET_MEAN, IMAGENET_STD, Normalization

H, W = 12, 8


def images(count: int, height: int = H, width: int = W, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), dtype=np.uint8))


def identity(count: int, pad: int = 0) -> Parameters:
    """Nothing is done: the crop is the middle of the padded image."""
    return Parameters(
        flip=np.zeros(count, dtype=bool),
        crop=np.full((count, 2), pad),
        affine=np.array([[0.0, 1.0]] * count, dtype=np.float32),
        erase=np.zeros((count, 4), dtype=np.int64),
        colours=np.array([[*NEUTRAL.values()]] * count, dtype=np.float32),
        sigma=np.zeros(count, dtype=np.float32),
    )


def change(augmentation: Augmentation, batch: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    return augmentation.apply(batch, augmentation.expand(parameters, *batch.shape[2:]))


def slowly_normalized(image: np.ndarray) -> np.ndarray:
    """(3, H, W) numbers 0..255 -> float64."""
    mean, std = np.array(IMAGENET_MEAN)[:, None, None], np.array(IMAGENET_STD)[:, None, None]
    return (image / 255 - mean) / std


def test_normalize_and_back():
    batch = images(3)
    wanted = np.stack([slowly_normalized(image) for image in batch.numpy()])
    assert Normalization().apply(batch).dtype == torch.float32
    np.testing.assert_allclose(Normalization().apply(batch), wanted, atol=1e-5)
    assert torch.equal(Normalization().invert(Normalization().apply(batch)), batch)


def test_values_outside_are_clipped_on_the_way_back():
    batch = Normalization().apply(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)) * 3
    assert Normalization().invert(batch).flatten(1).tolist() == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("knobs", [{}, {"rotate_degrees": 20.0}, {"scale": 0.2}, {"fill": "edge", "pad": 0}])
def test_parameters_of_nothing_give_plain_normalisation(knobs):
    """Coordinates up to 12 are off by up to 4e-6 in float32, between neighbours that differ by up to 4.9."""
    augmentation = Augmentation(AugmentConfig(**knobs))
    found = change(augmentation, images(3), identity(3, augmentation.config.pad))
    torch.testing.assert_close(found, Normalization().apply(images(3)), atol=2e-5, rtol=0)


@pytest.mark.parametrize("fill", ["black", "edge"])
def test_flip_and_crop_one_image_at_a_time(fill):
    pad, batch, rng = 3, images(40), np.random.default_rng(1)
    parameters = identity(40)
    parameters.flip[:] = rng.random(40) < 0.5
    parameters.crop[:] = rng.integers(0, 2 * pad + 1, (40, 2))
    parameters.crop[:2] = [[0, 0], [2 * pad, 2 * pad]]
    found = change(Augmentation(AugmentConfig(pad=pad, fill=fill)), batch, parameters)
    for i, image in enumerate(batch.numpy()):
        turned = image[:, :, ::-1] if parameters.flip[i] else image
        mode = {"black": "constant", "edge": "edge"}[fill]
        padded = np.pad(turned, ((0, 0), (pad, pad), (pad, pad)), mode=mode)
        top, left = parameters.crop[i].tolist()
        wanted = slowly_normalized(padded[:, top : top + H, left : left + W])
        np.testing.assert_allclose(found[i], wanted, atol=1e-5, err_msg=str(i))


def slowly_rotated(image: np.ndarray, angle: float, zoom: float) -> np.ndarray:
    """(3, H, W): each target pixel looks up its source, bilinear, border repeated."""
    _, height, width = image.shape
    result = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            down, right = y - (height - 1) / 2, x - (width - 1) / 2
            from_x = (math.cos(angle) * right - math.sin(angle) * down) / zoom + (width - 1) / 2
            from_y = (math.sin(angle) * right + math.cos(angle) * down) / zoom + (height - 1) / 2
            from_x, from_y = min(max(from_x, 0), width - 1), min(max(from_y, 0), height - 1)
            x0, y0 = min(int(from_x), width - 2), min(int(from_y), height - 2)
            dx, dy = from_x - x0, from_y - y0
            above = (1 - dx) * image[:, y0, x0] + dx * image[:, y0, x0 + 1]
            below = (1 - dx) * image[:, y0 + 1, x0] + dx * image[:, y0 + 1, x0 + 1]
            result[:, y, x] = (1 - dy) * above + dy * below
    return result


def test_rotation_and_zoom_one_pixel_at_a_time():
    batch, parameters = images(4), identity(4)
    parameters.affine[:] = [[0.3, 1.0], [-0.8, 1.0], [0.0, 1.3], [0.5, 0.7]]
    found = change(Augmentation(AugmentConfig(pad=0, rotate_degrees=1.0)), batch, parameters)
    for i, image in enumerate(batch.numpy()):
        angle, zoom = parameters.affine[i].tolist()
        wanted = slowly_rotated(slowly_normalized(image), angle, zoom)
        np.testing.assert_allclose(found[i], wanted, atol=1e-4, err_msg=str(i))


def test_rotation_turns_as_pillow_does():
    """Inside the circle that no border reaches, on an image whose height and width differ."""
    y, x = np.mgrid[:40, :24]
    smooth = np.stack([6 * y, 10 * x, 3 * y + 4 * x]).astype(np.uint8)
    parameters = identity(1)
    parameters.affine[0, 0] = math.radians(25)
    augmentation = Augmentation(AugmentConfig(pad=0, rotate_degrees=25.0))
    found = Normalization().invert(change(augmentation, torch.from_numpy(smooth)[None], parameters))[0]
    turned = Image.fromarray(smooth.transpose(1, 2, 0)).rotate(25, Image.Resampling.BILINEAR)
    inside = (y - 19.5) ** 2 + (x - 11.5) ** 2 < 10**2
    difference = np.abs(found.numpy().astype(int) - np.asarray(turned).transpose(2, 0, 1))[:, inside]
    assert difference.max() <= 1


def test_erased_box_is_zero_and_the_rest_is_untouched():
    batch, parameters = images(3), identity(3)
    parameters.erase[0] = [2, 1, 4, 5]
    parameters.erase[1] = [0, 0, H, W]
    found = change(Augmentation(AugmentConfig(pad=0)), batch, parameters)
    wanted = np.stack([slowly_normalized(image) for image in batch.numpy()])
    for y in range(2, 6):
        for x in range(1, 6):
            wanted[0, :, y, x] = 0
    wanted[1] = 0
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_erased_box_neither_moves_with_the_crop_nor_with_the_rotation():
    parameters = identity(1)
    parameters.erase[0] = [1, 1, 3, 3]
    parameters.affine[0, 0] = 0.3
    parameters.flip[0] = True
    found = change(Augmentation(AugmentConfig(pad=2, rotate_degrees=20.0)), images(1), parameters)
    assert (found[0, :, 1:4, 1:4] == 0).all()
    assert (found[0] == 0).sum() == 27


def test_colours_change_before_padding_and_erasing():
    """A solarized image is white where it was black, and its padding is not."""
    parameters = identity(1)
    parameters.colours[0, COLUMN["solarize"]] = 0.0
    parameters.erase[0] = [5, 4, 2, 2]
    augmentation = Augmentation(AugmentConfig(pad=2, policy="trivial"))  # a crop of the first rows: two of padding
    found = change(augmentation, torch.zeros(1, 3, H, W, dtype=torch.uint8), parameters)[0]
    black, white = (slowly_normalized(np.full((3, 1, 1), value))[:, 0, 0] for value in (0, 255))
    np.testing.assert_allclose(found[:, 0, 0], black, atol=1e-5)
    np.testing.assert_allclose(found[:, 3, 3], white, atol=1e-5)
    assert (found[:, 5:7, 4:6] == 0).all()


def draw(count: int, seed: int = 0, height: int = 64, width: int = 32, **knobs) -> Parameters:
    return Augmentation(AugmentConfig(**knobs)).draw(np.random.default_rng(seed), count, height, width)


def test_drawn_shapes_and_dtypes():
    parameters = draw(5)
    assert (parameters.flip.shape, parameters.flip.dtype) == ((5,), bool)
    assert (parameters.crop.shape, parameters.crop.dtype) == ((5, 2), np.int64)
    assert (parameters.affine.shape, parameters.affine.dtype) == ((5, 2), np.float32)
    assert (parameters.erase.shape, parameters.erase.dtype) == ((5, 4), np.int64)
    assert (parameters.colours.shape, parameters.colours.dtype) == ((5, 8), np.float32)
    assert (parameters.sigma.shape, parameters.sigma.dtype) == ((5,), np.float32)


def test_draws_lie_where_the_knobs_say():
    parameters = draw(4000, flip=0.3, pad=2, rotate_degrees=30.0, scale=0.2, erase=0.6)
    assert abs(parameters.flip.mean() - 0.3) < 0.03
    assert {tuple(crop) for crop in parameters.crop.tolist()} == {(top, left) for top in range(5) for left in range(5)}
    turns, zooms = parameters.affine.T
    assert 0.98 * math.radians(30) < abs(turns).max() <= math.radians(30) + 1e-6
    assert turns.min() < 0 < turns.max()
    assert 0.8 <= zooms.min() < 0.81 and 1.19 < zooms.max() <= 1.2 + 1e-6
    assert abs((parameters.erase[:, 2] > 0).mean() - 0.6) < 0.03


def test_erased_boxes_fit_and_have_the_area_and_shape_asked_for():
    top, left, height, width = draw(4000, erase=1.0, erase_area=(0.1, 0.3)).erase.astype(float).T
    assert (height > 0).all() and (width > 0).all()
    assert (top >= 0).all() and (top + height <= 64).all() and (left >= 0).all() and (left + width <= 32).all()
    # Sides are rounded to whole pixels, so the bounds hold for sides half a pixel off.
    assert ((height + 0.5) * (width + 0.5) >= 0.1 * 64 * 32).all()
    assert ((height - 0.5) * (width - 0.5) <= 0.3 * 64 * 32).all()
    assert ((height + 0.5) / (width - 0.5) >= 0.3).all() and ((height - 0.5) / (width + 0.5) <= 1 / 0.3).all()
    share = height * width / (64 * 32)
    assert abs(share.mean() - 0.2) < 0.01 and share.min() < 0.12 and share.max() > 0.28
    middle = top + height / 2
    assert abs(middle.mean() - 32) < 1


def test_knobs_at_zero_draw_nothing():
    parameters = draw(50, flip=0.0, pad=0, rotate_degrees=0.0, scale=0.0, erase=0.0)
    wanted = identity(50)
    for name in Parameters._fields:
        np.testing.assert_array_equal(getattr(parameters, name), getattr(wanted, name), err_msg=name)


def test_the_generator_alone_decides():
    one, same, other = draw(20), draw(20), draw(20, seed=1)
    for name in Parameters._fields:
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
    assert not np.array_equal(one.erase, other.erase)


@pytest.mark.parametrize(
    ("knobs", "changed"),
    [
        ({"flip": 0.0}, {"flip"}),
        ({"pad": 3}, {"crop"}),
        ({"rotate_degrees": 0.0, "scale": 0.0}, {"affine"}),
        ({"erase": 0.0}, {"erase"}),
        ({"erase_area": (0.3, 0.3)}, {"erase"}),
        ({"jitter": 0.5, "grey": 0.5, "policy": "trivial"}, {"colours"}),
        ({"blur": 0.5}, {"sigma"}),
    ],
)
def test_a_knob_changes_its_own_parameters_only(knobs, changed):
    base = {"rotate_degrees": 10.0, "scale": 0.1, "erase": 1.0}
    one, other = draw(20, **base), draw(20, **{**base, **knobs})
    differing = {name for name in Parameters._fields if not np.array_equal(getattr(one, name), getattr(other, name))}
    assert differing == changed


def test_concatenate_keeps_the_order():
    augmentation = Augmentation(AugmentConfig())
    parts = [augmentation.expand(draw(count, seed=count), 64, 32) for count in (2, 3)]
    joined = concatenate(parts)
    for name in Changes._fields:
        assert torch.equal(getattr(joined, name), torch.cat([getattr(part, name) for part in parts])), name
