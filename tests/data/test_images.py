"""reid/data/images.py against Pillow, and what must not be decoded."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from reid.config import DataConfig
from reid.data import images
from reid.data.images import Pixels, find_jpeg_size


def picture(mode: str = "RGB", height: int = 40, width: int = 24) -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encode(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def by_pillow(data: bytes, height: int, width: int) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)).astype(int)


@pytest.mark.parametrize("size", [(40, 24), (32, 16), (64, 48)])
@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}),
        ("RGB", "JPEG", {"subsampling": 0}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("P", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("RGB", "BMP", {}),
        ("RGB", "WEBP", {}),
    ],
)
def test_agrees_with_pillow(monkeypatch, size, mode, form, options):
    data = encode(picture(mode), form, **options)
    found, place = Pixels(*size).decode(data, "x"), np.zeros((*size, 3), dtype=np.uint8)
    Pixels(*size).decode_into(place, memoryview(data), lambda: "x")
    assert np.array_equal(place, found.permute(1, 2, 0))
    monkeypatch.setattr(images, "find_jpeg_size", lambda data: None)  # Pillow decodes what simplejpeg could
    assert torch.equal(found, Pixels(*size).decode(data, "x"))
    assert found.shape == (3, *size) and found.dtype == torch.uint8
    assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - by_pillow(data, *size)).max() <= 1


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_images_stand_upright_as_exif_says(form):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    image = picture(height=40, width=24)
    found = Pixels(24, 40).decode(encode(image, form, exif=exif), "x").permute(1, 2, 0).numpy().astype(int)
    wanted = np.asarray(Image.open(io.BytesIO(encode(image, form))).rotate(-90, expand=True)).astype(int)
    assert np.abs(found - wanted).max() <= 1


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded(form):
    small = Pixels.from_config(DataConfig(height=8, width=8, max_pixels=900))
    with pytest.raises(ValueError, match=r"shard: x\.jpg: image cannot be decoded: has 24 x 40 pixels, more than 900"):
        small.decode(encode(picture(), form), "shard: x.jpg")


def test_a_header_that_claims_gigabytes_is_refused():
    data = bytearray(encode(picture()))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xff\xff\xff"
    assert find_jpeg_size(bytes(data)) == (65535, 65535, 3)
    with pytest.raises(ValueError, match="has 65535 x 65535 pixels"):
        Pixels(8, 8).decode(bytes(data), "x")


@pytest.mark.parametrize("marker", [0x01, 0xD0, 0xD7, 0xD8])
def test_a_marker_without_a_length_hides_no_size(marker):
    """Whoever takes the next bytes for its length jumps over the true header, to a small one that was put there."""
    true = encode(Image.new("RGB", (300, 200)))
    data = bytearray(b"\xff\xd8\xff" + bytes([marker]) + true[2:])
    at = 4 + int.from_bytes(data[4:6])
    data += bytes(max(0, at + 20 - len(data)))
    data[at : at + 10] = b"\xff\xc0\x00\x11\x08" + struct.pack(">HHB", 8, 8, 3)
    assert find_jpeg_size(bytes(data)) is None
    with pytest.raises(ValueError, match=r"x: image .*: (has 300 x 200 pixels, more|it is none of JPEG)"):
        Pixels(8, 8, max_pixels=50_000).decode(bytes(data), "x")


@pytest.mark.parametrize("form", ["PPM", "ICO", "TGA", "PCX"])
def test_only_usual_formats_are_opened(form):
    with pytest.raises(ValueError, match=r"^x: image .* is none of JPEG, PNG, BMP, WEBP, TIFF, GIF$"):
        Pixels(8, 8).decode(encode(picture(), form), "x")


@pytest.mark.parametrize(("form", "kind"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)])
def test_grey_of_16_bits_is_scaled_not_clipped(form, kind):
    grey = np.random.default_rng(0).integers(0, 65536, (8, 6)).astype(kind)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    found = Pixels(8, 6).decode(encode(Image.fromarray(grey), form, exif=exif), "x")
    wanted = np.rot90(grey // 256, 2)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.repeat(wanted[..., None], 3, axis=2))


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8", b"\xff\xd8\xff\xff\xff", b"\xff\xd8\xff\xe0\x00"])
def test_what_is_no_image_is_named(data):
    assert find_jpeg_size(data) is None
    with pytest.raises(ValueError, match="place: image cannot be decoded"):
        Pixels(8, 8).decode(data, "place")


def test_a_jpeg_cut_short_is_named():
    data = encode(picture(height=200, width=100))
    with pytest.raises(ValueError, match=r"place: image cannot be decoded: .*[Tt]runcated"):
        Pixels(8, 8).decode(data[: len(data) // 2], "place")
