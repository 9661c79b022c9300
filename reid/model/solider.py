"""Swin Transformer with the layers and names of SOLIDER's files, pre-trained on LUPerson for pictures of people.

Liu et al., "Swin Transformer", ICCV 2021; Chen et al., "Beyond Appearance: a Semantic Controllable Self-Supervised
Learning Framework for Human-Centric Visual Tasks", CVPR 2023. Differences to torchvision's Swin: the order of channels
where patches are merged; windows are shifted also where one window covers the map (as at 256 x 128 in the last stage);
and the semantic embedding, a scale and an offset of each channel after a stage.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid.model.drop_path import DropPath

WINDOW = 7
SEMANTIC_WEIGHT = 0.2  # share of semantics against appearance, with which SOLIDER is used for re-identification
# Width, blocks of each stage, heads of each stage.
SIZES = {
    "solider_swin_t": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "solider_swin_s": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "solider_swin_b": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
}


class WindowAttention(nn.Module):
    """Attention among the 49 places of each window (B, windows, 49, C), with a learned bias of each offset."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * WINDOW - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        place = torch.cartesian_prod(torch.arange(WINDOW, device="cpu"), torch.arange(WINDOW, device="cpu"))
        rows, columns = (place[:, None] - place[None] + WINDOW - 1).unbind(dim=2)
        self.register_buffer("offset", rows * (2 * WINDOW - 1) + columns, persistent=False)

    def forward(self, x: Tensor, apart: Tensor | None) -> Tensor:
        """apart (windows, 49, 49) bool: pairs that do not see each other."""
        bias = self.relative_position_bias_table[self.get_buffer("offset")].permute(2, 0, 1)  # (heads, 49, 49)
        if apart is not None:
            bias = bias - 100.0 * apart[:, None].to(bias)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind()
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        out: Tensor = self.proj(seen.transpose(2, 3).flatten(3))
        return out


class Block(nn.Module):
    """Attention in windows, which every second block shifts by half a window, and an MLP; (B, H, W, C)."""

    def __init__(self, dim: int, heads: int, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.ModuleDict({"w_msa": WindowAttention(dim, heads)})
        hidden = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU())
        self.ffn = nn.Sequential(OrderedDict(layers=nn.Sequential(hidden, nn.Linear(4 * dim, dim))))
        self.shift, self.drop_path = shift, DropPath()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self._attend(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.ffn(self.norm2(x)))
        return out

    def _attend(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        rows, columns = math.ceil(height / WINDOW), math.ceil(width / WINDOW)
        x = F.pad(x, (0, 0, 0, columns * WINDOW - width, 0, rows * WINDOW - height))
        apart = None
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
            areas = 3 * _areas(rows, self.shift, x)[:, None] + _areas(columns, self.shift, x)
            area = _to_windows(areas[None, :, :, None], rows, columns)[0, :, :, 0]
            apart = area[:, :, None] != area[:, None]
        seen = self.attn["w_msa"](_to_windows(x, rows, columns), apart)
        seen = seen.unflatten(2, (WINDOW, WINDOW)).unflatten(1, (rows, columns)).transpose(2, 3)
        seen = seen.flatten(3, 4).flatten(1, 2)  # (B, rows * 7, columns * 7, C)
        if self.shift:
            seen = seen.roll((self.shift, self.shift), dims=(1, 2))
        out: Tensor = seen[:, :height, :width]
        return out


def _to_windows(x: Tensor, rows: int, columns: int) -> Tensor:
    """Cut maps (B, rows * 7, columns * 7, C) into windows (B, rows * columns, 49, C)."""
    windows = x.unflatten(2, (columns, WINDOW)).unflatten(1, (rows, WINDOW)).transpose(2, 3)
    return windows.flatten(3, 4).flatten(1, 2)


def _areas(windows: int, shift: int, like: Tensor) -> Tensor:
    """Return (windows * 7,) int64: which of three areas a place of a shifted axis is from; areas do not touch."""
    place = torch.arange(windows * WINDOW, device=like.device)
    return (place >= (windows - 1) * WINDOW).long() + (place >= windows * WINDOW - shift)


class PatchMerging(nn.Module):
    """Join 2 x 2 places: (B, H, W, C) to (B, H / 2, W / 2, 2 C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        joined = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 5, 2, 4).flatten(3)  # channels first
        out: Tensor = self.reduction(self.norm(joined))
        return out


class Stage(nn.Module):
    """Blocks of one width, and the merging after them, if there is a next stage."""

    def __init__(self, dim: int, depth: int, heads: int, merges: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(dim, heads, (i % 2) * (WINDOW // 2)) for i in range(depth)))
        self.downsample = PatchMerging(dim) if merges else None


class SoliderSwin(nn.Module):
    """Images (B, 3, H, W) to features (B, 8 * dim).

    The semantic embedding is fixed, as at SOLIDER. Without a file it changes nothing.
    """

    def __init__(self, dim: int, depths: tuple[int, ...], heads: tuple[int, ...]) -> None:
        super().__init__()
        patches = {"projection": nn.Conv2d(3, dim, 4, stride=4), "norm": nn.LayerNorm(dim)}
        self.patch_embed = nn.ModuleDict(patches)
        dims = [dim * 2**stage for stage in range(len(depths))]
        stages = zip(dims, depths, heads, strict=True)
        self.stages = nn.ModuleList(Stage(width, depth, n, width != dims[-1]) for width, depth, n in stages)
        self.add_module(f"norm{len(depths) - 1}", nn.LayerNorm(dims[-1]))
        self.avgpool: nn.Module = nn.AdaptiveAvgPool2d(1)
        after = [*dims[1:], dims[-1]]  # that after the last stage changes no feature, but is in the files
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.semantic_embed_w = nn.ModuleList(_constant(width, math.log(math.e - 1)) for width in after)  # softplus: 1
        self.semantic_embed_b = nn.ModuleList(_constant(width, 0.0) for width in after)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed["norm"](self.patch_embed["projection"](images).permute(0, 2, 3, 1))
        weight = torch.tensor([SEMANTIC_WEIGHT, 1 - SEMANTIC_WEIGHT], device=images.device)
        for number, stage in enumerate(self.stages):
            assert isinstance(stage, Stage)
            x = stage.blocks(x)
            if stage.downsample is not None:
                scale, offset = self.semantic_embed_w[number](weight), self.semantic_embed_b[number](weight)
                x = stage.downsample(x) * F.softplus(scale) + offset
        x = self.get_submodule(f"norm{len(self.stages) - 1}")(x)
        pooled: Tensor = self.avgpool(x.permute(0, 3, 1, 2)).flatten(1)
        return pooled


def _constant(width: int, value: float) -> nn.Linear:
    """Return a fixed layer that gives `value` whatever its input (2,) is, until a file is loaded into it."""
    layer = nn.Linear(2, width).requires_grad_(False)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, value)
    return layer
