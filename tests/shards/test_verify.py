"""shards/verify.py: whole shards pass, each kind of damage is found and named."""

import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from reid.data.manifest import load_manifest
from reid.data.shard_reader import read_identities
from shards.__main__ import main
from shards.build import build
from shards.readers import market1501
from shards.stage import stage
from shards.verify import verify


@pytest.fixture(scope="module")
def built(market: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "out"
    build(market1501.read(market), folder, num_shards=2)
    return folder


@pytest.fixture
def out(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(built, tmp_path / "out")


@pytest.mark.timeout(60)
def test_a_fifo_in_place_of_a_shard_is_damage(out: Path) -> None:
    """It would block a reader forever."""
    path = out / "train-0000.tar"
    path.unlink()
    os.mkfifo(path)
    assert report(out) == ["train-0000.tar: cannot be read: is a FIFO, not a regular file"]
    with pytest.raises(ValueError, match=r"train-0000\.tar: is missing or no regular file"):
        stage(out, out.with_name("staged"))
    with pytest.raises(ValueError, match=r"train-0000\.tar: .*is a FIFO"):
        list(read_identities(out, load_manifest(out).split("train"), [0]))


def report(out: Path, decode: bool = False) -> list[str]:
    return [str(damage) for damage in verify(out, decode=decode).damage]


def locate(path: Path, member: str) -> tuple[int, int, int]:
    """Offsets of a member's header and data, and its size."""
    with tarfile.open(path) as tar:
        info = tar.getmember(member)
        return info.offset, info.offset_data, info.size


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(bytes(data))


def holder(out: Path, member: str) -> Path:
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            if member in tar.getnames():
                return path
    raise AssertionError(member)


def rewrite(path: Path, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> None:
    with tarfile.open(path) as tar:
        content = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in change(content):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("decode", [False, True])
def test_whole(out: Path, decode: bool) -> None:
    result = verify(out, decode=decode)
    assert result.damage == []
    assert {split: len(seen) for split, seen in result.sightings.items()} == {"train": 54, "query": 3, "gallery": 47}


def test_flipped_byte_in_an_image(out: Path) -> None:
    member = "market1501-train-000007.003.jpg"
    path = holder(out, member)
    _, start, size = locate(path, member)
    flip(path, start + size // 2)
    assert report(out) == [
        f"{path.name}: {member}: its bytes changed (crc32)",
        f"{path.name}: sha256 differs from the manifest's",
    ]


def test_flipped_byte_in_the_padding(out: Path) -> None:
    flip(out / "query-0000.tar", -1)
    assert report(out) == ["query-0000.tar: sha256 differs from the manifest's"]


def test_overwritten_header(out: Path) -> None:
    """tarfile and WebDataset take it for the end and drop the rest in silence."""
    member = "market1501-train-000007.json"
    path = holder(out, member)
    header, _, _ = locate(path, member)
    data = bytearray(path.read_bytes())
    data[header : header + 512] = b"\x55" * 512
    path.write_bytes(bytes(data))
    found = report(out)
    assert any(f"no readable tar header at offset {header}" in line for line in found)
    assert any("complete identities, the manifest says" in line for line in found)
    assert any("sha256" in line for line in found)
    assert all(line.startswith(path.name) for line in found)


@pytest.mark.parametrize("keep", [0, 100, 5_000, 15_000])
def test_truncated_tar(out: Path, keep: int) -> None:
    path = out / "train-0001.tar"
    size = path.stat().st_size
    assert size > keep
    path.write_bytes(path.read_bytes()[:keep])
    found = report(out)
    assert f"train-0001.tar: {keep} bytes, the manifest says {size}" in found
    assert any("market1501-train-" in line or "after the beginning" in line for line in found)


def test_missing_and_extra_shards(out: Path) -> None:
    (out / "train-0001.tar").rename(out / "train-0002.tar")
    assert report(out) == [
        "train-0001.tar: is missing; copy it again, or build again",
        "train-0002.tar: is not in manifest.json; remove it, or build again",
    ]


def test_swapped_shards(out: Path) -> None:
    (out / "train-0000.tar").rename(out / "t")
    (out / "train-0001.tar").rename(out / "train-0000.tar")
    (out / "t").rename(out / "train-0001.tar")
    assert {damage.shard for damage in verify(out).damage} == {"train-0000.tar", "train-0001.tar"}


def test_json_that_lies(out: Path) -> None:
    member = "market1501-train-000002.json"
    path = holder(out, member)

    def change(content: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return [(name, data.replace(b'"pid":2', b'"pid":3') if name == member else data) for name, data in content]

    rewrite(path, change)
    assert any(line.startswith(f"{path.name}: {member}: pid, name, split") for line in report(out))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"images": 3}', b'{"images": [1], "pid": 2}'])
def test_damaged_json(out: Path, text: bytes) -> None:
    member = "market1501-train-000002.json"
    path = holder(out, member)
    rewrite(path, lambda content: [(name, text if name == member else data) for name, data in content])
    assert any(line.startswith(f"{path.name}: {member}: is no identity's JSON") for line in report(out))


@pytest.mark.parametrize("pid", ["[1]", '"2"', "Infinity", "2.0", "true", f"{2**70}", "-2", "[" * 200_000])
def test_json_with_a_pid_that_is_none(out: Path, pid: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where others count and compare what it says."""
    member = "market1501-train-000002.json"
    path = holder(out, member)

    def change(content: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return [
            (name, data.replace(b'"pid":2', f'"pid":{pid}'.encode()) if name == member else data)
            for name, data in content
        ]

    rewrite(path, change)
    assert any(line.startswith(f"{path.name}: {member}: is no identity's JSON") for line in report(out))
    assert main(["verify", str(out)]) == 1
    assert f"damage: {path.name}: {member}: is no identity's JSON" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("camid", "1" + "0" * 30, "is no identity's JSON"),
        ("camid", "Infinity", "is no identity's JSON"),
        ("camid", "[2]", "is no identity's JSON"),
        ("camid", "77", "pid, name, split, images, cameras are"),
        ("bytes", "1" + "0" * 15, "has .* bytes, the identity's JSON says 1000000000000000"),
        ("bytes", "[1]", "is no identity's JSON"),
        ("crc32", "1" + "0" * 40, "is no identity's JSON"),
    ],
)
def test_json_with_wrong_values_of_an_image(out: Path, name: str, value: str, what: str) -> None:
    member = "market1501-train-000002.json"
    path = holder(out, member)

    def change(content: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return [
            (
                other,
                re.sub(rf'("{name}":)\d+'.encode(), rf"\g<1>{value}".encode(), data, count=1)
                if other == member
                else data,
            )
            for other, data in content
        ]

    rewrite(path, change)
    pattern = rf"{path.name}: market1501-train-000002\.(json|000\.jpg): {what}"
    assert any(re.match(pattern, line) for line in report(out))
    assert main(["verify", str(out)]) == 1


def test_member_missing_or_too_many(out: Path) -> None:
    member = "market1501-train-000005.002.jpg"
    path = holder(out, member)
    rewrite(path, lambda content: [pair for pair in content if pair[0] != member])
    assert f"{path.name}: {member}: is missing" in report(out)
    rewrite(path, lambda content: [*content, ("market1501-train-000099.000.jpg", b"x")])
    assert any(
        "market1501-train-000099.000.jpg: is not the member that the identity's JSON lists" in line
        for line in report(out)
    )


def test_the_same_key_twice(market: Path, tmp_path: Path) -> None:
    """Two shards of one content, and a manifest that agrees since it calls the pid a distractor: only the keys tell."""
    out = tmp_path / "out"
    build(market1501.read(market), out, num_shards=3)
    document = json.loads((out / "manifest.json").read_text())
    query = document["splits"]["query"]
    assert query["shards"][0]["identities"] == 1
    shutil.copy(out / "query-0000.tar", out / "query-0001.tar")
    query["shards"] = [query["shards"][0], {**query["shards"][0], "name": "query-0001.tar"}]
    query["identities"] = {
        name: [0, 1] if name == "shard" else [values[0]] * 2 for name, values in query["identities"].items()
    }
    document = {**document, "splits": {"query": query}, "distractor_pid": query["identities"]["pid"][0]}
    del document["fingerprint"]
    (out / "manifest.json").write_text(json.dumps(document))
    assert [line for line in report(out) if "is not in manifest.json" not in line] == [
        "query-0001.tar: market1501-query-000001: the same key is in query-0000.tar"
    ]


def test_decode_finds_what_hashes_cannot(own_market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tar packed from a broken image, its hashes all right."""
    path = own_market / "query" / "0021_c1s1_000001_00.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    with monkeypatch.context() as patch:
        patch.setattr("shards.pack.check_image", lambda data: "jpg")
        build(market1501.read(own_market), tmp_path / "blind")
    assert report(tmp_path / "blind") == []
    found = report(tmp_path / "blind", decode=True)
    assert len(found) == 1
    assert found[0].startswith("query-0000.tar: market1501-query-000021.000.jpg: does not decode")


def test_unfinished_build_is_an_error_not_damage(out: Path) -> None:
    (out / "manifest.json").unlink()
    with pytest.raises(ValueError, match="unfinished build"):
        verify(out)
    with pytest.raises(ValueError, match="no such folder"):
        verify(out / "nowhere")


def test_verify_changes_nothing(out: Path) -> None:
    before = load_manifest(out).fingerprint
    names = sorted(path.name for path in out.iterdir())
    verify(out, decode=True)
    assert load_manifest(out).fingerprint == before and sorted(path.name for path in out.iterdir()) == names
