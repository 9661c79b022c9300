"""Boxes: how a table writes them, what is cut out of a picture, and what is left out."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid.data.image_file import open_rgb
from reid.data.manifest import load_manifest
from shards.__main__ import main
from shards.boxes import CORNERS, SIZED, Box, Cropping, cut_out, parse_box
from shards.images import reencode
from shards.readers import csv_file
from tests.support.status import status_of
from tests.support.stored import stored

HEADER = "path,identity,split,x,y,width,height\n"
ORIENTATION = 0x0112  # EXIF


def gradient(width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8: red is the column, green the row, so that each pixel tells its place."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, 99)], axis=-1).astype(np.uint8)


def frame(path: Path, width: int = 200, height: int = 120, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(gradient(width, height)).save(path, **options)
    return path


def write(root: Path, rows: str, header: str = HEADER) -> Path:
    (root / "labels.csv").write_text(header + rows)
    return root


@pytest.mark.parametrize(
    ("box", "pad", "wanted"),
    [
        (Box(20, 10, 60, 90), 0.0, (20, 10, 60, 90)),
        (Box(20, 10, 60, 90), 0.1, (16, 2, 64, 98)),
        (Box(-5, -7, 30, 40), 0.0, (0, 0, 30, 40)),
        (Box(190, 100, 260, 300), 0.5, (155, 0, 200, 120)),
        (Box(0.25, 0.5, 0.5, 1.2, True), 0.0, (50, 60, 100, 120)),
        (Box(20.4, 9.6, 59.6, 90.4), 0.0, (20, 10, 60, 90)),
    ],
)
def test_a_box_is_padded_and_clipped(box: Box, pad: float, wanted: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = wanted
    cut = np.array(cut_out(Image.fromarray(gradient(200, 120)), box, Cropping(pad)))
    assert (cut == gradient(200, 120)[top:bottom, left:right]).all() and cut.shape[:2] == (bottom - top, right - left)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (Box(200, 0, 240, 90), "outside the picture of 200 x 120"),
        (Box(-50, 0, -1, 90), "outside"),
        (Box(0, 1.1, 0.5, 1.3, True), "outside"),
        (Box(195, 0, 240, 90), r"a side below 8 pixels \(--min-box\)"),
        (Box(10, 10, 17, 90), "a side below 8"),
    ],
)
def test_boxes_outside_or_too_small_are_refused_whatever_the_padding(box: Box, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        cut_out(Image.fromarray(gradient(200, 120)), box, Cropping(pad=1.0))


def test_a_crop_that_training_would_refuse() -> None:
    with pytest.raises(ValueError, match="a side may have"):
        cut_out(Image.new("RGB", (2000, 20)), Box(0, 0, 2000, 10), Cropping())


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGB", "jpg"), ("L", "png"), ("P", "png"), ("I;16", "png"), ("RGBA", "webp"), ("RGB", "bmp"), ("CMYK", "tif")],
)
def test_crops_are_of_the_pixels_that_training_sees(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.fromarray(gradient(200, 120))
    image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
    if mode == "I;16":
        image = Image.fromarray(np.array(image) * 257)
    image.save(tmp_path / f"a.{suffix}")
    cut = Image.open(io.BytesIO(reencode((tmp_path / f"a.{suffix}").read_bytes(), None, Box(20, 10, 60, 90))))
    seen = np.array(open_rgb(tmp_path / f"a.{suffix}")).astype(int)[10:90, 20:60]
    assert cut.format == "JPEG" and seen.std() > 5 and abs(np.array(cut) - seen).mean() < 4


@pytest.mark.parametrize(
    ("values", "names", "units", "reason"),
    [
        (("1", "2", "x", "4"), SIZED, "pixels", "width 'x' is no number"),
        (("1", "2", "nan", "4"), SIZED, "pixels", "width 'nan'"),
        (("inf", "2", "3", "4"), SIZED, "pixels", "x 'inf'"),
        (("1", "2", "-3", "4"), SIZED, "pixels", "its width -3 is not above 0"),
        (("1", "2", "3", "0"), SIZED, "pixels", "its height 0 is not above 0"),
        (("9", "2", "3", "4"), CORNERS, "pixels", "x2 is not right of x1"),
        (("1", "8", "3", "4"), CORNERS, "pixels", "y2 is not below y1"),
        (("10", "20", "30", "40"), SIZED, "normalized", "is not normalized"),
    ],
)
def test_what_is_no_box(values: tuple[str, ...], names: tuple[str, ...], units: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"t.csv, line 7: .*{reason}"):
        parse_box(values, names, "t.csv, line 7", units)
    assert parse_box(("1", "2", "3", "5"), CORNERS, "") == parse_box(("1", "2", "2", "3"), SIZED, "")


def test_build_cuts_the_people_of_a_frame_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two people of one frame, one box partly outside, one outside, one too small; a WebP and an upright photo."""
    root, out = tmp_path / "root", tmp_path / "out"
    frame(root / "a.png")
    frame(root / "b.webp", lossless=True)
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # stored lying on its side: upright it has 120 x 200 pixels
    frame(root / "c.png", exif=exif)
    rows = "a.png,ann,train,20,10,40,80\na.png,bob,train,100,20,30,60\na.png,bob,train,-10,-10,40,60\n"
    rows += "b.webp,ann,train,50,0,40,80\nc.png,cleo,train,0,120,40,80\n"
    broken = "a.png,dan,train,500,0,40,80\na.png,dan,train,10,10,4,80\n"
    command = ["build", "csv", "--root", str(write(root, rows + broken)), "--out", str(out)]
    assert status_of(main, *command) == 2
    said = capsys.readouterr().err
    assert "2 of 7 images are broken" in said and "a.png#xywh=500,0,40,80: the box" in said and not out.exists()
    assert main([*command, "--max-broken", "0.3", "--pad-box", "0.1"]) == 0
    assert "broken and left out: 2 images" in capsys.readouterr().out
    manifest = load_manifest(out)
    assert manifest.encoding == "boxes padded by 0.1, JPEG, quality 95" and len(manifest.skipped) == 2
    pictures = stored(out)
    sizes = {source: picture.size for source, picture in pictures.items()}
    assert sizes == {
        "a.png#xywh=20,10,40,80": (48, 96),
        "a.png#xywh=-10,-10,40,60": (34, 56),
        "a.png#xywh=100,20,30,60": (36, 72),
        "b.webp#xywh=50,0,40,80": (48, 88),
        "c.png#xywh=0,120,40,80": (44, 88),
    }
    cut = np.array(pictures["a.png#xywh=20,10,40,80"]).astype(int)
    assert abs(cut - gradient(200, 120)[2:98, 16:64]).max() < 12  # a JPEG
    upright = np.rot90(gradient(200, 120), -1)
    assert abs(np.array(pictures["c.png#xywh=0,120,40,80"]).astype(int) - upright[112:200, :44]).max() < 12
    assert main(["verify", str(out), "--decode"]) == 0
    # the other ways to write the same boxes give the same bytes, in any number of processes and order of rows
    corners = "".join(
        f"{path},{name},train,{x},{y},{x + w},{y + h}\n"
        for path, name, _, x, y, w, h in (
            (*fields[:3], *map(int, fields[3:])) for fields in (row.split(",") for row in (rows + broken).splitlines())
        )
    )
    write(root, "".join(sorted(corners.splitlines(keepends=True))), HEADER.replace("x,y,width,height", "x1,y1,x2,y2"))
    again = [*command[:-1], str(tmp_path / "again"), "--max-broken", "0.3", "--pad-box", "0.1", "--workers", "2"]
    assert main(again) == 0
    assert load_manifest(tmp_path / "again").fingerprint == manifest.fingerprint


def test_normalized_boxes_sizes_and_extra_columns(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    frame(root / "a.png")
    frame(root / "b.bmp", 400, 240)
    header = "path,weather,identity,split,x1,y1,x2,y2,note\n"
    write(root, "a.png,rain,ann,train,0.1,0.1,0.3,0.9,\nb.bmp,sun,ann,train,0.1,0.1,0.3,0.9,late\n", header)
    command = ["build", "csv", "--root", str(root), "--out", str(out), "--extra=weather,note"]
    assert main([*command, "--boxes=normalized"]) == 0
    assert [picture.size for picture in stored(out).values()] == [(40, 96), (80, 192)]
    with tarfile.open(out / "train-0000.tar") as tar:
        sample = json.load(tar.extractfile("csv-train-000001.json"))
    extra = [image["extra"] for image in sample["images"]]
    assert extra == [{"weather": "rain", "note": ""}, {"weather": "sun", "note": "late"}]
    assert main([*command, "--boxes=normalized", "--size", "64x32"]) == 0
    assert [picture.size for picture in stored(out).values()] == [(32, 64)] * 2
    assert load_manifest(out).encoding == "boxes, JPEG 64x32, quality 95"
    assert main(["verify", str(out), "--decode"]) == 0


@pytest.mark.parametrize(
    ("header", "rows", "options", "message"),
    [
        (HEADER, "a.png,ann,train,1,2,-30,40\n", {}, r"labels\.csv, line 2: .*width -30"),
        (HEADER, "a.png,ann,train,1,2,30,40\na.png,ann,train,1,2,30,\n", {}, r"line 3: no height; each row needs"),
        (HEADER, "a.png,ann,train,1,2,30,40\na.png,ann,train,,,,\n", {}, r"line 3: no x"),
        ("path,identity,split,x,y,width\n", "a.png,ann,train,1,2,30\n", {}, "line 2: no height"),
        (HEADER, "a.png,ann,train,1,2,30,40\na.png,ann,train,1,2,30,40\n", {}, r"lines 2 and 3: a\.png twice"),
        (HEADER, "a.png,ann,train,0.1,0.2,0.3,0.4\n", {}, "give --boxes normalized"),
        (HEADER, "a.png,ann,train,10,20,30,40\n", {"boxes": "normalized"}, "line 2: .*is not normalized"),
        (HEADER, "a.png,ann,train,10,20,30,40\n", {"boxes": "xy"}, "--boxes xy: use pixels or normalized"),
        ("path,identity,split\n", "a.png,ann,train\n", {"boxes": "normalized"}, "no column x or x1"),
        ("path,identity,split,xmin\n", "a.png,ann,train,1\n", {}, r"'xmin' \(did you mean x1\?\)"),
        ("path,identity,split,mood\n", "a.png,ann,train,1\n", {}, "'mood'; .* --extra mood"),
        ("path,identity,split\n", "a.png,ann,train\n", {"extra": ["mood"]}, "no column mood"),
        ("path,identity,split\n", "a.png,ann,train\n", {"extra": ["camera"]}, "--extra camera"),
        (HEADER[:-1] + ",x1,y1,x2,y2\n", "a.png,ann,train,1,2,3,4,1,2,4,6\n", {}, "keep one of them"),
    ],
)
def test_what_is_wrong_with_a_table_of_boxes_is_named(
    tmp_path: Path, header: str, rows: str, options: dict[str, object], message: str
) -> None:
    write(tmp_path, rows, header)
    with pytest.raises(ValueError, match=message):
        csv_file.read(tmp_path, **options)


def test_knobs_of_boxes(tmp_path: Path, draw, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "train" / "ann" / "1.jpg")
    command = ["build", "folder", "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    for options, message in (
        (["--pad-box=0.1"], "no image of this dataset has a box"),
        (["--pad-box=-1"], "--pad-box -1: give a share"),
        (["--pad-box=nan"], "--pad-box nan"),
        (["--min-box=0"], "--min-box 0"),
        (["--extra=x"], "--extra: not an option of `build folder`, only of csv"),
        (["--boxes=pixels"], "only of cuhk03 and csv"),
    ):
        assert status_of(main, *command, *options) == 2
        assert message in capsys.readouterr().err
