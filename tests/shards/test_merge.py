"""shards/merge.py: two folders as one, with the same images and people who stay apart."""

import hashlib
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reid.data.manifest import load_manifest, save_manifest
from reid.data.shard_reader import read_identities
from shards.__main__ import main
from shards.build import build
from shards.merge import merge
from shards.readers import folder, market1501
from shards.verify import verify
from tests.support.status import status_of


@pytest.fixture
def roots(market: Path, folder_tree: Path, tmp_path: Path) -> list[str]:
    """Two datasets of one name with people of the same numbers, the second without distractors and junk."""
    build(market1501.read(market), tmp_path / "a", dataset="mall", num_shards=3)
    build(folder.read(folder_tree), tmp_path / "b", dataset="mall")
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def list_images(root: Path | str, split: str) -> list[tuple[str, str, bytes]]:
    """(name of the identity, source, sha256) of each image, sorted."""
    found = []
    for shard in load_manifest(root).splits[split].shards:
        with tarfile.open(Path(root) / shard.name) as tar:
            data = {member.name: tar.extractfile(member).read() for member in tar}
        for name, text in data.items():
            if name.endswith(".json"):
                said = json.loads(text)
                key = name.removesuffix("json")
                found += [(said["name"], image["source"], hashlib.sha256(data[key + image["file"]]).digest())
                          for image in said["images"]]  # fmt: skip
    return sorted(found)


def test_images_are_the_same_and_people_and_cameras_stay_apart(roots: list[str], tmp_path: Path) -> None:
    result = merge(roots, tmp_path / "c")
    merged, parts = result.manifest, [load_manifest(root) for root in roots]
    assert not result.damage and not verify(tmp_path / "c", decode=True).damage
    labels = {part.fingerprint: f"mall-{part.fingerprint[:8]}" for part in parts}
    assert merged.origins == {label: fingerprint for fingerprint, label in labels.items()}
    assert (merged.distractor_pid, parts[1].distractor_pid) == (0, None)
    own: dict[str, dict[str, set[int]]] = {"pids": {}, "cameras": {}}
    for split in ("train", "query", "gallery"):
        wanted = [
            (f"{labels[part.fingerprint]}/{name}", f"{labels[part.fingerprint]}/{source}", digest)
            for root, part in zip(roots, parts, strict=True) if split in part.splits
            for name, source, digest in list_images(root, split)
        ]  # fmt: skip
        assert list_images(tmp_path / "c", split) == sorted(wanted)
        for identity in read_identities(tmp_path / "c", merged.splits[split], range(len(merged.splits[split].shards))):
            label = merged.splits[split].names[identity.row].split("/")[0]
            own["pids"].setdefault(label, set()).add(identity.pid)
            own["cameras"].setdefault(label, set()).update(identity.camids)
    for found in own.values():
        assert not set.intersection(*(numbers - {-1, 0} for numbers in found.values()))
    for split in ("query", "gallery"):  # the same person has one number in both
        names = {name.split("/", 1)[1] for name in merged.splits[split].names}
        assert names == {name for part in parts if split in part.splits for name in part.splits[split].names}
    junk = sum(int(part.splits["gallery"].images[part.splits["gallery"].pids == -1].sum()) for part in parts)
    assert int(merged.splits["gallery"].images[merged.splits["gallery"].pids == -1].sum()) == junk > 0


def test_a_dataset_may_have_any_name(roots: list[str], tmp_path: Path) -> None:
    """A dot would end a key of WebDataset."""
    before = load_manifest(roots[1])
    save_manifest(replace(before, dataset="mall.2 größer"), Path(roots[1]))
    merged = merge(roots, tmp_path / "c").manifest
    assert {name.split("/")[0] for name in merged.splits["train"].names} == {"mall", "mall-2-gr-er"}
    assert len(list_images(tmp_path / "c", "train")) == sum(len(list_images(root, "train")) for root in roots)


def test_the_same_folders_in_any_order_give_the_same_bytes(roots: list[str], tmp_path: Path) -> None:
    merge(roots, tmp_path / "c")
    assert main(["merge", roots[1], roots[0], "--out", str(tmp_path / "d")]) == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()}
    merge(roots, tmp_path / "c")  # replaces its own


def test_what_cannot_be_merged_is_refused(roots: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "c"
    merge(roots, out)
    shutil.copytree(roots[0], tmp_path / "copy")
    for given, words in (
        ([roots[0], roots[0]], "twice; give each dataset once"),
        ([roots[0], str(tmp_path / "copy")], "holds the same data as"),
        ([str(out), roots[1]], "holds the same data as"),  # which is in it already
        ([roots[0]], "give two folders"),
        ([roots[0], "http://host/x"], "is a URL"),
    ):
        assert status_of(main, "merge", *given, "--out", str(tmp_path / "new")) == 2
        assert words in capsys.readouterr().err and not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="is one of the folders"):
        merge(roots, Path(roots[1]))
    with pytest.raises(ValueError, match=r"holds shards of 'merged', not 'other'"):
        merge(roots, out, dataset="other")
    shard = Path(roots[0]) / "train-0001.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + b"x")
    before = np.array(sorted(out.iterdir()))
    with pytest.raises(ValueError, match=r"train-0001\.tar: sha256 differs from its manifest's"):
        merge(roots, out)
    shard.unlink()
    with pytest.raises(ValueError, match=r"train-0001\.tar: No such file"):
        merge(roots, out)
    assert (before == np.array(sorted(out.iterdir()))).all()
