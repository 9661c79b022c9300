"""Decode images to pixels, in the same way for training, evaluation and search."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reid.config import DataConfig
from reid.data.image_file import MAX_PIXELS, check_size, open_rgb

_RGB = 3  # torchvision's ImageReadMode.RGB
_HAS_SIZE = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG frame headers; the three are tables
_NO_LENGTH = frozenset({0x01, *range(0xD0, 0xDA)})  # markers without a length; no encoder writes one before a frame
_JPEG_COMPONENTS = (1, 3)  # grey, colour; Pillow decodes four (CMYK)


@cache
def _has_jpeg_operator() -> bool:
    """Import torchvision and return whether it registered its JPEG operator; without it, Pillow decodes.

    The operator is called directly, because torchvision's public decode_jpeg warns at each call that it will move to
    TorchCodec, whose versions depend on torch's.
    """
    import torchvision.io  # noqa: F401

    return hasattr(torch.ops.image, "decode_jpeg")


@dataclass(frozen=True)
class Pixels:
    """Decoder to a size in pixels; an image with more than `max_pixels`, or over the limits of files, is refused."""

    height: int
    width: int
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        _has_jpeg_operator()  # imports torchvision before the decoding processes are forked

    @classmethod
    def from_config(cls, data: DataConfig, scale: int = 1) -> Pixels:
        """Return the decoder of a configuration, at `scale` times the encoder's height and width."""
        return cls(scale * data.height, scale * data.width, data.max_pixels)

    def decode(self, data: bytes | memoryview, where: str) -> Tensor:
        """Return an encoded image as (3, height, width) uint8 RGB, upright by its EXIF orientation.

        torchvision decodes JPEG in half of Pillow's time, to the same pixels; Pillow decodes other formats and JPEGs
        that torchvision refuses. Another size is resized (bilinear, antialiased).

        Raises ValueError, which names `where`, if the image cannot be decoded or is too large.
        """
        try:
            image = self._decode_jpeg(data)
            if image is None:
                image = torch.from_numpy(np.array(open_rgb(data, self.max_pixels))).permute(2, 0, 1)
        except Exception as error:  # decoders raise many types; each means that this image cannot be used
            raise ValueError(f"{where}: image cannot be decoded: {error}") from error
        if image.shape[1:] != (self.height, self.width):
            image = F.interpolate(image[None], (self.height, self.width), mode="bilinear", antialias=True)[0]
        return image

    def _decode_jpeg(self, data: bytes | memoryview) -> Tensor | None:
        """Return (3, h, w) uint8, or None for anything but a usual JPEG."""
        found = find_jpeg_size(data)
        if found is None or found[2] not in _JPEG_COMPONENTS or not _has_jpeg_operator():
            return None
        check_size(found[1], found[0], self.max_pixels)
        try:
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            upright: Tensor = torch.ops.image.decode_jpeg(encoded, _RGB, True)
            return upright
        except RuntimeError:
            return None  # Pillow reads it or reports what is wrong


def find_jpeg_size(data: bytes | memoryview) -> tuple[int, int, int] | None:
    """Return (height, width, components) in a JPEG's frame header, None if a decoder might find another header.

    It is checked before decoding, because a few kilobytes can claim gigabytes of pixels. Pillow's lazy open would take
    half of the time of decoding, this function a thirtieth.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at, end = 2, len(data) - 10
    while at <= end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _NO_LENGTH:
            return None
        if marker in _HAS_SIZE:
            return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9]), data[at + 9]
        at += 1 if marker == 0xFF else 2 + (data[at + 2] << 8 | data[at + 3])
    return None
