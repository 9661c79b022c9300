"""Decode images to pixels, in the same way for training, evaluation and search."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from torch import Tensor

from reid.config import DataConfig
from reid.data.image_file import MAX_PIXELS, check_size, open_rgb
from reid.data.normalization import BILINEAR, IMAGENET, Normalization

_HAS_SIZE = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG frame headers; the three are tables
_NO_LENGTH = frozenset({0x01, *range(0xD0, 0xDA)})  # markers without a length; no encoder writes one before a frame
_APP1 = 0xE1
_SEGMENT = struct.Struct(">BBH")  # 0xFF, marker, length after these two
_FRAME = struct.Struct(">5xHHB")  # after the marker's place: height, width, components
_JPEG_COMPONENTS = (1, 3)  # grey, colour; Pillow decodes four (CMYK)


@dataclass(frozen=True)
class Pixels:
    """Decoder to a size in pixels; an image with more than `max_pixels`, or over the limits of files, is refused.

    `normalization` is what the encoder expects of the pixels; decoding does not apply it.
    """

    height: int
    width: int
    max_pixels: int = MAX_PIXELS
    interpolation: str = BILINEAR
    normalization: Normalization = IMAGENET

    @classmethod
    def from_config(cls, data: DataConfig, scale: int = 1) -> Pixels:
        """Return the decoder of a configuration, at `scale` times the encoder's height and width."""
        interpolation = data.interpolation or BILINEAR
        return cls(
            scale * data.height, scale * data.width, data.max_pixels, interpolation, Normalization.from_config(data)
        )

    def decode(self, data: bytes | memoryview, where: str) -> Tensor:
        """Return an encoded image as (3, height, width) uint8 RGB, upright by its EXIF orientation."""
        place = np.empty((self.height, self.width, 3), dtype=np.uint8)
        self.decode_into(place, data, lambda: where)
        return torch.from_numpy(place).permute(2, 0, 1)

    def decode_into(self, place: np.ndarray, data: bytes | memoryview, where: Callable[[], str]) -> None:
        """Write an encoded image to `place` (height, width, 3) uint8, in RGB, upright by its EXIF orientation.

        simplejpeg decodes a usual JPEG in a third of Pillow's time, to the same pixels; Pillow decodes all others.
        Another size is resized, with antialiasing.

        Raises ValueError, which names `where()`, if the image cannot be decoded or is too large.
        """
        try:
            image = self._decode_jpeg(data, place)
            if image is None:
                image = np.array(open_rgb(data, self.max_pixels))
        except Exception as error:  # decoders raise many types; each means that this image cannot be used
            raise ValueError(f"{where()}: image cannot be decoded: {error}") from error
        if image is place:
            return
        if image.shape != place.shape:
            pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
            resized = F.interpolate(pixels, (self.height, self.width), mode=self.interpolation, antialias=True)[0]
            place[:] = resized.permute(1, 2, 0).numpy()
        else:
            place[:] = image

    def _decode_jpeg(self, data: bytes | memoryview, place: np.ndarray) -> np.ndarray | None:
        """Return (h, w, 3) uint8, which is `place` if the size is the same; None for anything but a usual JPEG."""
        found = find_jpeg_size(data)
        if found is None or found[2] not in _JPEG_COMPONENTS:
            return None
        check_size(found[1], found[0], self.max_pixels)
        try:
            if found[:2] == place.shape[:2]:
                simplejpeg.decode_jpeg(data, "RGB", buffer=place)
                return place
            pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB")
            return pixels
        except ValueError:
            return None  # Pillow reads it or reports what is wrong


def find_jpeg_size(data: bytes | memoryview) -> tuple[int, int, int] | None:
    """Return (height, width, components) in a JPEG's frame header.

    None if a decoder might find another header, or if EXIF data, which simplejpeg does not read, may turn the image.

    It is checked before decoding, because a few kilobytes can claim gigabytes of pixels. Pillow's lazy open would take
    half of the time of decoding, this function a thirtieth.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at, end = 2, len(data) - 10
    while at <= end:
        start, marker, length = _SEGMENT.unpack_from(data, at)
        if start != 0xFF or marker in _NO_LENGTH or (marker == _APP1 and data[at + 4 : at + 8] == b"Exif"):
            return None
        if marker in _HAS_SIZE:
            height, width, components = _FRAME.unpack_from(data, at)
            return height, width, components
        at += 1 if marker == 0xFF else 2 + length
    return None
