"""Random changes of training images: parameters are drawn in the worker, pixels change in batches on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reid.config import AugmentConfig
from reid.data.colour import blur_kernels, change_colours, draw_colours
from reid.data.normalization import IMAGENET, Normalization


class Parameters(NamedTuple):
    """The changes of each of B images."""

    flip: np.ndarray
    """(B,) bool."""
    crop: np.ndarray
    """(B, 2) int64: top and left of the crop in the padded image."""
    affine: np.ndarray
    """(B, 2) float32: rotation in radians, zoom factor."""
    erase: np.ndarray
    """(B, 4) int64: top, left, height, width of the erased box; 0 for none."""
    colours: np.ndarray
    """(B, 8) float32: see `ColourParameters`."""
    sigma: np.ndarray
    """(B,) float32: of the blur in pixels; 0 for none."""


class Changes(NamedTuple):
    """`Parameters` for each row and column of pixels: what the device needs to change B images of H x W pixels."""

    rows: Tensor
    """(B, H) int64: source of each row."""
    columns: Tensor
    """(B, W) int64: source of each column."""
    inside_rows: Tensor
    """(B, H) bool: rows that are not padding."""
    inside_columns: Tensor
    """(B, W) bool."""
    erased_rows: Tensor
    """(B, H) bool: rows of the erased box."""
    erased_columns: Tensor
    """(B, W) bool."""
    affine: Tensor
    """(B, 2, 3) float32: rotation and zoom in normalized coordinates."""
    colours: Tensor
    """(B, 8) float32: see `ColourParameters`."""
    kernels: Tensor
    """(B, K) float32: of the blur."""


def concatenate(parts: Sequence[Changes]) -> Changes:
    """Concatenate the images of several parts."""
    return Changes(*map(torch.cat, zip(*parts, strict=True)))


@dataclass(frozen=True)
class Augmentation:
    """The changes of the section `augment`, and the normalization after them."""

    config: AugmentConfig
    normalization: Normalization = IMAGENET

    def draw(self, rng: np.random.Generator, count: int, height: int, width: int) -> Parameters:
        """Draw the parameters of `count` images of height x width pixels. The knobs do not change how much is drawn."""
        config = self.config
        flip = rng.random(count) < config.flip
        crop = np.floor(rng.random((count, 2)) * (2 * config.pad + 1)).astype(np.int64)
        turn = rng.uniform(-1, 1, size=count) * math.radians(config.rotate_degrees)
        zoom = 1 + rng.uniform(-1, 1, size=count) * config.scale
        erase = self._draw_boxes(rng, count, height, width)
        erase[rng.random(count) >= config.erase] = 0
        affine = np.stack([turn, zoom], axis=1).astype(np.float32)
        # From a generator of their own, so that a change here moves no other draw.
        return Parameters(flip, crop, affine, erase, *draw_colours(config, rng.spawn(1)[0], count))

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

    def expand(self, parameters: Parameters, height: int, width: int) -> Changes:
        """Work the parameters out for images of height x width pixels, on the host: the device runs few operations."""
        flip, crop, affine, erase, colours, sigma = parameters
        (rows, inside_rows), (columns, inside_columns) = (_crop_table(n, self.config.pad) for n in (height, width))
        top, left, box_height, box_width = erase.T[:, :, None]
        turn, zoom = affine.T.astype(np.float64)
        matrix = np.zeros((len(affine), 2, 3), dtype=np.float32)
        matrix[:, 0, 0] = matrix[:, 1, 1] = np.cos(turn) / zoom
        sine = np.sin(turn) / zoom
        matrix[:, 0, 1] = -sine * (height / width)
        matrix[:, 1, 0] = sine * (width / height)
        return Changes(
            rows=torch.from_numpy(rows[0].take(crop[:, 0], axis=0)),
            columns=torch.from_numpy(columns[flip.astype(np.intp), crop[:, 1]]),
            inside_rows=torch.from_numpy(inside_rows.take(crop[:, 0], axis=0)),
            inside_columns=torch.from_numpy(inside_columns.take(crop[:, 1], axis=0)),
            erased_rows=torch.from_numpy(_between(height, top, box_height)),
            erased_columns=torch.from_numpy(_between(width, left, box_width)),
            affine=torch.from_numpy(matrix),
            colours=torch.from_numpy(colours),
            kernels=torch.from_numpy(blur_kernels(self.config, sigma, min(height, width))),
        )

    def apply(self, images: Tensor, changes: Changes) -> Tensor:
        """Change images (B, 3, H, W) uint8 on any device; returns normalized float32 of the same shape."""
        images = change_colours(self.config, images, changes.colours, changes.kernels)  # before any padding or erasing
        which = torch.arange(len(images), device=images.device)[:, None, None]
        moved = images.permute(0, 2, 3, 1)[which, changes.rows[:, :, None], changes.columns[:, None, :]]
        if self.config.fill == "black":
            moved = moved * _cross(changes.inside_rows, changes.inside_columns)[..., None]
        pixels = self.normalization.apply(moved.permute(0, 3, 1, 2))
        if self.config.rotate_degrees or self.config.scale:  # pixels from outside repeat the border
            grid = F.affine_grid(changes.affine, list(pixels.shape), align_corners=False)
            pixels = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
        erased = _cross(changes.erased_rows, changes.erased_columns)
        return pixels.masked_fill(erased[:, None], 0.0)  # the mean colour


@cache
def _crop_table(size: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sources of each possible crop, by its begin, and which of them are no padding.

    Sources are (2, 2 pad + 1, size), plain and flipped. Looking a crop up takes a fraction of the time of computing it.
    """
    place = np.arange(2 * pad + 1)[:, None] + np.arange(size) - pad
    source = place.clip(0, size - 1)
    return np.stack([source, size - 1 - source]), (place >= 0) & (place < size)


def _between(size: int, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return (B, size) bool, whether a place lies in the box that begins at `start` (B, 1)."""
    place = np.arange(size)
    return (place >= start) & (place < start + length)


def _cross(rows: Tensor, columns: Tensor) -> Tensor:
    """Return (B, H, W) bool, whether a pixel's row (B, H) and column (B, W) are both true."""
    return rows[:, :, None] & columns[:, None, :]
