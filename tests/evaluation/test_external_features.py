"""reid/evaluation/external_features.py: features of other systems, what is refused, our own read back."""

import io
import os
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from reid.evaluation.external_features import read_features, read_image, write_features
from reid.metrics import retrieval
from reid.metrics.features import Features
from tests.support.drawn import Bomb

RNG = np.random.default_rng(0)
GOOD = {
    "features": RNG.normal(size=(20, 5)).astype(np.float32),
    "pids": np.arange(20) % 4,
    "camids": np.arange(20) % 3,
    "distractors": np.arange(20) % 7 == 0,
    "paths": np.array([f"{i}.jpg" for i in range(20)]),
}


def save(folder, name="query.npz", drop=(), **changes):
    arrays = {key: value for key, value in (GOOD | changes).items() if key not in drop}
    np.savez(folder / name, **arrays)
    return folder / name


def test_all_keys(tmp_path):
    split = read_features(save(tmp_path))
    assert np.array_equal(split.features.embeddings.numpy(), GOOD["features"])
    assert split.features.pids.tolist() == GOOD["pids"].tolist()
    assert split.features.camids.tolist() == GOOD["camids"].tolist()
    assert split.features.distractors.tolist() == GOOD["distractors"].tolist()
    assert split.paths[3] == "3.jpg"


def test_optional_keys_and_other_types(tmp_path):
    features = GOOD["features"].astype(np.float16)
    path = save(tmp_path, drop=("features", "camids", "distractors", "paths"), embeddings=features,
                pids=GOOD["pids"].astype(np.uint8), sizes=np.array([None]))  # fmt: skip
    split = read_features(path)
    assert split.features.embeddings.dtype == torch.float32
    assert np.array_equal(split.features.embeddings.numpy(), features.astype(np.float32))
    assert split.features.camids.tolist() == [-1] * 20
    assert split.features.distractors is None and split.paths == []


def test_a_folder_of_arrays_is_mapped_and_left_alone(tmp_path):
    for name in ("features", "pids", "camids"):
        np.save(tmp_path / f"{name}.npy", GOOD[name])
    before = (tmp_path / "features.npy").read_bytes()
    split = read_features(tmp_path)
    assert np.array_equal(split.features.embeddings.numpy(), GOOD["features"])
    split.features.embeddings += 1
    assert (tmp_path / "features.npy").read_bytes() == before
    assert str(tmp_path / "features.npy") in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("distractors", [None, GOOD["distractors"]])
def test_ours_come_back_to_the_last_digit(tmp_path, distractors):
    ours = Features(GOOD["features"], GOOD["pids"], GOOD["camids"], distractors)
    write_features(tmp_path / "ours.npz", ours)
    theirs = read_features(tmp_path / "ours.npz").features
    for name in ("embeddings", "pids", "camids"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert (ours.is_distractor() == theirs.is_distractor()).all()
    assert retrieval.evaluate(ours, ours).to_json() == retrieval.evaluate(theirs, theirs).to_json()


def test_junk_may_hold_anything(tmp_path):
    read_features(save(tmp_path, features=BAD_ROW, pids=np.where(np.arange(20) == 7, -1, GOOD["pids"])))


def test_paths_as_bytes_are_text(tmp_path):
    assert read_features(save(tmp_path, paths=np.array([b"\xc3\xa4.jpg"] * 20))).paths == ["ä.jpg"] * 20


def test_arrays_in_memory_of_any_layout():
    """What `Features` takes without a file: other byte orders and negative strides; other types are refused by name."""
    expected = Features(GOOD["features"], GOOD["pids"], GOOD["camids"])
    turned = [np.ascontiguousarray(GOOD[name][::-1])[::-1] for name in ("features", "pids", "camids")]
    swapped = [GOOD[name].astype(GOOD[name].dtype.newbyteorder(">")) for name in ("features", "pids", "camids")]
    for embeddings, pids, camids in (turned, swapped):
        split = Features(embeddings, pids, camids)
        for name in ("embeddings", "pids", "camids"):
            assert torch.equal(getattr(split, name), getattr(expected, name))
    for wrong in (None, [None] * 20, ["1"] * 20, [1j] * 20, [[1], [1, 2]], 3, torch.ones(20), torch.ones(20) > 0):
        with pytest.raises(ValueError, match=r"^pids "):
            Features(GOOD["features"], wrong, GOOD["camids"])


@pytest.mark.parametrize("kind", ["f4", "f8", "i2"])
def test_any_byte_order(tmp_path, kind):
    numbers = (100 * GOOD["features"]).astype(f">{kind}")
    split = read_features(save(tmp_path, features=numbers, pids=GOOD["pids"].astype(">i8")))
    assert np.array_equal(split.features.embeddings.numpy(), numbers.astype(np.float32))
    assert split.features.pids.tolist() == GOOD["pids"].tolist()


HUGE_ROW = np.where(np.arange(20)[:, None] == 7, 1e25, GOOD["features"])  # finite, but not its square
BAD_ROW = np.where(np.arange(20)[:, None] == 7, np.nan, GOOD["features"])


@pytest.mark.parametrize(
    ("changes", "drop", "message"),
    [
        ({}, ("pids",), "holds camids, distractors, features, paths; it needs pids and either features or embeddings"),
        ({}, ("features",), "it needs pids and either"),
        ({"embeddings": GOOD["features"]}, (), "it needs pids and either"),
        ({"camid": GOOD["camids"]}, ("camids",), "camid is not read; rename it if it holds camids"),
        ({"Paths": GOOD["paths"]}, ("paths",), "Paths is not read; rename it if it holds paths"),
        ({"features": GOOD["features"][0]}, (), r"features have shape \(5,\); give \(images, dimensions\)"),
        ({"features": GOOD["features"].astype("U9")}, (), "features are <U9"),
        ({"features": np.zeros((0, 5)), "pids": np.zeros(0, int)}, ("camids",), "give at least one image"),
        ({"pids": np.arange(19)}, (), r"pids have shape \(19,\); 20 embeddings need \(20,\)"),
        ({"camids": np.zeros((20, 1), int)}, (), r"camids have shape \(20, 1\)"),
        ({"pids": np.arange(20) / 2}, (), "pids are float64; give integers"),
        ({"distractors": np.array(["no"] * 20)}, (), "distractors are <U2; give booleans"),
        ({"paths": np.arange(20)}, (), r"paths are int64 \(20,\); give text"),
        ({"features": BAD_ROW}, (), r"the feature of row 7, 7.jpg is not finite \(1 of 20 rows are\)"),
        ({"features": BAD_ROW}, ("paths",), "the feature of row 7 is not finite"),
        ({"features": HUGE_ROW}, (), r"the feature of row 7, 7.jpg is too large for float32 \(1 of 20 rows are\)"),
        ({"features": GOOD["features"] * np.float32(1e-44)}, (), "row 0, 0.jpg is too small for float32"),
        ({"features": 1e-60 * GOOD["features"].astype(float)}, (), "features: row 0 is too small for float32"),
        ({"features": GOOD["features"] * 1j}, (), "features are complex"),
        ({"features": GOOD["features"] > 0}, (), "features are bool"),
        ({"features": np.ones((20, 0))}, (), r"features have shape \(20, 0\); give at least one image and dimension"),
        ({"features": GOOD["features"].astype(np.longdouble)}, (), "features are float128; give numbers"),
        ({"pids": np.array(3)}, (), r"pids have shape \(\); 20 embeddings need \(20,\)"),
        ({"paths": np.array("a.jpg")}, (), r"paths are <U5 \(\)"),
        ({"pids": np.full(20, 2**64 - 1, np.uint64)}, (), r"pids hold numbers of 2\*\*63 or more"),
        ({"camids": np.full(20, 2**63, np.uint64)}, (), r"camids hold numbers of 2\*\*63 or more"),
        ({"pids": np.full(20, np.nan)}, (), "pids are float64; give integers"),
        ({"pids": GOOD["pids"] > 1}, (), "pids are bool; give integers"),
        ({"pids": np.array(["1"] * 20)}, (), "pids are <U1; give integers"),
        ({"camids": np.array([None] * 20)}, (), "camids: not a readable .npz: it holds Python objects"),
        ({"distractors": GOOD["pids"]}, (), "distractors hold other numbers than 0 and 1"),
        ({"paths": np.array(["a\0b.jpg"] * 20)}, (), r"paths: row 0 holds a control character \('a\\x00b.jpg'\)"),
        ({"paths": np.array([b"\xff.jpg"] * 20)}, (), "paths: row 0 is not UTF-8"),
        ({"paths": np.array(["\udcff.jpg"] * 20)}, (), "paths: row 0 is not UTF-8"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, changes, drop, message):
    path = save(tmp_path, drop=drop, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_features(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(ValueError, match=r"none\.npz: no such file or folder"):
        read_features(tmp_path / "none.npz")
    sound, header = save(tmp_path).read_bytes(), b"{'descr': '<i8', 'fortran_order': False, 'shape': (20,), }"
    contents = {"noise.npz": bytes(range(256)), "empty.npz": b"", "cut.npz": sound[:700]}
    for name, text in {  # of the header of an array
        "huge": header.replace(b"20", b"99999999999999999999"),
        "large": header.replace(b"20", b"9999999999999"),
        "open": header.replace(b"}", b"("),
        "deep": header.replace(b"20", b"(" * 3000),
    }.items():
        npy = io.BytesIO()
        npy.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(160))
        (tmp_path / name).mkdir()
        (tmp_path / name / "pids.npy").write_bytes(npy.getvalue())
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w") as archive:
            archive.writestr("pids.npy", npy.getvalue())
        contents[f"{name}.npz"] = (tmp_path / f"{name}.npz").read_bytes()
    flags = sound.find(b"PK\x01\x02") + 8, sound.find(b"PK\x03\x04") + 6
    for name, offset, value in (("encrypted.npz", 0, 1), ("unknown_method.npz", 2, 99)):
        changed = bytearray(sound)
        for at in flags:
            changed[at + offset] = value
        contents[name] = bytes(changed)
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "single.npy", GOOD["features"])
    os.mkfifo(tmp_path / "fifo.npz")
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / "camids.npy")
    for name in (*contents, "single.npy", "fifo.npz", "fifo", "huge", "large", "open", "deep"):
        with pytest.raises(ValueError, match=f"{name}.*: not a readable .np[zy]: ") as caught:
            read_features(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_any_flipped_bit_is_found_or_changes_nothing(tmp_path):
    """Of a compressed file, too, whose damage zlib reports."""
    buffer, rng = io.BytesIO(), np.random.default_rng(1)
    np.savez_compressed(buffer, **GOOD)
    for sound in (save(tmp_path).read_bytes(), buffer.getvalue()):
        for at in rng.integers(0, len(sound), 60):
            changed = bytearray(sound)
            changed[at] ^= 1 << int(rng.integers(8))
            (tmp_path / "x.npz").write_bytes(changed)
            try:
                split = read_features(tmp_path / "x.npz")
            except ValueError as error:
                text = str(error)
            else:
                text = "x.npz"
                assert np.array_equal(split.features.embeddings.numpy(), GOOD["features"])
                assert split.features.pids.tolist() == GOOD["pids"].tolist()
                assert split.features.camids.tolist() == GOOD["camids"].tolist()
            assert "x.npz" in text and "\n" not in text


def test_objects_are_refused_and_never_built(tmp_path):
    bomb = np.array([Bomb(tmp_path / "exploded")] * 20, dtype=object)
    with pytest.raises(ValueError, match=r"not a readable .np[zy]: it holds Python objects"):
        read_features(save(tmp_path, paths=bomb))
    np.save(tmp_path / "pids.npy", bomb)
    with pytest.raises(ValueError, match=r"pids.npy: not a readable .npy: it holds Python objects"):
        read_features(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_pictures_by_path(tmp_path):
    Image.fromarray(np.full((600, 300, 3), 90, np.uint8)).save(tmp_path / "2.jpg")
    Image.fromarray(np.full((30, 20), 90, np.uint8)).save(tmp_path / "3.jpg")
    (tmp_path / "4.jpg").write_bytes(b"no picture")
    large, grey, broken, absent = (read_image(tmp_path / f"{i}.jpg") for i in (2, 3, 4, 5))
    assert large.shape == (256, 128, 3) and large.dtype == np.uint8
    assert grey.shape == (30, 20, 3)
    assert broken is None and absent is None
    eps = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (tmp_path / "6.jpg").write_text(eps)  # Pillow would start Ghostscript
    os.mkfifo(tmp_path / "7.jpg")
    with mock.patch("subprocess.check_call") as started:
        assert read_image(tmp_path / "6.jpg") is None and read_image(tmp_path / "7.jpg") is None
    assert not started.called
