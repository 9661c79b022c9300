"""Whether the bytes of a file are an image that training can decode."""

import io
import warnings

from PIL import Image, UnidentifiedImageError

# A header of a few bytes can claim billions of pixels; a picture of a person or a drawing stays far below this.
MAX_PIXELS = 64 * 1024 * 1024
_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}  # MPO: a JPEG with a second picture behind the first


class BrokenImage(Exception):
    """An image that cannot be used; the text is the reason, free of addresses and paths."""


def check_image(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    """Decode a JPEG or PNG in full and return its suffix, "jpg" or "png", going by content and not by name.

    Raises BrokenImage when the bytes are no JPEG or PNG, are cut short or damaged, or claim over `max_pixels` pixels.
    """
    if not data:
        raise BrokenImage("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata and size warnings: the limit below decides
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise BrokenImage(f"{width}x{height} pixels, over the limit of {max_pixels}")
                image.load()
                return _SUFFIXES[image.format or ""]
    except UnidentifiedImageError as error:  # its own text holds a memory address
        raise BrokenImage("not a JPEG or PNG") from error
    except BrokenImage:
        raise
    except Exception as error:  # damaged bytes raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise BrokenImage(f"does not decode: {error}") from error
