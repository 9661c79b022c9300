"""The check that a file is an image that training can decode, and re-encoding."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from reid.data.manifest import MAX_PIXELS

_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}  # MPO: a JPEG file with a second picture


class BrokenImage(Exception):
    """An image that cannot be used; the text is the reason, without memory addresses and paths."""


@dataclass(frozen=True)
class Encoding:
    """The format of re-encoded images: JPEG of height x width pixels, quality 1 to 100."""

    height: int
    width: int
    quality: int = 95

    def __post_init__(self) -> None:
        if not (self.height > 0 and self.width > 0 and self.height * self.width <= MAX_PIXELS):
            raise ValueError(f"--size {self.height}x{self.width}: give HEIGHTxWIDTH in pixels, such as 256x128")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality {self.quality}: give 1 to 100")

    def __str__(self) -> str:
        return f"JPEG {self.height}x{self.width}, quality {self.quality}"


def check_image(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    """Decode a JPEG or PNG completely and return its suffix, "jpg" or "png", by content and not by name.

    Raises BrokenImage if the bytes are no JPEG or PNG, are truncated or damaged, or have more than `max_pixels` pixels.
    """
    return _SUFFIXES[_load(data, max_pixels).format or ""]


def reencode(data: bytes, encoding: Encoding, max_pixels: int = MAX_PIXELS) -> bytes:
    """Return the image as a JPEG of another size, rotated and resized as the loader does; colours at full resolution.

    EXIF is not stored, or the loader would rotate the image again. The bytes depend on the version of Pillow.
    Raises BrokenImage as `check_image` does.
    """
    image = ImageOps.exif_transpose(_load(data, max_pixels))
    if image.mode.startswith("I"):  # grey of 16 bits, which Pillow's convert clips at 255
        image = Image.fromarray((np.array(image) // 256).clip(0, 255).astype(np.uint8))
    image = image.convert("RGB")
    if image.size != (encoding.width, encoding.height):
        image = image.resize((encoding.width, encoding.height), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=encoding.quality, subsampling=0, optimize=False)
    return buffer.getvalue()


def _load(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise BrokenImage("empty file")
    try:
        # ignored: warnings of odd metadata, and of the size, which the limit below decides
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BrokenImage(f"{width}x{height} pixels, over the limit of {max_pixels}")
            image.load()
            return image
    except UnidentifiedImageError as error:  # its own text holds a memory address
        raise BrokenImage("not a JPEG or PNG") from error
    except BrokenImage:
        raise
    except Exception as error:  # damaged bytes raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise BrokenImage(f"does not decode: {error}") from error
