"""reid/data/manifest.py: what is written is read back; whatever is wrong is refused by name."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reid.data.manifest import Manifest, Shard, Split, load_manifest, save_manifest
from tests.support.counting import count_instructions


def make_manifest(notice: str = "research only") -> Manifest:
    """Train: identities 2, 5 | 3 in two shards. Gallery: junk and distractors in groups, one identity."""
    train = Split(
        shards=(Shard("train-0000.tar", "a" * 64, 10240, 2, 7), Shard("train-0001.tar", "b" * 64, 20480, 1, 4)),
        pids=np.array([2, 5, 3]),
        images=np.array([4, 3, 4]),
        shard=np.array([0, 0, 1]),
        cameras=((1, 2), (1, 6), (-1,)),
        names=("0002", "0005", "0003"),
    )
    gallery = Split(
        shards=(Shard("gallery-0000.tar", "c" * 64, 10240, 5, 40),),
        pids=np.array([-1, -1, 0, 0, 7]),
        images=np.array([16, 2, 16, 1, 5]),
        shard=np.zeros(5, dtype=np.int64),
        cameras=((1,), (1,), (2,), (3,), (1, 2)),
        names=("-1", "-1", "0000", "0000", "0007"),
    )
    skipped = ({"source": "query/x.jpg", "reason": "empty file"},)
    return Manifest("market1501", {"train": train, "gallery": gallery}, 0, notice, skipped)


def edit(folder: Path, change: Any) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_round_trip(tmp_path: Path) -> None:
    manifest = make_manifest()
    path = save_manifest(manifest, tmp_path)
    assert path == tmp_path / "manifest.json"
    assert [entry.name for entry in tmp_path.iterdir()] == ["manifest.json"]
    read = load_manifest(str(tmp_path))
    assert (read.dataset, read.distractor_pid, read.notice) == ("market1501", 0, "research only")
    assert read.skipped == manifest.skipped
    assert list(read.splits) == ["train", "gallery"]
    train = read.split("train")
    assert train.shards == manifest.splits["train"].shards
    assert train.pids.tolist() == [2, 5, 3] and train.pids.dtype == np.int64
    assert train.images.tolist() == [4, 3, 4] and train.shard.tolist() == [0, 0, 1]
    assert train.cameras == ((1, 2), (1, 6), (-1,))
    assert train.names == ("0002", "0005", "0003")
    assert train.num_images == 11
    gallery = read.split("gallery")
    assert gallery.num_images == 40


def test_fingerprint_is_the_sha256_of_the_file_without_it(tmp_path: Path) -> None:
    manifest = make_manifest()
    path = save_manifest(manifest, tmp_path)
    rest = path.read_bytes().replace(f'"fingerprint":"{manifest.fingerprint}",'.encode(), b"")
    assert manifest.fingerprint == hashlib.sha256(rest).hexdigest()
    assert load_manifest(tmp_path).fingerprint == manifest.fingerprint
    assert make_manifest(notice="other").fingerprint != manifest.fingerprint
    path.write_bytes(rest)  # as earlier versions wrote it
    assert load_manifest(tmp_path).fingerprint == manifest.fingerprint


def test_a_changed_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    manifest = make_manifest()
    path = save_manifest(manifest, tmp_path)
    text = path.read_bytes()
    refused = []
    for bit in range(0, 8 * len(text), 41):
        changed = bytearray(text)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            assert load_manifest(tmp_path).fingerprint == manifest.fingerprint
        except ValueError as error:
            refused.append(str(error))
    assert all("manifest.json" in reason for reason in refused)
    assert len(refused) > 0.95 * (8 * len(text) // 41)


def test_encoding_is_in_the_file_only_where_images_were_reencoded(tmp_path: Path) -> None:
    path = save_manifest(make_manifest(), tmp_path)
    assert "encoding" not in json.loads(path.read_text()) and load_manifest(tmp_path).encoding == ""
    smaller = replace(make_manifest(), encoding="JPEG 64x32, quality 90")
    save_manifest(smaller, tmp_path)
    assert load_manifest(tmp_path).encoding == "JPEG 64x32, quality 90"
    assert load_manifest(tmp_path).fingerprint == smaller.fingerprint != make_manifest().fingerprint


def test_absent_split_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no split 'query'.*train, gallery"):
        make_manifest().split("query")


def test_missing_folder_and_unfinished_build(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        load_manifest(tmp_path / "nowhere")
    (tmp_path / "train-0000.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="unfinished build; build it again, pictures with"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b'{"format": 1', b"[" * 100_000])
def test_not_json(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"manifest\.json: not JSON"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("number", [0, 1, "2", True, None])
def test_other_format_version(tmp_path: Path, number: Any) -> None:
    save_manifest(make_manifest(), tmp_path)
    edit(tmp_path, lambda document: document.update(format=number))
    with pytest.raises(ValueError, match="this version reads format 2; build the shards again"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", '{"shards": []}'])
def test_json_of_something_else(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="not a manifest of shards"):
        load_manifest(tmp_path)


UNSAFE = (
    "pipe:touch x", "pipe:x.tar", "http://h/a.tar", "s3:a.tar", "a::b.tar", "/etc/a.tar", "../a.tar", "..", "a/b.tar",
    "a\\b.tar", "train-{0..9}.tar", "a b.tar", "a.tar\n", "-.tar", ".tar", "a.json", "",
)  # fmt: skip


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_shard_names(tmp_path: Path, name: str) -> None:
    save_manifest(make_manifest(), tmp_path)
    edit(tmp_path, lambda document: document["splits"]["train"]["shards"][0].update(name=name))
    with pytest.raises(ValueError, match="unsafe"):
        load_manifest(tmp_path)


def column(name: str, values: Any) -> Any:
    return lambda document: document["splits"]["train"]["identities"].update({name: values})


def shard(**values: Any) -> Any:
    return lambda document: document["splits"]["train"]["shards"][0].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.pop("splits"), "'splits' is missing"),
        (lambda document: document["splits"]["train"].pop("identities"), "'identities' is missing"),
        (lambda document: document.update(splits=[1]), "damaged or was edited"),
        (lambda document: document.update(distractor_pid=-2), "distractor_pid"),
        (lambda document: document.update(encoding=3), "encoding"),
        (column("pid", [2, 5]), "different lengths"),
        (column("pid", [2, 5, 2]), "pid 2 is stored twice"),
        (column("pid", [2, 5, -2]), "'pid' holds -2"),
        (column("pid", [2, 5, 3.5]), "not a list of integers"),
        (column("pid", [2, 5, 2**70]), "not a list of integers"),
        (column("pid", [[2], 5, 3]), "damaged or was edited"),
        (column("images", [4, 3, 0]), "'images' holds 0"),
        (column("images", [4, 4, 4]), "train-0000.tar: 2 identities with 7 images, but the columns list 2 with 8"),
        (column("shard", [0, 1, 0]), "storage order"),
        (column("shard", [0, 0, 2]), "storage order"),
        (column("cameras", [[1], [2], ["3"]]), "camera"),
        (column("cameras", None), "damaged or was edited"),
        (column("name", ["a", "b", 3]), "name"),
        (shard(sha256="x"), "sha256"),
        (shard(bytes="10"), "bytes"),
        (shard(identities=0), "identities"),
        (shard(name="train-0001.tar"), "listed twice"),
    ],
)
def test_damaged_content(tmp_path: Path, change: Any, message: str) -> None:
    save_manifest(make_manifest(), tmp_path)
    edit(tmp_path, change)
    with pytest.raises(ValueError, match=message) as caught:
        load_manifest(tmp_path)
    assert "manifest.json" in str(caught.value)


def test_refuses_to_write_what_it_could_not_read(tmp_path: Path) -> None:
    train = make_manifest().splits["train"]
    wrong = Split(train.shards, train.pids, train.images + 1, train.shard, train.cameras, train.names)
    with pytest.raises(ValueError, match="columns list"):
        save_manifest(Manifest("x", {"train": wrong}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_loading_does_a_little_for_each_identity(tmp_path: Path) -> None:
    """About 120 instructions, a few microseconds, for an identity under six cameras, however many there are."""
    counts = []
    for identities in (750, 1500):
        split = Split(
            shards=(Shard("train-0000.tar", "a" * 64, 10240, identities, 17 * identities),),
            pids=np.arange(1, identities + 1),
            images=np.full(identities, 17),
            shard=np.zeros(identities, dtype=np.int64),
            cameras=((1, 2, 3, 4, 5, 6),) * identities,
            names=tuple(f"{pid:04d}" for pid in range(1, identities + 1)),
        )
        save_manifest(Manifest("market1501", {"train": split}), tmp_path)
        counts.append(count_instructions(lambda: load_manifest(tmp_path)))
    assert counts[1] <= 2.1 * counts[0] and counts[1] <= 300 * 1500, counts
