"""reid/evaluation/external_features.py: features of other systems, what is refused, our own read back."""

from pathlib import Path

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
                pids=GOOD["pids"].astype(np.uint8))  # fmt: skip
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
        ({"features": GOOD["features"][0]}, (), r"features are float32 \(5,\); give numbers \(images, dims\)"),
        ({"features": GOOD["features"].astype("U9")}, (), "features are <U9"),
        ({"features": np.zeros((0, 5)), "pids": np.zeros(0, int)}, ("camids",), "give at least one image"),
        ({"pids": np.arange(19)}, (), r"pids have shape \(19,\); 20 embeddings need \(20,\)"),
        ({"camids": np.zeros((20, 1), int)}, (), r"camids have shape \(20, 1\)"),
        ({"pids": np.arange(20) / 2}, (), "pids are float64; give integers"),
        ({"distractors": np.array(["no"] * 20)}, (), "distractors are <U2; give integers, or booleans"),
        ({"paths": np.arange(20)}, (), r"paths are int64 \(20,\); give text"),
        ({"features": BAD_ROW}, (), r"the features of row 7, 7.jpg are not finite \(1 of 20 images\)"),
        ({"features": BAD_ROW}, ("paths",), "the features of row 7 are not finite"),
        ({"features": HUGE_ROW}, (), r"the features of row 7, 7.jpg are too large for float32 \(1 of 20 images\)"),
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
    (tmp_path / "noise.npz").write_bytes(bytes(range(256)))
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes(save(tmp_path).read_bytes()[:700])
    np.save(tmp_path / "single.npy", GOOD["features"])
    for name in ("noise.npz", "empty.npz", "cut.npz", "single.npy"):
        with pytest.raises(ValueError, match=f"{name}: not a file of features"):
            read_features(tmp_path / name)


def test_objects_are_refused_and_never_built(tmp_path):
    bomb = np.array([Bomb(tmp_path / "exploded")] * 20, dtype=object)
    with pytest.raises(ValueError, match="not a file of features"):
        read_features(save(tmp_path, paths=bomb))
    np.save(tmp_path / "pids.npy", bomb)
    with pytest.raises(ValueError, match="not a file of features"):
        read_features(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_pictures_by_path(tmp_path, monkeypatch):
    Image.fromarray(np.full((600, 300, 3), 90, np.uint8)).save(tmp_path / "2.jpg")
    Image.fromarray(np.full((30, 20), 90, np.uint8)).save(tmp_path / "3.jpg")
    (tmp_path / "4.jpg").write_bytes(b"no picture")
    monkeypatch.setattr("reid.evaluation.external_features.MAX_PIXELS", 180_000)
    large, grey, broken, absent = (read_image(tmp_path / f"{i}.jpg") for i in (2, 3, 4, 5))
    assert large.shape == (256, 128, 3) and large.dtype == np.uint8
    assert grey.shape == (30, 20, 3)
    assert broken is None and absent is None
    monkeypatch.setattr("reid.evaluation.external_features.MAX_PIXELS", 179_999)
    assert read_image(tmp_path / "2.jpg") is None
