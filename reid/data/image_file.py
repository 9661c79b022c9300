"""Open pictures from anywhere: the only place where bytes that others wrote reach Pillow. Imports no torch."""

import io
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from reid.files import read_regular_file

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")  # Pillow reads 40 more, some by running other programs
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
# Limits before decoding: a header of a few bytes can claim billions of pixels.
MAX_PIXELS = 50_000_000  # default of builds and of `data.max_pixels`
MAX_SIDE = 32_768  # resizing a picture of one pixel by 49,000,000 takes gigabytes and minutes
MAX_ASPECT = 100  # longer side to shorter side
MAX_FILE_BYTES = 1 << 29  # more than any picture of MAX_PIXELS needs without compression

Source = str | os.PathLike[str] | bytes | memoryview  # a path, or the bytes of a file


def read_image_file(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a picture's file, undecoded.

    Raises ValueError, which names the file, if it cannot be read, is not a regular file (a FIFO would block), is empty,
    or has more than MAX_FILE_BYTES.
    """
    try:
        data = read_regular_file(Path(path), MAX_FILE_BYTES)
    except OSError as error:
        raise ValueError(f"{os.fspath(path)}: {error.strerror or type(error).__name__}") from error
    if not data:
        raise ValueError(f"{os.fspath(path)}: an empty file (0 bytes)")
    return data


class _Refused(ValueError):
    """A picture that is not decoded; the text is the reason."""


@lru_cache(maxsize=64)  # the sizes of a dataset are few; errors are not kept
def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raise ValueError if a picture has more than max_pixels, or a side or an aspect that no photo has."""
    if width * height > max_pixels:
        raise _Refused(f"has {width} x {height} pixels, more than {max_pixels}")
    if max(width, height) > min(MAX_SIDE, MAX_ASPECT * min(width, height)):
        limits = f"a side may have {MAX_SIDE} pixels, and {MAX_ASPECT} times as many as the other"
        raise _Refused(f"has {width} x {height} pixels; {limits}")


def _to_rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # grey of 16 bits, which Pillow's convert would clip at 255
        upright = Image.fromarray((np.array(upright) // 256).clip(0, 255).astype(np.uint8))
    return upright.convert("RGB")


def open_image(source: Source, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a picture, completely decoded, of a file or of its bytes; the first one of an animation.

    Raises ValueError if it is none of FORMATS by its content, is damaged, or is over the limits of `check_size`. The
    text begins with the path if `source` is one, and holds no memory address.
    """
    return _open(source, max_pixels, lambda image: image)


def open_rgb(source: Source, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a picture as `open_image`, upright as its EXIF orientation says, in RGB; grey of 16 bits is scaled to 8.

    Raises ValueError as `open_image` does.
    """
    return _open(source, max_pixels, _to_rgb)


def _open(source: Source, max_pixels: int, finish: Callable[[Image.Image], Image.Image]) -> Image.Image:
    name, data = "", source
    if isinstance(source, (str, os.PathLike)):
        name, data = f"{os.fspath(source)}: ", read_image_file(source)
    assert isinstance(data, (bytes, memoryview))
    try:
        if not data:
            raise _Refused("an empty file (0 bytes)")
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(image.width, image.height, max_pixels)
            if image.mode == "F":  # its range is unknown: 0 to 1 would become black
                raise _Refused("has pixels of floating point; convert it to 8 or 16 bits")
            image.load()
            return finish(image)
    except UnidentifiedImageError as error:  # its own text holds a memory address
        raise ValueError(f"{name}it is none of {', '.join(FORMATS)}") from error
    except _Refused as error:
        raise ValueError(f"{name}{error}") from error
    except Exception as error:  # damaged bytes raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise ValueError(f"{name}does not decode: {error}") from error
