"""Random changes of colours and sharpness: jitter, grey, blur, and a policy of one operation an image.

Each operation changes a batch at once, with parameters of each image. Parameters of an image that is not to be changed
leave it as it is, to the last bit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reid.config import AugmentConfig
from reid.precision import exact_products

# A column of parameters for each operation, in the order in which they are applied, and what leaves an image as it is.
NEUTRAL = {
    "brightness": 1.0,  # factor
    "contrast": 1.0,  # factor of the difference from the mean grey
    "saturation": 1.0,  # factor of the difference from grey
    "hue": 0.0,  # turns of the colour wheel
    "sharpness": 1.0,  # factor of the difference from a smoothed image
    "posterize": 0.0,  # levels that are left of a channel; 0 = all
    "solarize": 2.0,  # values from here on are inverted
    "autocontrast": 0.0,  # 1 = stretch each channel to 0..1
}
COLUMN = {name: i for i, name in enumerate(NEUTRAL)}
FACTORS = ("brightness", "contrast", "saturation", "sharpness")  # of the policy: 1 ± POLICY_FACTOR at most
POLICY = (*FACTORS, "posterize", "solarize", "autocontrast", "identity")  # one of them for each image
POLICY_FACTOR, POLICY_BITS = 0.9, 4  # at full strength; bits of 8 that posterizing takes away


class ColourParameters(NamedTuple):
    """The changes of the colours of each of B images."""

    values: np.ndarray
    """(B, 8) float32, by COLUMN."""
    sigma: np.ndarray
    """(B,) float32: of the blur in pixels; 0 for none."""


def draw_colours(config: AugmentConfig, rng: np.random.Generator, count: int) -> ColourParameters:
    """Draw the parameters of `count` images. The knobs do not change how much is drawn.

    Where jitter and policy change the same, their factors are multiplied.
    """
    values = np.tile(np.array([*NEUTRAL.values()], np.float32), (count, 1))
    strengths = np.where(rng.random((count, 1)) < config.jitter, config.jitter_strengths, 0.0)
    values[:, :4] += rng.uniform(-1, 1, (count, 4)) * strengths
    values[rng.random(count) < config.grey, COLUMN["saturation"]] = 0.0
    is_blurred = rng.random(count) < config.blur
    sigma = np.where(is_blurred, rng.uniform(*config.blur_sigma, count), 0.0).astype(np.float32)
    _draw_policy(values, rng, config.policy == "trivial")
    return ColourParameters(values, sigma)


def _draw_policy(values: np.ndarray, rng: np.random.Generator, is_used: bool) -> None:
    """Change `values` (B, 8) by one operation for each image, of a uniform strength.

    TrivialAugment (Müller & Hutter, ICCV 2021) without its operations of geometry, which have knobs of their own.
    """
    chosen = np.floor(rng.random(len(values)) * len(POLICY)).astype(np.int64)
    strength, sign = rng.random(len(values)), np.where(rng.random(len(values)) < 0.5, -1, 1)
    made = dict.fromkeys(FACTORS, 1 + sign * POLICY_FACTOR * strength)
    made["posterize"] = 2.0 ** (8 - np.round(POLICY_BITS * strength))
    made["solarize"] = 1 - strength
    made["autocontrast"] = np.ones(len(values))
    for place, name in enumerate(POLICY if is_used else ()):
        rows = chosen == place
        if name in FACTORS:
            values[rows, COLUMN[name]] *= made[name][rows]
        elif name in COLUMN:
            values[rows, COLUMN[name]] = made[name][rows]


def blur_kernels(config: AugmentConfig, sigma: np.ndarray, size: int) -> np.ndarray:
    """Return Gaussian kernels (B, K) float32, cut off at three of the largest sigma; a single 1 for a sigma of 0.

    size: the shorter side of the images, which bounds K.
    """
    radius = min(math.ceil(3 * config.blur_sigma[1]), size - 1) if config.blur else 0
    place = np.arange(-radius, radius + 1)
    kernels = np.exp(-0.5 * (place / np.maximum(sigma, 1e-3)[:, None]) ** 2)
    return (kernels / kernels.sum(axis=1, keepdims=True)).astype(np.float32)


def change_colours(config: AugmentConfig, images: Tensor, values: Tensor, kernels: Tensor) -> Tensor:
    """Change images (B, 3, H, W) uint8; returns float32, 0 to 255. Images stay as they are if all knobs are 0.

    Args:
        images: on any device.
        values: (B, 8) of `ColourParameters`.
        kernels: (B, K) of `blur_kernels`.
    """
    used = set(FACTORS[:3]) | {"hue"} if config.jitter else set()
    used |= {"saturation"} if config.grey else set()
    used |= set(POLICY) if config.policy != "none" else set()
    if not used and not config.blur:
        return images
    pixels = images.float() / 255
    for name, operation in OPERATIONS.items():
        if name in used:
            pixels = operation(pixels, values[:, COLUMN[name], None, None, None])
    return (_blur(pixels, kernels) if config.blur else pixels) * 255


def _change_brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    return (pixels * factor).clamp_(0, 1)


def _change_contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    return _mix(_grey(pixels).mean(dim=(1, 2, 3), keepdim=True), pixels, factor)


def _change_saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    return _mix(_grey(pixels), pixels, factor)


def _mix(base: Tensor, pixels: Tensor, factor: Tensor) -> Tensor:
    """Return base + factor · (pixels - base), within 0 to 1; `pixels` themselves for a factor of 1."""
    return torch.lerp(base, pixels, factor).clamp_(0, 1)


def _grey(pixels: Tensor) -> Tensor:
    """Return the brightness (B, 1, H, W) as television defines it (ITU-R 601)."""
    red, green, blue = pixels.split(1, dim=1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _turn_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of HSV, whose value and chroma stay.

    In sixths of a turn, a hue h gives the channels n = 5, 3, 1 as value - chroma · clamp(min(k, 4 - k), 0, 1), with
    k = (n + h) mod 6.
    """
    value, brightest = pixels.max(dim=1, keepdim=True)
    chroma = value - pixels.amin(dim=1, keepdim=True)
    after, before = (pixels.gather(1, (brightest + i) % 3) for i in (1, 2))
    hue = (after - before) / chroma.clamp(min=1e-12) + 2 * brightest
    n = torch.arange(5, 0, -2, device=pixels.device)[:, None, None]
    k = (hue + 6 * turns + n) % 6
    turned = value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)
    return torch.where(turns == 0, pixels, turned)  # not the same to the last bit


def _sharpen(pixels: Tensor, factor: Tensor) -> Tensor:
    """Mix with an image smoothed by the kernel 1 1 1, 1 5 1, 1 1 1 (PIL's SMOOTH); the border stays."""
    smoother = F.pad(F.avg_pool2d(pixels, 3, stride=1) - pixels[..., 1:-1, 1:-1], (1, 1, 1, 1)) * (9 / 13)
    return (pixels + (1 - factor) * smoother).clamp_(0, 1)


def _posterize(pixels: Tensor, levels: Tensor) -> Tensor:
    lower = torch.minimum((pixels * levels).floor_(), levels - 1) / levels
    return torch.where(levels > 0, lower, pixels)


def _solarize(pixels: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(pixels >= threshold, 1 - pixels, pixels)


def _stretch_contrast(pixels: Tensor, is_chosen: Tensor) -> Tensor:
    low, high = (function(pixels, dim=(2, 3), keepdim=True) for function in (torch.amin, torch.amax))
    stretched = (pixels - low) / (high - low)
    return torch.where((is_chosen > 0) & (high > low), stretched, pixels)


OPERATIONS = {
    "brightness": _change_brightness,
    "contrast": _change_contrast,
    "saturation": _change_saturation,
    "hue": _turn_hue,
    "sharpness": _sharpen,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _stretch_contrast,
}


def _blur(pixels: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each image with its own kernel (K,), along rows and columns; outside, the image is mirrored."""
    radius, shape = kernels.shape[1] // 2, pixels.shape
    of_channels = kernels[:, None].expand(-1, shape[1], -1).reshape(-1, 1, 1, kernels.shape[1])
    padded = F.pad(pixels, (radius,) * 4, mode="reflect")
    rows = padded.reshape(1, -1, *padded.shape[2:])
    with exact_products(pixels.device):
        for kernel in (of_channels, of_channels.transpose(2, 3)):
            rows = F.conv2d(rows, kernel, groups=len(kernel))
    return rows.view(shape)
