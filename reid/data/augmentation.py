"""Random changes of training images: parameters are drawn in the worker, pixels change in batches on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reid.config import AugmentConfig
from reid.data.normalization import IMAGENET, Normalization


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


Columns = TypeVar("Columns", Parameters, Changes)


def concatenate(parts: Sequence[Columns]) -> Columns:
    """Concatenate the images of several parts."""
    return type(parts[0])(*map(torch.cat, zip(*parts, strict=True)))


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

    def expand(self, parameters: Parameters, height: int, width: int) -> Changes:
        """Work the parameters out for images of height x width pixels, on the host: the device runs few operations."""
        rows = parameters.crop[:, :1] + torch.arange(height) - self.config.pad
        columns = parameters.crop[:, 1:] + torch.arange(width) - self.config.pad
        columns = torch.where(parameters.flip[:, None], width - 1 - columns, columns)
        top, left, box_height, box_width = parameters.erase[:, :, None].unbind(dim=1)
        turn, zoom = parameters.affine.double().unbind(dim=1)
        sine, cosine, zero = turn.sin() / zoom, turn.cos() / zoom, torch.zeros_like(turn)
        matrix = [cosine, -sine * (height / width), zero, sine * (width / height), cosine, zero]
        return Changes(
            rows=rows.clamp(0, height - 1),
            columns=columns.clamp(0, width - 1),
            inside_rows=(rows >= 0) & (rows < height),
            inside_columns=(columns >= 0) & (columns < width),
            erased_rows=_between(height, top, box_height),
            erased_columns=_between(width, left, box_width),
            affine=torch.stack(matrix, dim=1).unflatten(1, (2, 3)).float(),
        )

    def apply(self, images: Tensor, changes: Changes) -> Tensor:
        """Change images (B, 3, H, W) uint8 on any device; returns normalized float32 of the same shape."""
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


def _between(size: int, start: Tensor, length: Tensor) -> Tensor:
    """Return (B, size) bool, whether a place lies in the box that begins at `start` (B, 1)."""
    place = torch.arange(size)
    return (place >= start) & (place < start + length)


def _cross(rows: Tensor, columns: Tensor) -> Tensor:
    """Return (B, H, W) bool, whether a pixel's row (B, H) and column (B, W) are both true."""
    return rows[:, :, None] & columns[:, None, :]
