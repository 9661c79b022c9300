"""Position embeddings of transformers: the grid of patches that a file's are for, and resizing to another grid."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid import config
from reid.model.saved import is_checkpoint

Grid = tuple[int, int]  # rows, columns
# Position embeddings, patch embeddings and tokens, as torchvision and timm name them.
POSITIONS = ("encoder.pos_embedding", "pos_embed")
PATCHES = ("conv_proj.weight", "patch_embed.proj.weight")
TOKENS = ("class_token", "cls_token", "dist_token", "reg_token", "register_tokens", "storage_tokens")
STRETCH = 4  # a grid of this proportion or more is not guessed: 28 x 7 for the 196 positions of 14 x 14


def grid_of(model: nn.Module) -> Grid | None:
    """Return the grid of patches that a model's (or encoder's) position embeddings are for, or None without any."""
    found = getattr(getattr(model, "encoder", model), "grid", None) or getattr(model, "grid", None)
    return None if found is None else (int(found[0]), int(found[1]))


def find_stated_grid(path: Path, header: Mapping[str, str], state: Mapping[str, Tensor]) -> Grid | None:
    """Return the grid that a file of this product states, in its header or in its run's config.yaml; otherwise None.

    Args:
        path: the file.
        header: its metadata. Exports and checkpoints of earlier versions have no `grid` in it.
        state: its tensors by the encoder's names.
    """
    if "grid" in header:
        try:
            rows, columns = map(int, json.loads(header["grid"]))
        except (ValueError, TypeError) as error:
            raise ValueError(f"its header has grid = {header['grid']!r}, not [rows, columns]") from error
        return rows, columns
    run = path.absolute().parents[2] / "config.yaml" if is_checkpoint(path.parent) else None
    if {"height", "width"} <= header.keys():
        height, width = int(header["height"]), int(header["width"])
    elif run is not None and run.is_file():
        height, width = config.load(run).data.image_size
    else:
        return None
    patches = [state[name].shape[2:] for name in PATCHES if name in state and state[name].ndim == 4]
    return (height // patches[0][0], width // patches[0][1]) if patches else None


def infer_grid(count: int, grid: Grid, num_prefix: int, num_tokens: int = 0) -> Grid:
    """Return the only likely grid of a file that states none: a square, or upright and in the proportions of `grid`.

    Args:
        count: position embeddings in the file.
        grid: the encoder's.
        num_prefix: of the encoder's position embeddings, those of tokens that are not patches.
        num_tokens: tokens in the file that are not patches.

    Raises:
        ValueError: there is no such grid, or others are as likely. The fix is model.weights_grid.
    """
    likely = _list_likely(count - num_prefix, grid)
    with_tokens = _list_likely(count - num_tokens, grid) if num_tokens and not num_prefix else []
    if len(likely) == 1 and _is_usual(likely[0], grid) and not any(_is_usual(found, grid) for found in with_tokens):
        return likely[0]
    shown = ", ".join(f"{rows} x {columns}" for rows, columns in likely)
    raise ValueError(
        f"the grid of its {count} position embeddings is unknown (likely: {shown or 'none'}; the encoder's is "
        f"{grid[0]} x {grid[1]} patches{f' and {num_prefix} more' if num_prefix else ''}); give the one that it was "
        "trained with as model.weights_grid=[rows,columns]"
    )


def _list_likely(patches: int, grid: Grid) -> list[Grid]:
    """Return the grids of a number of patches that are not too long, and are upright unless `grid` is not."""
    found = [(patches // columns, columns) for columns in range(1, patches + 1) if patches % columns == 0]
    return [
        (rows, columns)
        for rows, columns in found
        if max(rows, columns) < STRETCH * min(rows, columns) and (rows >= columns or grid[0] < grid[1])
    ]


def _is_usual(found: Grid, grid: Grid) -> bool:
    return found[0] == found[1] or found[0] * grid[1] == found[1] * grid[0]


def resize_positions(stored: Tensor, grid: Grid, stored_grid: Grid, num_prefix: int = 1) -> Tensor:
    """Resize position embeddings (1, num_prefix + rows * columns, D) to another grid of patches, bicubic.

    The first num_prefix (of the class token) are kept. Those of an equal grid are returned unchanged.

    Raises:
        ValueError: their number is not that of `stored_grid`.
    """
    if stored.shape[1] != num_prefix + math.prod(stored_grid):
        raise ValueError(
            f"its {stored.shape[1]} position embeddings are not those of {stored_grid[0]} x {stored_grid[1]} patches"
            f"{f' and {num_prefix} more' if num_prefix else ''}; give its model.weights_grid=[rows,columns], or change "
            "model.encoder to the file's"
        )
    if stored_grid == grid:
        return stored
    prefix, patches = stored[:, :num_prefix], stored[:, num_prefix:]
    as_map = patches.float().unflatten(1, stored_grid).permute(0, 3, 1, 2)
    resized = F.interpolate(as_map, size=grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([prefix, resized.flatten(2).transpose(1, 2).to(stored.dtype)], dim=1)


def fit_positions(
    encoder: nn.Module, own: Mapping[str, Tensor], state: dict[str, Tensor], stated: Grid | None, given: Grid | None
) -> str:
    """Resize the position embeddings in `state` to the encoder's grid, and return what was done, for the log.

    Args:
        encoder: has the grid.
        own: its tensors.
        state: the file's tensors by the encoder's names, of which the position embeddings are replaced.
        stated: the grid that the file states.
        given: model.weights_grid.

    Raises:
        ValueError: the file's grid is unknown, or the grids do not agree.
    """
    grid, name = grid_of(encoder), next((name for name in POSITIONS if name in own), "")
    if grid is None or not name:
        if given:
            raise ValueError(
                f"model.weights_grid = {list(given)}: the encoder has no grid of patches; leave it at null"
            )
        if name in state and state[name].shape != own[name].shape:
            raise ValueError(
                f"{name} is {tuple(state[name].shape)}, the encoder's {tuple(own[name].shape)}, and cannot be resized "
                "for this encoder; give images of the size that the file was trained with"
            )
        return ""
    stored, num_prefix = state.get(name), own[name].shape[1] - math.prod(grid)
    if stored is None or stored.ndim != 3 or stored.shape[2] != own[name].shape[2]:
        return ""  # does not fit
    if stated and given and stated != given:
        raise ValueError(
            f"model.weights_grid = {list(given)}, but the file says {list(stated)}; leave model.weights_grid at null"
        )
    num_tokens = sum(state[token].shape[1] for token in TOKENS if token in state and state[token].ndim == 3)
    known = stated or given or infer_grid(stored.shape[1], grid, num_prefix, num_tokens)
    state[name] = resize_positions(stored, grid, known, num_prefix)
    how = "" if stated or given else " (assumed: the file does not say)"
    to = "" if known == grid else f", resized to {grid[0]} x {grid[1]}"
    return f", position embeddings of {known[0]} x {known[1]} patches{how}{to}"
