"""Tiny raw datasets, drawn, in the exact layouts of the real ones."""

import io
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Draw = Callable[[Path], Path]


@cache
def image_bytes(seed: int, kind: str = "JPEG", size: tuple[int, int] = (16, 32)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def make_draw() -> Draw:
    drawn = 0
    Image.init()

    def write(path: Path) -> Path:
        nonlocal drawn
        drawn += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(drawn, Image.registered_extensions()[path.suffix.lower()]))
        return path

    return write


@pytest.fixture
def draw() -> Draw:
    """Writes a picture of its own to each path, in the format of its suffix."""
    return make_draw()


def draw_market(root: Path) -> Path:
    """Market-1501's layout: 9 train identities of 2 to 10 images, 3 test ones, 18 distractors, 20 junk, strays."""
    draw = make_draw()
    for pid in range(2, 11):
        for image in range(pid):
            draw(root / "bounding_box_train" / f"{pid:04d}_c{image % 6 + 1}s1_{image:06d}_03.jpg")
    for pid in (1, 21, 1501):
        draw(root / "query" / f"{pid:04d}_c1s1_000001_00.jpg")
        for camid in (1, 2, 112):
            draw(root / "bounding_box_test" / f"{pid:04d}_c{camid}s2_000100_01.jpg")
    for image in range(18):
        draw(root / "bounding_box_test" / f"0000_c{image % 6 + 1}s3_{image:06d}_02.jpg")
    for image in range(20):
        draw(root / "bounding_box_test" / f"-1_c{image % 6 + 1}s3_{image:06d}_04.jpg")
    (root / "bounding_box_train" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (root / "bounding_box_test" / ".DS_Store").write_bytes(b"\0\0\0\1")
    (root / "bounding_box_test" / "._0001_c1s2_000100_01.jpg").write_bytes(b"\0\5\x16\7")
    (root / "query" / "readme.txt").write_text("not an image")
    return root


@pytest.fixture(scope="session")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`draw_market` once, only to be read."""
    root = draw_market(tmp_path_factory.mktemp("read_only") / "market")
    before = contents(root)
    yield root
    assert contents(root) == before, "a test has changed `market`, which others read; let it use `own_market`"


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def own_market(tmp_path: Path) -> Path:
    """`draw_market` for a test that changes it."""
    return draw_market(tmp_path / "market")


@pytest.fixture
def folder_tree(tmp_path: Path, draw: Draw) -> Path:
    """`split/identity/*`: Ann and Bob in train, Cleo in query and gallery, JPEG and PNG."""
    root = tmp_path / "people"
    for name in ("train/Bob/1.png", "train/Bob/2.jpg", "train/Ann/1.JPG", "train/Ann/2.jpeg"):
        draw(root / name)
    for name in ("query/Cleo/1.jpg", "gallery/Cleo/2.jpg", "gallery/Cleo/3.png"):
        draw(root / name)
    return root
