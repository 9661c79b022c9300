"""The check that a file is an image that training can decode, and re-encoding."""

import io
import warnings
from dataclasses import dataclass

from PIL import Image

from reid.data.image_file import FORMATS, MAX_PIXELS, open_image, open_rgb
from shards.boxes import Box, Cropping, cut_out

QUALITY = 95  # of re-encoded images

# format by content -> suffix in a shard; MPO is a JPEG file with a second picture
_SUFFIXES = {name: name.lower() for name in FORMATS} | {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}


@dataclass(frozen=True)
class Encoding:
    """The format of re-encoded images: JPEG of height x width pixels, quality 1 to 100."""

    height: int
    width: int
    quality: int = QUALITY

    def __post_init__(self) -> None:
        if not (self.height > 0 and self.width > 0 and self.height * self.width <= MAX_PIXELS):
            raise ValueError(f"--size {self.height}x{self.width}: give HEIGHTxWIDTH in pixels, such as 256x128")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality {self.quality}: give 1 to 100")

    def __str__(self) -> str:
        return f"JPEG {self.height}x{self.width}, quality {self.quality}"


def describe_storage(encoding: Encoding | None, cropping: Cropping | None) -> str:
    """Return how the images differ from the original files, for the manifest; "" if they do not."""
    if cropping is None:
        return str(encoding or "")
    return f"{cropping}, {encoding or f'JPEG, quality {QUALITY}'}"


def check_image(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    """Decode an image completely and return its suffix, such as "jpg", by content and not by name.

    Raises ValueError if it cannot be decoded or is over a limit, as `reid.data.image_file.open_image` does.
    """
    with warnings.catch_warnings(action="ignore"):  # of odd metadata, and of a size that our limit allows
        return _SUFFIXES[open_image(data, max_pixels).format or ""]


def reencode(
    data: bytes,
    encoding: Encoding | None,
    box: Box | None = None,
    cropping: Cropping = Cropping(),  # noqa: B008  # it is immutable
    max_pixels: int = MAX_PIXELS,
) -> bytes:
    """Return the image, or the part in a box, as a JPEG; rotated as the loader does; colours at full resolution.

    EXIF is not stored, or the loader would rotate the image again. The bytes depend on the version of Pillow.

    Args:
        data: the bytes of a picture's file.
        encoding: size and quality; None keeps the size, at the default quality.
        box: the part to cut out, with `cropping`.

    Raises:
        ValueError: as `check_image` and `cut_out` do.
    """
    with warnings.catch_warnings(action="ignore"):
        image = open_rgb(data, max_pixels)
    return to_jpeg(image if box is None else cut_out(image, box, cropping), encoding)


def to_jpeg(image: Image.Image, encoding: Encoding | None) -> bytes:
    """Return an RGB image as a JPEG, resized as the loader does; without an encoding, at its own size."""
    if encoding is not None and image.size != (encoding.width, encoding.height):
        image = image.resize((encoding.width, encoding.height), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    quality = QUALITY if encoding is None else encoding.quality
    image.save(buffer, "JPEG", quality=quality, subsampling=0, optimize=False)
    return buffer.getvalue()
