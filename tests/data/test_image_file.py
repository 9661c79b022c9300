"""reid/data/image_file.py: which files are read, and which pictures are decoded."""

import io
import os
import socket
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid.data.image_file import FORMATS, MAX_SIDE, open_image, open_rgb, read_image_file


def encode(form: str = "JPEG", width: int = 8, height: int = 12, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), 100).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", FORMATS)
def test_formats_are_recognized_by_content_in_files_and_bytes(form: str, tmp_path: Path) -> None:
    path = tmp_path / "x.eps"
    path.write_bytes(encode(form))
    for source in (path, str(path), path.read_bytes(), memoryview(path.read_bytes())):
        image = open_image(source)
        assert (image.format, image.size) == (form, (8, 12))
        assert open_rgb(source).mode == "RGB"


def special_files(folder: Path) -> list[Path]:
    os.mkfifo(folder / "fifo.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "to_zeros.jpg").symlink_to("/dev/zero")
    (folder / "to_fifo.jpg").symlink_to("fifo.jpg")
    (folder / "to_itself.jpg").symlink_to("to_itself.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.jpg"))
    (folder / "empty.jpg").touch()
    with open(folder / "huge.jpg", "wb") as file:
        file.truncate(1 << 40)
    return [*sorted(folder.iterdir()), folder / "none.jpg"]


@pytest.mark.timeout(20)
def test_files_that_would_block_or_never_end_are_refused_by_name() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # the name of a socket may have 107 bytes
        paths = special_files(Path(folder))
        assert len(paths) == 9
        for path in paths:
            for read in (read_image_file, open_image, open_rgb):
                with pytest.raises(ValueError) as refused:
                    read(path)
                assert str(refused.value).startswith(f"{path}: ")


def test_what_is_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    for data in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", encode("EPS"), encode("PPM"), encode()[:300]):
        path.write_bytes(data)
        for source, name in ((path, f"{path}: "), (data, "")):
            with pytest.raises(ValueError) as refused:
                open_rgb(source)
            assert str(refused.value).startswith((f"{name}it is none of JPEG", f"{name}does not decode"))
            assert " at 0x" not in str(refused.value)


@pytest.mark.parametrize(("width", "height"), [(1, MAX_SIDE + 1), (1, 101), (101, 1), (MAX_SIDE + 1, 400), (40, 26)])
def test_sizes_that_no_photo_has_are_refused_before_decoding(width: int, height: int) -> None:
    data = encode("PNG", width, height, "1")
    with warnings.catch_warnings(), pytest.raises(ValueError, match=f"has {width} x {height} pixels"):
        open_image(data[:60], max_pixels=1000 if width == 40 else 50_000_000)  # without its pixels


def test_the_longest_pictures_are_decoded() -> None:
    assert open_image(encode("PNG", MAX_SIDE, 328, "1")).size == (MAX_SIDE, 328)
    assert open_image(encode("PNG", 1, 100, "1")).size == (1, 100)


def test_floating_point_is_refused() -> None:
    for read in (open_image, open_rgb):
        with pytest.raises(ValueError, match="has pixels of floating point; convert it to 8 or 16 bits"):
            read(encode("TIFF", mode="F"))


def test_grey_of_16_bits_is_scaled_and_exif_turns() -> None:
    grey = np.arange(0, 65536, 4096, dtype=np.uint16).reshape(2, 8)
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(grey).save(buffer, "PNG", exif=exif)
    assert np.array_equal(np.asarray(open_rgb(buffer.getvalue()))[..., 0], np.rot90(grey // 256, -1))
