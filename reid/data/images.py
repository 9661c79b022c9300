"""Encoded images -> pixels: the one way in which training, evaluation and search see an image."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from reid.config import DataConfig
from reid.data.manifest import MAX_PIXELS

_RGB = 3  # torchvision's ImageReadMode.RGB
_HAS_SIZE = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG frame headers; the three are tables
_ALONE = frozenset({0x01, *range(0xD0, 0xDA)})  # no length stands behind them; no encoder puts one before a frame
_JPEG_COLOURS = (1, 3)  # grey, colour; four components (CMYK) are Pillow's work
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")  # Pillow reads 40 more, some by running other programs


@cache
def _has_jpeg_operator() -> bool:
    """Import torchvision and return whether it registered its JPEG operator.

    torchvision's public decode_jpeg warns at each call that it will move to TorchCodec, whose versions depend on
    torch's. The operator behind it is called directly; a torchvision without it leaves the work to Pillow.
    """
    import torchvision.io  # noqa: F401

    return hasattr(torch.ops.image, "decode_jpeg")


@dataclass(frozen=True)
class Pixels:
    """How an encoded image becomes pixels: size in pixels, and the most pixels that a source may have."""

    height: int
    width: int
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        _has_jpeg_operator()  # imported before decoding processes start, once for all of them

    @classmethod
    def from_config(cls, data: DataConfig, scale: int = 1) -> Pixels:
        """Return the decoder of a configuration, at `scale` times the encoder's height and width."""
        return cls(scale * data.height, scale * data.width, data.max_pixels)

    def decode(self, data: bytes | memoryview, where: str) -> Tensor:
        """Encoded image -> (3, height, width) uint8 RGB, upright as EXIF says. Errors (ValueError) name `where`.

        JPEG goes through torchvision, which takes half of Pillow's time for the same pixels; other formats, and JPEGs
        that it refuses, through Pillow. A source of another size is resized (bilinear, antialiased).
        """
        try:
            image = self._decode_jpeg(data)
            if image is None:
                image = self._decode_any(data)
        except UnidentifiedImageError as error:  # its own text holds a memory address
            raise ValueError(f"{where}: image cannot be decoded: it is none of {', '.join(_FORMATS)}") from error
        except Exception as error:  # decoders raise many kinds; each means that this image cannot be used
            raise ValueError(f"{where}: image cannot be decoded: {error}") from error
        if image.shape[1:] != (self.height, self.width):
            image = F.interpolate(image[None], (self.height, self.width), mode="bilinear", antialias=True)[0]
        return image

    def _decode_jpeg(self, data: bytes | memoryview) -> Tensor | None:
        """(3, h, w) uint8, or None for what is no usual JPEG."""
        found = find_jpeg_size(data)
        if found is None or found[2] not in _JPEG_COLOURS or not _has_jpeg_operator():
            return None
        self._check_size(found[1], found[0])
        try:
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            upright: Tensor = torch.ops.image.decode_jpeg(encoded, _RGB, True)
            return upright
        except RuntimeError:
            return None  # Pillow, then, which reads it or says what is wrong

    def _decode_any(self, data: bytes | memoryview) -> Tensor:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            self._check_size(image.width, image.height)
            upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # grey of 16 bits, which Pillow's convert would clip at 255
            upright = Image.fromarray((np.array(upright) // 256).clip(0, 255).astype(np.uint8))
        return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise ValueError(f"has {width} x {height} pixels, more than {self.max_pixels}")


def find_jpeg_size(data: bytes | memoryview) -> tuple[int, int, int] | None:
    """(height, width, components) that a JPEG's frame header claims, None where there is no such header.

    Looked at before decoding: a few kilobytes can claim gigabytes of pixels. None, too, where it could be another one
    than a decoder finds.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at, end = 2, len(data) - 10
    while at <= end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _ALONE:
            return None
        if marker in _HAS_SIZE:
            return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9]), data[at + 9]
        at += 1 if marker == 0xFF else 2 + (data[at + 2] << 8 | data[at + 3])
    return None
