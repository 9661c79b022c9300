"""shards/build.py and what it is made of: the tars, the manifest, the rules for broken images and for `out`."""

import hashlib
import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np
import pytest
import webdataset
from PIL import Image, ImageChops, ImageStat

from reid.config import BatchConfig, DataConfig
from reid.data.images import Pixels
from reid.data.manifest import Manifest, Shard, Split, load_manifest
from reid.data.streams import Stock
from reid.files import hold
from shards import images
from shards.build import build
from shards.dealing import DEFAULT_IDENTITIES, USUAL_STREAMS, deal, default_num_shards
from shards.images import Encoding, check_image, reencode
from shards.pack import Packed
from shards.readers import csv_file, folder, market1501
from shards.summary import describe_streams
from shards.verify import verify


def hashes(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}


def members(out: Path, split: str) -> dict[str, bytes]:
    found = {}
    for path in sorted(out.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None and member.name not in found
                found[member.name] = file.read()
    return found


def test_samples_hold_every_image_untouched(market: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = build(market1501.read(market), out, num_shards=3).manifest
    stored = {}
    for split in manifest.splits:
        content = members(out, split)
        for name in [name for name in content if name.endswith(".json")]:
            sample = json.loads(content[name])
            assert sample["split"] == split
            sources = [image["source"] for image in sample["images"]]
            assert sources == sorted(sources)
            for number, image in enumerate(sample["images"]):
                assert image["file"] == f"{number:03d}.jpg"
                data = content[name.replace("json", image["file"])]
                stored[image["source"]] = data
                assert image["crc32"] == zlib.crc32(data)
    raw = {path.relative_to(market).as_posix(): path.read_bytes() for path in market.glob("*/*_c*s*_*.jpg")}
    assert stored == {source: data for source, data in raw.items() if "/._" not in source}


def test_keys_and_groups(market: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = build(market1501.read(market), out, num_shards=2, dataset="m").manifest
    keys = [name.removesuffix(".json") for name in members(out, "gallery") if name.endswith(".json")]
    assert sorted(keys) == [
        "m-gallery-000001",
        "m-gallery-000021",
        "m-gallery-001501",
        "m-gallery-distractor-0000",
        "m-gallery-distractor-0001",
        "m-gallery-junk-0000",
        "m-gallery-junk-0001",
    ]
    gallery = manifest.split("gallery")
    groups = sorted(zip(gallery.pids.tolist(), gallery.images.tolist(), strict=True))
    assert groups == [(-1, 4), (-1, 16), (0, 2), (0, 16), (1, 3), (21, 3), (1501, 3)]
    assert manifest.distractor_pid == 0
    first = json.loads(members(out, "train")["m-train-000002.json"])
    assert first["pid"] == 2 and first["name"] == "0002"
    assert first["images"][0]["source"] == "bounding_box_train/0002_c1s1_000000_03.jpg"
    assert [image["camid"] for image in first["images"]] == [1, 2]


def test_webdataset_groups_an_identity_with_all_its_images(market: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = build(market1501.read(market), out, num_shards=3).manifest
    for name, split in manifest.splits.items():
        urls = [str(out / shard.name) for shard in split.shards]
        samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
        read = [json.loads(sample["json"]) for sample in samples]
        assert [sample["pid"] for sample in read] == split.pids.tolist()
        assert [sample["name"] for sample in read] == list(split.names)
        assert [len(sample["images"]) for sample in read] == split.images.tolist()
        assert [Path(sample["__url__"]).name for sample in samples] == [split.shards[i].name for i in split.shard]
        assert [tuple(sorted({image["camid"] for image in sample["images"]})) for sample in read] == list(split.cameras)
        for sample, content in zip(samples, read, strict=True):
            files = {image["file"] for image in content["images"]}
            assert files == {key for key in sample if not key.startswith("__")} - {"json"}
            assert all(sample[file][:2] == b"\xff\xd8" for file in files)
            assert sample["__key__"].startswith(f"market1501-{name}-")


def test_manifest_describes_the_files(market: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = build(market1501.read(market), out).manifest
    read = load_manifest(out)
    assert read.fingerprint == manifest.fingerprint
    assert read.notice == market1501.NOTICE and read.skipped == ()
    found = hashes(out)
    shards = [shard for split in read.splits.values() for shard in split.shards]
    assert set(found) == {shard.name for shard in shards} | {"manifest.json"}
    for shard in shards:
        assert shard.sha256 == found[shard.name] and shard.bytes == (out / shard.name).stat().st_size


def test_same_input_same_bytes(own_market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(market1501.read(own_market), tmp_path / "one", num_shards=3)
    for path in own_market.glob("*/*"):  # another copy: other times, listed in another order
        path.touch()
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(iterdir(self), reverse=True)))
    raw = market1501.read(own_market)
    build(replace(raw, records=raw.records[::-1]), tmp_path / "two", num_shards=3)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    with tarfile.open(tmp_path / "one" / "train-0000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == 0o644 and member.isreg()


def test_image_counts_balance_and_pids_are_sorted(market: Path, tmp_path: Path) -> None:
    manifest = build(market1501.read(market), tmp_path / "out", num_shards=3).manifest
    assert [shard.images for shard in manifest.split("train").shards] == [19, 18, 17]
    for split in manifest.splits.values():
        for index in range(len(split.shards)):
            pids = split.pids[split.shard == index].tolist()
            assert pids == sorted(pids)


def test_deal() -> None:
    assert deal([1, 5, 3, 3, 2], 2) == [[1, 4], [2, 3, 0]]
    assert deal([4, 4, 4], 3) == [[0], [1], [2]]
    sizes = [1 + (7 * number) % 40 for number in range(751)]
    loads = [sum(sizes[item] for item in shard) for shard in deal(sizes, 64)]
    assert max(loads) - min(loads) <= 0.05 * min(loads)


@pytest.mark.parametrize(
    ("identities", "mib", "count"),
    [(1, 0, 1), (15, 0, 1), (16, 0, 2), (143, 3, 16), (751, 30, 64), (100_000, 5000, 64), (100_000, 64 * 513, 128)],
)
def test_default_number_of_shards(identities: int, mib: int, count: int) -> None:
    assert default_num_shards(identities, mib * 2**20) == count


@pytest.mark.parametrize(("identities", "count"), [(15, 1), (16, 8), (37, 8), (143, 16)])
def test_train_has_a_shard_for_each_stream(identities: int, count: int) -> None:
    assert default_num_shards(identities, 0, USUAL_STREAMS) == count
    assert BatchConfig() == BatchConfig(identities=DEFAULT_IDENTITIES)
    stock = Stock.count(np.ones(37), np.arange(37) % 8, np.zeros(8, dtype=int))
    assert stock.choose(DEFAULT_IDENTITIES) == USUAL_STREAMS


@pytest.mark.parametrize(
    ("shards", "advice"),
    [
        ([2] * 8, None),
        ([1] * 8 + [20], None),
        ([20], None),
        ([9, 9], None),
        ([3, 2], "batch.identities to at most 5 with batch.streams = 1"),
        ([1] * 37, None),
    ],
)
def test_defaults_of_training_that_do_not_fit_are_a_note(shards: list[int], advice: str | None) -> None:
    shard_of = np.repeat(np.arange(len(shards)), shards)
    stored = [Shard(f"train-{i:04d}.tar", "a" * 64, 10240, count, 4 * count) for i, count in enumerate(shards)]
    rows = len(shard_of)
    images = np.full(rows, 4)
    split = Split(tuple(stored), np.arange(1, rows + 1), images, shard_of, ((1,),) * rows, ("x",) * rows)
    found = describe_streams(Manifest("x", {"train": split}))
    assert [advice in text for text in found] == [True] * bool(advice)


def test_number_of_shards(market: Path, tmp_path: Path) -> None:
    manifest = build(market1501.read(market), tmp_path / "out", num_shards=9).manifest
    assert {name: len(split.shards) for name, split in manifest.splits.items()} == {
        "train": 9,
        "query": 3,
        "gallery": 7,
    }
    with pytest.raises(ValueError, match="--shards 10: train has 9 identities"):
        build(market1501.read(market), tmp_path / "more", num_shards=10)
    with pytest.raises(ValueError, match="--shards 0"):
        build(market1501.read(market), tmp_path / "none", num_shards=0)


def test_png_and_jpeg_go_by_content(folder_tree: Path, tmp_path: Path) -> None:
    (folder_tree / "train" / "Bob" / "2.jpg").write_bytes((folder_tree / "train" / "Bob" / "1.png").read_bytes())
    build(folder.read(folder_tree), tmp_path / "out")
    assert list(members(tmp_path / "out", "train")) == [
        "folder-train-000001.json",
        "folder-train-000001.000.jpg",
        "folder-train-000001.001.jpg",
        "folder-train-000002.json",
        "folder-train-000002.000.png",
        "folder-train-000002.001.png",
    ]
    assert load_manifest(tmp_path / "out").split("train").cameras == ((-1,), (-1,))


# Broken images


def noise(width: int, height: int) -> Image.Image:
    grey = np.random.default_rng(0).normal(128, 80, (height, width)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def jpeg(width: int = 16, height: int = 32) -> bytes:
    buffer = io.BytesIO()
    noise(width, height).save(buffer, "JPEG")
    return buffer.getvalue()


def png_bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A few dozen bytes that claim 2.5 billion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


BROKEN = {
    "empty": (b"", "empty file"),
    "text": (b"<html>404</html>", "is none of JPEG, PNG"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "is none of JPEG, PNG"),
    "cut short": (jpeg()[:-200], "does not decode: image file is truncated"),
    "header alone": (jpeg()[:20], "does not decode|is none of JPEG"),
    "bomb": (png_bomb(), "does not decode|more than"),
    "large": (png_bomb(9_000, 9_000), "9000 x 9000 pixels, more than"),
    "line": (png_bomb(1, 49_000_000), "1 x 49000000 pixels; a side may have"),
    "ribbon": (png_bomb(9_000, 80), "9000 x 80 pixels; a side may have"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_check_image_finds(kind: str) -> None:
    data, reason = BROKEN[kind]
    with pytest.raises(ValueError, match=reason) as first:
        check_image(data)
    with pytest.raises(ValueError) as second:
        check_image(bytes(data))
    assert str(first.value) == str(second.value)  # no address in it: it goes into the manifest


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_check_image_takes_jpegs_of_any_mode(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (8, 8)).save(buffer, "JPEG")
    assert check_image(buffer.getvalue()) == "jpg"


@pytest.fixture
def damaged(own_market: Path) -> Path:
    """The market tree with one train image cut short: 1 of 104."""
    path = own_market / "bounding_box_train" / "0003_c2s1_000001_03.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    return own_market


def test_broken_images_fail_the_build_above_one_percent(damaged: Path, tmp_path: Path) -> None:
    (damaged / "query" / "0001_c1s1_000001_00.jpg").write_bytes(b"")
    with pytest.raises(ValueError) as caught:
        build(market1501.read(damaged), tmp_path / "out")
    text = str(caught.value)
    assert "2 of 104 images are broken, more than --max-broken 0.01 allows" in text
    assert "bounding_box_train/0003_c2s1_000001_03.jpg: does not decode" in text
    assert "query/0001_c1s1_000001_00.jpg: an empty file" in text
    assert "--max-broken 0.0193" in text
    assert [path.name for path in tmp_path.iterdir()] == ["market"]
    build(market1501.read(damaged), tmp_path / "out", max_broken=0.0193)  # the share it named is enough


def test_broken_images_are_left_out_and_listed(damaged: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = build(market1501.read(damaged), out).manifest  # 1 of 104 is below 1%
    assert [entry["source"] for entry in manifest.skipped] == ["bounding_box_train/0003_c2s1_000001_03.jpg"]
    assert manifest.skipped[0]["reason"].startswith("does not decode")
    assert load_manifest(out).skipped == manifest.skipped
    train = manifest.split("train")
    assert train.num_images == 53 and train.images[train.pids == 3].tolist() == [2]
    sample = json.loads(members(out, "train")["market1501-train-000003.json"])
    assert [image["file"] for image in sample["images"]] == ["000.jpg", "001.jpg"]  # no gap


@pytest.mark.timeout(60)
def test_a_fifo_named_like_an_image_is_a_broken_image(own_market: Path, tmp_path: Path) -> None:
    os.mkfifo(own_market / "bounding_box_train" / "0003_c2s1_000009_03.jpg")
    manifest = build(market1501.read(own_market), tmp_path / "out", max_broken=0.2).manifest
    assert [(e["source"][-8:], "FIFO" in e["reason"]) for e in manifest.skipped] == [("9_03.jpg", True)]


def test_identities_without_a_readable_image_vanish(own_market: Path, tmp_path: Path) -> None:
    for path in (own_market / "bounding_box_train").glob("0010_*.jpg"):
        path.write_bytes(b"")
    manifest = build(market1501.read(own_market), tmp_path / "out", num_shards=9, max_broken=0.2).manifest
    train = manifest.split("train")
    assert train.pids.tolist() == [9, 8, 7, 6, 5, 4, 3, 2]
    assert [shard.name for shard in train.shards] == [f"train-{number:04d}.tar" for number in range(8)]
    for path in (own_market / "query").glob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="query: every image is broken"):
        build(market1501.read(own_market), tmp_path / "none", max_broken=1)


def test_paths_missing_from_the_disk_count_as_broken(tmp_path: Path, draw: Callable[[Path], Path]) -> None:
    draw(tmp_path / "1.jpg")
    (tmp_path / "labels.csv").write_text("path,identity,split\n1.jpg,a,train\n2.jpg,a,train\n")
    with pytest.raises(ValueError, match=r"(?s)1 of 2 images are broken.*2\.jpg: No such file"):
        build(csv_file.read(tmp_path), tmp_path / "out")
    manifest = build(csv_file.read(tmp_path), tmp_path / "out", max_broken=0.5).manifest
    assert manifest.skipped == ({"source": "2.jpg", "reason": "No such file or directory"},)
    (tmp_path / "labels.csv").write_text(f"path,identity,split\n1.jpg,a,train\n{'2' * 300}.jpg,a,train\n")
    manifest = build(csv_file.read(tmp_path), tmp_path / "out", max_broken=0.5).manifest
    assert manifest.skipped[0]["reason"] == "File name too long"


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_max_broken_is_a_share(market: Path, tmp_path: Path, share: float) -> None:
    with pytest.raises(ValueError, match="--max-broken"):
        build(market1501.read(market), tmp_path / "out", max_broken=share)


@pytest.mark.parametrize("name", ["a.b", "a/b", "", "-a", "x" * 41, "market 1501"])
def test_dataset_names_that_would_break_keys(market: Path, tmp_path: Path, name: str) -> None:
    raw = replace(market1501.read(market), name=name)
    with pytest.raises(ValueError, match="--dataset"):
        build(raw, tmp_path / "out")


# The folder `out`


def test_an_earlier_build_is_replaced(market: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(market1501.read(market), out, num_shards=9)
    build(market1501.read(market), out, num_shards=2)
    assert len(list(out.glob("train-*.tar"))) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_foreign_folder_is_refused(market: Path, tmp_path: Path) -> None:
    raw = market1501.read(market)
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match="not empty and was not built by this program; give another --out"):
        build(raw, out)
    (out / "thesis.txt").unlink()
    build(raw, out)
    (out / "thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"there is 'thesis\.txt', which a build would delete"):
        build(raw, out)
    (out / "thesis.txt").unlink()
    with pytest.raises(ValueError, match="holds shards of 'market1501', not 'other'"):
        build(raw, out, dataset="other")
    (out / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="cannot be read"):
        build(raw, out)
    with pytest.raises(ValueError, match="is a file"):
        build(raw, market / "query" / "readme.txt")


def test_an_interrupted_build_leaves_no_manifest_and_starts_cleanly(
    market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, out = market1501.read(market), tmp_path / "out"
    calls = 0

    def interrupted(path: Path, *_: object) -> Packed:
        nonlocal calls
        calls += 1
        path.write_bytes(b"half a shard")
        if calls == 2:
            raise KeyboardInterrupt
        return Packed()

    with monkeypatch.context() as patch:
        patch.setattr("shards.write.pack_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(raw, out, num_shards=3)
    assert not list(tmp_path.iterdir())

    (tmp_path / ".out.building").mkdir()  # as a killed build leaves it
    (tmp_path / ".out.building" / "train-0000.tar").write_bytes(b"half a shard")
    (tmp_path / ".out.building" / "train-0099.tar").write_bytes(b"half a shard")
    manifest = build(raw, out, num_shards=3).manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert len(list(out.glob("train-*.tar"))) == len(manifest.split("train").shards) == 3


def test_a_failed_build_keeps_the_earlier_one(market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, out = market1501.read(market), tmp_path / "out"
    build(raw, out)
    before = hashes(out)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shards.write.pack_shard", fail)
        with pytest.raises(ValueError, match=r"no space left .*; nothing was built"):
            build(raw, out)
        assert hashes(out) == before
        out.rename(tmp_path / ".out.old")  # as a build killed between its two renames leaves it
        with pytest.raises(ValueError, match=r"no space left .*; nothing was built"):
            build(raw, out)
        assert hashes(out) == before


# What the user should hear


def test_warnings(tmp_path: Path, draw: Callable[[Path], Path]) -> None:
    rows = [
        ("1.jpg", "ann", "1", "train"),
        ("2.jpg", "ann", "2", "train"),
        ("3.jpg", "gus", "1", "gallery"),
        ("4.jpg", "bob", "1", "train"),  # a single image
        ("5.jpg", "cleo", "1", "query"),  # gallery from the same camera alone
        ("6.jpg", "cleo", "1", "gallery"),
        ("7.jpg", "dan", "1", "query"),  # not in the gallery
        ("8.jpg", "eve", "1", "query"),
        ("9.jpg", "eve", "2", "gallery"),
        ("10.jpg", "fay", "", "query"),  # unknown camera: any gallery image is a match
        ("11.jpg", "fay", "", "gallery"),
    ]
    for path, *_ in rows:
        draw(tmp_path / path)
    (tmp_path / "labels.csv").write_text("path,identity,camera,split\n" + "\n".join(map(",".join, rows)) + "\n")
    raw = csv_file.read(tmp_path)
    records = [replace(record, pid=1) if record.name == "gus" else record for record in raw.records]  # ann's
    warnings = build(replace(raw, records=records), tmp_path / "out").warnings
    assert len(warnings) == 4
    assert warnings[0].startswith("1 identities are in train and in the test splits, e.g. pid 1")
    assert warnings[1].startswith("2 of 4 queries have no possible match")
    assert warnings[2].startswith("2 of 11 images have no camera id")
    assert warnings[3].startswith("1 train identities have one image")


def test_market_has_nothing_to_warn_of(market: Path, tmp_path: Path) -> None:
    done = build(replace(market1501.read(market), published={}), tmp_path / "out")
    assert done.warnings == () and done.ignored == 4


# Several processes, sizes, re-encoding


def test_any_number_of_workers_gives_the_same_bytes(damaged: Path, tmp_path: Path) -> None:
    for path in (damaged / "bounding_box_train").glob("0010_*.jpg"):  # a shard in which nothing is readable
        path.write_bytes(b"")
    raw = market1501.read(damaged)
    one = build(raw, tmp_path / "one", num_shards=9, max_broken=0.2)
    three = build(raw, tmp_path / "three", num_shards=9, max_broken=0.2, workers=3)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "three")
    assert one.warnings == three.warnings and len(one.manifest.skipped) == 11
    assert len(list((tmp_path / "three").glob("train-*.tar"))) == 8


def test_a_killed_worker_is_an_error(market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers end themselves when their parent is not who it was."""
    monkeypatch.setattr("shards.write.os", SimpleNamespace(getpid=lambda: 1))
    with pytest.raises(ValueError, match=r"a worker process was killed.*fewer --workers"):
        build(market1501.read(market), tmp_path / "out", num_shards=3, workers=2)
    assert not list(tmp_path.iterdir())


def test_errors_in_a_worker_reach_the_caller(market: Path, tmp_path: Path) -> None:
    raw = market1501.read(market)
    lost = replace(raw.records[0], path=tmp_path / "elsewhere.jpg")  # not below the root: no source can be given
    with pytest.raises(ValueError, match=r"elsewhere\.jpg"):
        build(replace(raw, records=(*raw.records, lost)), tmp_path / "out", num_shards=3, workers=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("knobs", [{"workers": 0}, {"shard_bytes": 0}, {"shard_bytes": 9, "num_shards": 1}])
def test_knobs_out_of_range(market: Path, tmp_path: Path, knobs: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"--workers 0|--shard-size 0|give one of them"):
        build(market1501.read(market), tmp_path / "out", **knobs)  # type: ignore[arg-type]


def test_shard_size(market: Path, tmp_path: Path) -> None:
    manifest = build(market1501.read(market), tmp_path / "out", shard_bytes=40 * 1024).manifest
    sizes = [shard.bytes for shard in manifest.split("train").shards]
    assert len(sizes) > 2 and all(0.5 * 40 * 1024 < size < 1.5 * 40 * 1024 for size in sizes)
    assert len(manifest.split("query").shards) == 1
    manifest = build(market1501.read(market), tmp_path / "out", shard_bytes=1).manifest
    assert len(manifest.split("train").shards) == 9  # not more than identities


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P"])
def test_reencode(mode: str) -> None:
    buffer = io.BytesIO()
    noise(30, 50).convert(mode).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    data = reencode(buffer.getvalue(), Encoding(64, 32, 90))
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 64))
    assert data == reencode(buffer.getvalue(), Encoding(64, 32, 90)) != reencode(buffer.getvalue(), Encoding(64, 32))
    with pytest.raises(ValueError, match="more than"):
        reencode(png_bomb(9_000, 9_000), Encoding(64, 32))


def test_reencoding_sets_images_upright() -> None:
    """As the loader does for images whose bytes are kept; and what is stored does not say so again."""
    picture = Image.new("RGB", (64, 32), "red")
    picture.paste("blue", (0, 0, 32, 32))
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    picture.save(buffer, "JPEG", exif=exif)
    data = reencode(buffer.getvalue(), Encoding(64, 32))
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif().get(0x0112) is None
    kept, stored = (Pixels(64, 32).decode(each, "x").float() for each in (buffer.getvalue(), data))
    assert (kept - stored).abs().mean() < 3 and kept[2, :24].mean() > 200 > 50 > kept[2, -24:].mean()


def test_reencoding_scales_grey_of_16_bits() -> None:
    grey = np.linspace(0, 65535, 64 * 32).reshape(64, 32).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    kept, stored = (
        Pixels(64, 32).decode(each, "x").float()
        for each in (buffer.getvalue(), reencode(buffer.getvalue(), Encoding(64, 32)))
    )
    assert (kept - stored).abs().max() < 4 and 120 < stored.mean() < 135


def test_what_a_build_stores_the_loader_decodes() -> None:
    """One limit of pixels: otherwise a build that passes every check stops a training."""
    assert images.MAX_PIXELS == Pixels(1, 1).max_pixels == DataConfig().max_pixels
    reencode(jpeg(40, 25), Encoding(8, 8), max_pixels=1000)
    with pytest.raises(ValueError, match="40 x 26 pixels, more than 1000"):
        check_image(jpeg(40, 26), max_pixels=1000)


def test_reencoding_resizes_as_the_loader_does() -> None:
    original, buffer = noise(100, 200), io.BytesIO()
    original.save(buffer, "PNG")
    with Image.open(io.BytesIO(reencode(buffer.getvalue(), Encoding(128, 64)))) as image:
        wanted = original.resize((64, 128), Image.Resampling.BILINEAR)
        difference = ImageStat.Stat(ImageChops.difference(image, wanted)).mean
    assert all(mean < 3 for mean in difference)  # 30 and more with another filter


def test_reencoded_shards(damaged: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = build(market1501.read(damaged), out, encoding=Encoding(24, 12, 80)).manifest
    assert manifest.encoding == load_manifest(out).encoding == "JPEG 24x12, quality 80"
    assert len(manifest.skipped) == 1
    content = members(out, "query")
    sample = json.loads(content["market1501-query-000021.json"])
    data = content["market1501-query-000021.000.jpg"]
    assert sample["images"][0]["crc32"] == zlib.crc32(data)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (12, 24)
    assert verify(out, decode=True).damage == []
    assert build(market1501.read(damaged), out).manifest.encoding == ""


# Full disks, and two builds at once


def test_a_full_disk(market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full answers every write as a full disk does."""
    raw, out = market1501.read(market), tmp_path / "out"

    def open_full(path: Path, mode: str) -> BinaryIO:
        path.write_bytes(b"half")
        return open("/dev/full", mode)  # type: ignore[return-value]

    with monkeypatch.context() as patch:
        patch.setattr("shards.pack.open", open_full, raising=False)
        with pytest.raises(ValueError, match=r"no space left \(No space left on device\); nothing was built.*--out"):
            build(raw, out)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_seen_first(market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, out = market1501.read(market), tmp_path / "out"
    monkeypatch.setattr("shards.write.shutil.disk_usage", lambda _: SimpleNamespace(free=50_000))
    monkeypatch.setattr("shards.build.write_shards", None)
    with pytest.raises(ValueError, match=r"0.2 MiB are needed, 0.0 MiB are free; nothing was built"):
        build(raw, out)
    assert not list(tmp_path.iterdir())


def test_two_builds_into_one_folder(market: Path, tmp_path: Path) -> None:
    raw, out = market1501.read(market), tmp_path / "out"
    with hold(tmp_path / ".out.lock"):
        with pytest.raises(ValueError, match=rf"out: process {os.getpid()} on .* is building there; wait for it"):
            build(raw, out)
        build(raw, tmp_path / "other")
    build(raw, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]
