"""Random changes of training images: parameters are drawn in the worker, pixels change in batches on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reid.config import AugmentConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Parameters(NamedTuple):
    """The changes of each of B images."""

    flip: Tensor
    """(B,) bool."""
    crop: Tensor
    """(B, 2) int64: top and left of the crop in the padded image."""
    affine: Tensor
    """(B, 2) float32: rotation in radians, zoom factor."""
    erase: Tensor
    """(B, 4) int64: top, left, height, width of the erased box; 0 for none."""


def concatenate(parts: list[Parameters]) -> Parameters:
    return Parameters(*map(torch.cat, zip(*parts, strict=True)))


@dataclass(frozen=True)
class Augmentation:
    """The changes of the section `augment`."""

    config: AugmentConfig

    def draw(self, rng: np.random.Generator, count: int, height: int, width: int) -> Parameters:
        """Draw the parameters of `count` images of height x width pixels. The knobs do not change how much is drawn."""
        config = self.config
        flip = rng.random(count) < config.flip
        crop = np.floor(rng.random((count, 2)) * (2 * config.pad + 1)).astype(np.int64)
        turn = rng.uniform(-1, 1, size=count) * math.radians(config.rotate_degrees)
        zoom = 1 + rng.uniform(-1, 1, size=count) * config.scale
        erase = self._draw_boxes(rng, count, height, width)
        erase[rng.random(count) >= config.erase] = 0
        return Parameters(
            flip=torch.from_numpy(flip),
            crop=torch.from_numpy(crop),
            affine=torch.from_numpy(np.stack([turn, zoom], axis=1).astype(np.float32)),
            erase=torch.from_numpy(erase),
        )

    def _draw_boxes(self, rng: np.random.Generator, count: int, height: int, width: int, tries: int = 10) -> np.ndarray:
        """Draw boxes (count, 4) of random erasing (Zhong et al., AAAI 2020).

        The area is uniform, the aspect ratio log-uniform from 0.3 to 1/0.3. The first of ten candidates that fits into
        the image is taken; if none fits, nothing is erased.
        """
        area = rng.uniform(*self.config.erase_area, size=(count, tries)) * height * width
        aspect = np.exp(rng.uniform(math.log(0.3), -math.log(0.3), size=(count, tries)))
        heights = np.round(np.sqrt(area * aspect)).astype(np.int64)
        widths = np.round(np.sqrt(area / aspect)).astype(np.int64)
        fits = (heights < height) & (widths < width)
        first = (np.arange(count), fits.argmax(axis=1))
        box_height = np.where(fits.any(axis=1), heights[first], 0)
        box_width = np.where(fits.any(axis=1), widths[first], 0)
        top = np.floor(rng.random(count) * (height - box_height + 1)).astype(np.int64)
        left = np.floor(rng.random(count) * (width - box_width + 1)).astype(np.int64)
        return np.stack([top, left, box_height, box_width], axis=1)

    def apply(self, images: Tensor, parameters: Parameters, pin: bool = True) -> Tensor:
        """Change images (B, 3, H, W) uint8 on any device; returns normalised float32 of the same shape."""
        batch, _, height, width = images.shape
        device = images.device
        flip, crop = copy_to(parameters.flip, device, pin), copy_to(parameters.crop, device, pin)
        rows = crop[:, :1] + torch.arange(height, device=device) - self.config.pad
        columns = crop[:, 1:] + torch.arange(width, device=device) - self.config.pad
        columns = torch.where(flip[:, None], width - 1 - columns, columns)
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        which = torch.arange(batch, device=device)[:, None, None]
        moved = images.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
        if self.config.fill == "black":
            moved = moved * inside[..., None]
        pixels = normalize(moved.permute(0, 3, 1, 2))
        if self.config.rotate_degrees or self.config.scale:
            pixels = _rotate_and_zoom(pixels, copy_to(parameters.affine, device, pin))
        return _erase(pixels, copy_to(parameters.erase, device, pin))


def copy_to(tensor: Tensor, device: torch.device, pin: bool) -> Tensor:
    """Copy a tensor to the device. pin: copy from page-locked memory, so that the host does not wait (only CUDA)."""
    if device.type == "cuda" and pin and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def normalize(images: Tensor) -> Tensor:
    """Return uint8 images (B, 3, H, W) as float32 with ImageNet's mean 0 and standard deviation 1 per channel."""
    mean, std = _per_channel(IMAGENET_MEAN, images), _per_channel(IMAGENET_STD, images)
    return (images.float() - mean * 255) / (std * 255)


def _per_channel(values: Sequence[float], images: Tensor) -> Tensor:
    """Return (1, 3, 1, 1), filled on the device of `images`: a copy from the host would wait for the device."""
    filled = [torch.full((1, 1, 1, 1), value, device=images.device) for value in values]
    return torch.cat(filled, dim=1)


def denormalize(pixels: Tensor) -> Tensor:
    """Return the inverse of `normalize`, rounded and clipped to uint8."""
    mean, std = _per_channel(IMAGENET_MEAN, pixels), _per_channel(IMAGENET_STD, pixels)
    return ((pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _rotate_and_zoom(pixels: Tensor, affine: Tensor) -> Tensor:
    """Rotate and zoom around the center; pixels from outside repeat the border."""
    height, width = pixels.shape[-2:]
    sine, cosine, zoom = affine[:, 0].sin(), affine[:, 0].cos(), affine[:, 1]
    zero = torch.zeros_like(zoom)
    first = torch.stack([cosine / zoom, -sine / zoom * (height / width), zero], dim=1)
    second = torch.stack([sine / zoom * (width / height), cosine / zoom, zero], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _erase(pixels: Tensor, boxes: Tensor) -> Tensor:
    """Fill each image's box (B, 4) with the mean colour, which is 0 after normalisation."""
    top, left, height, width = boxes[:, :, None].unbind(dim=1)
    rows = torch.arange(pixels.shape[2], device=pixels.device)
    columns = torch.arange(pixels.shape[3], device=pixels.device)
    in_rows = (rows >= top) & (rows < top + height)
    in_columns = (columns >= left) & (columns < left + width)
    return pixels.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)
