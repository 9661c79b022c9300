"""reid/search/index.py and writer.py against loops in float64; kills, damage, versions, indexes of older programs."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import zlib
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from reid.search import GALLERIES, index_files, writer
from reid.search import index as index_module
from reid.search.index import Entry, Hit, Index
from reid.search.index_files import Meta, Source
from reid.search.writer import append, create, remove
from tests.support.gaps import are_apart

DIM, SOURCE = 8, Source("/photos")
META = Meta("f" * 64, DIM, (32, 16), "runs/x")


class Stop(Exception):
    pass


def draw(count: int, seed: int = 0, identities: int = 5) -> tuple[np.ndarray, list[Entry]]:
    """Features far from normalized; every fourth image is of an unknown person, every fifth of an unknown camera."""
    rng = np.random.default_rng([seed, count])
    features = (rng.standard_normal((count, DIM)) * rng.uniform(0.1, 30, (count, 1)) + 1).astype(np.float32)
    entries = [
        Entry(
            f"{seed}/{i}.jpg",
            "" if i % 4 == 3 else f"person {seed * 2 + rng.integers(identities)}",
            "" if i % 5 == 4 else f"cam {rng.integers(3)}",
            f"2024-01-{i % 28 + 1:02d}",
            source=SOURCE,
        )
        for i in range(count)
    ]
    return features, entries


def make(path: Path, *parts: tuple[np.ndarray, list[Entry]], dtype: str = "float32") -> Index:
    """The first part when it is made, the others appended one after another."""
    with create(path, replace(META, dtype=dtype)) as appender:
        appender.add(*parts[0])
    for part in parts[1:]:
        with append(path) as appender:
            appender.add(*part)
    return Index(path)


def snapshot(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def content(path: Path) -> tuple:
    index = Index(path)
    rows, images, vectors = index.centroids()
    centroids = rows.tolist(), images.tolist(), vectors.rows.tolist()
    return index.meta, index.features.tobytes(), list(index.entries()), centroids


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    features, entries = draw(20)
    index = make(tmp_path / "i", (features[:13], entries[:13]), (features[13:], entries[13:]))
    assert len(index) == 20 and np.array_equal(index.features, features)
    assert list(index.entries()) == entries == [index.entry(row) for row in range(20)]
    assert np.allclose(index.squares, (features.astype(float) ** 2).sum(1), rtol=1e-6)
    assert [(*index.meta.identities, "")[pid] for pid in index.pids] == [entry.identity for entry in entries]
    assert [(*index.meta.cameras, "")[camid] for camid in index.camids] == [entry.camera for entry in entries]


def test_scores_do_not_depend_on_the_scale_of_a_feature(tmp_path: Path) -> None:
    features, entries = draw(20)
    scale = (2.0 ** np.random.default_rng(3).integers(-110, 40, (20, 1))).astype(np.float32)
    index, other = make(tmp_path / "i", (features, entries)), make(tmp_path / "j", (features * scale, entries))
    assert other.search(features[:5] * np.float32(2.0**-110), 20) == index.search(features[:5], 20)


def test_columns_are_ordinary_npy_files_and_mapped(tmp_path: Path) -> None:
    features, entries = draw(20)
    index = make(tmp_path / "i", (features[:1], entries[:1]), (features[1:], entries[1:]))
    assert np.array_equal(np.load(tmp_path / "i" / "features.npy"), features)
    assert np.array_equal(np.load(tmp_path / "i" / "pids.npy"), index.pids)
    assert isinstance(index.features, np.memmap)
    assert not list((tmp_path / "i").glob(".*"))


def test_names_from_anywhere_survive(tmp_path: Path) -> None:
    entries = [Entry('Ä/"quoted"\n.jpg', "名前", "x,y", "", 7, SOURCE), Entry("bad-\udcff.jpg", source=SOURCE)]
    assert list(make(tmp_path / "i", (np.ones((2, DIM), np.float32), entries)).entries()) == entries


@pytest.mark.parametrize("without", ["", "cam 1"])
def test_centroids_equal_loops_also_after_an_append(tmp_path: Path, without: str) -> None:
    parts = [draw(count, seed) for seed, count in enumerate([30, 1, 50, 7])]
    make(tmp_path / "i", *parts[:2]).centroids(without)
    for part in parts[2:]:
        with append(tmp_path / "i") as appender:
            appender.add(*part)
    features = np.concatenate([part[0] for part in parts]).astype(np.float64)
    groups: dict[str, list[int]] = {}
    for row, entry in enumerate(entry for part in parts for entry in part[1]):
        rows = groups.setdefault(entry.identity, [])  # in the order in which the index met the identities
        if entry.identity and (not without or entry.camera != without):
            rows.append(row)
    expected = [rows for rows in groups.values() if rows]
    index = Index(tmp_path / "i")
    for _ in range(2):  # computed, and from memory
        found = index.centroids(without)
        assert found.rows.tolist() == [rows[0] for rows in expected]
        assert found.images.tolist() == [len(rows) for rows in expected]
        wanted = np.array([sum(features[rows]) / len(rows) for rows in expected])
        assert np.array_equal(found.vectors.rows, wanted.astype(np.float32))


def as_version_1(path: Path, **changes: object) -> None:
    edit(path, **{"format": 1, "sums": None, "checksum": None, **changes})


def test_an_index_of_an_older_program(tmp_path: Path) -> None:
    """Older programs wrote a generation into index.json, no checksums, and two generations of centroid sums."""
    path, parts = tmp_path / "i", [draw(20), draw(9, seed=1)]
    make(path, parts[0])
    as_version_1(path, generation=2)
    sums = [path / f"{name}-{generation:06d}.npy" for name in ("sums", "counts") for generation in (1, 2)]
    for file in sums:
        np.save(file, np.zeros((1, DIM)))
    queries = np.random.default_rng(1).standard_normal((3, DIM))
    new = make(tmp_path / "new", parts[0])
    for gallery in GALLERIES:
        assert Index(path).search(queries, 5, gallery) == new.search(queries, 5, gallery)
    with append(path) as appender:
        appender.add(*parts[1])
    assert content(path) == content(make(tmp_path / "grown", *parts).folder)
    assert {file.name for file in path.iterdir()} == {file.name for file in new.folder.iterdir()}
    as_version_1(path, generation=3)
    np.save(sums[0], np.zeros((1, DIM)))
    assert remove(path, lambda entry: entry.path.startswith("0/")) == 20
    assert content(path) == content(make(tmp_path / "rest", parts[1]).folder)
    assert {file.name for file in path.iterdir()} == {file.name for file in new.folder.iterdir()}


@pytest.mark.parametrize(("version", "unknown"), [(2, ["flip", "dtype"]), (3, ["dtype"])])
def test_an_index_of_an_earlier_version_has_no_flip_test_and_float32(tmp_path: Path, version, unknown) -> None:
    index = make(tmp_path / "i", draw(20))
    document = {"format": version, **asdict(index.meta)}
    for name in unknown:
        del document[name]
    document["checksum"] = zlib.crc32(json.dumps(document, sort_keys=True).encode())
    (index.folder / "index.json").write_text(json.dumps(document))
    assert Index(index.folder).meta == index.meta and not index.meta.flip and index.meta.dtype == "float32"


def test_a_float16_index_has_half_the_bytes_and_scores_within_a_thousandth(tmp_path: Path) -> None:
    """What it stores are the features rounded once, also after an append and a removal."""
    parts = [draw(40), draw(30, seed=1)]
    full, half = (make(tmp_path / dtype, *parts, dtype=dtype) for dtype in ("float32", "float16"))
    wanted = np.concatenate([features for features, _ in parts]).astype(np.float16)
    assert np.array_equal(np.load(half.folder / "features.npy"), wanted) and half.features.dtype == np.float16
    assert 2 * half.features.nbytes == full.features.nbytes
    queries = np.random.default_rng(1).standard_normal((5, DIM))
    for gallery in GALLERIES:
        near, exact = (
            [{hit.row: hit.score for hit in hits} for hits in index.search(queries, 70, gallery)]
            for index in (half, full)
        )
        assert all(abs(a[row] - b[row]) < 1e-3 for a, b in zip(near, exact, strict=True) for row in b)
    remove(half.folder, lambda entry: entry.path.startswith("0/"))
    assert content(half.folder) == content(make(tmp_path / "rest", parts[1], dtype="float16").folder)


@pytest.mark.parametrize("scale", [1e-7, 1e-30, 3e4])
def test_features_that_do_not_fit_float16_are_refused(tmp_path: Path, scale: float) -> None:
    features, entries = draw(5)
    features[3] *= scale
    with pytest.raises(ValueError, match=r"0/3\.jpg.*float16.*without --half"):
        make(tmp_path / "i", (features, entries), dtype="float16")
    assert not list(tmp_path.iterdir())


def slow_search(features, entries, queries, k, gallery="images", without="") -> list[list[tuple[float, int, int]]]:
    """(score, row, images) in float64, by loops over everything. float32 must sort the best k alike."""
    kept = [i for i, entry in enumerate(entries) if not without or entry.camera != without]
    groups: dict[str, list[int]] = {}
    for i in kept:
        name = entries[i].identity if gallery == "centroids" and entries[i].identity else f"alone {i}"
        groups.setdefault(name, []).append(i)
    found = []
    for query in queries.astype(np.float64):
        scored = []
        for rows in groups.values():
            mean = features[rows].astype(np.float64).mean(axis=0)
            scored.append((query @ mean / np.linalg.norm(query) / np.linalg.norm(mean), rows[0], len(rows)))
        scored.sort(key=lambda hit: (-hit[0], hit[1]))
        assert are_apart(np.array([score for score, _, _ in scored[: k + 1]]))
        found.append(scored[:k])
    return found


@pytest.mark.parametrize("block", [65_536, 7], ids=["one slice", "many slices"])
@pytest.mark.parametrize("without", ["", "cam 1"])
@pytest.mark.parametrize("gallery", ["images", "centroids"])
@pytest.mark.parametrize("k", [1, 10, 200])
@pytest.mark.parametrize("dtype", index_files.DTYPES)
def test_search_equals_loops(tmp_path: Path, monkeypatch, block, without: str, gallery: str, k: int, dtype) -> None:
    """With float16, loops over what is stored."""
    monkeypatch.setattr("reid.metrics.scores.GALLERY_BLOCK", block)
    monkeypatch.setattr(index_module, "QUERIES", 2)
    features, entries = draw(60, identities=9)
    index = make(tmp_path / "i", (features[:20], entries[:20]), (features[20:], entries[20:]), dtype=dtype)
    queries = np.random.default_rng(1).standard_normal((5, DIM)).astype(np.float32)
    found = index.search(queries, k, gallery, without)
    wanted = slow_search(features.astype(dtype), entries, queries, k, gallery, without)
    assert [[(hit.row, hit.images) for hit in hits] for hits in found] == [[hit[1:] for hit in hits] for hits in wanted]
    scores = [[hit.score for hit in hits] for hits in found]
    assert np.allclose(scores, [[hit[0] for hit in hits] for hits in wanted], atol=1e-6)


def test_equal_scores_in_the_order_of_the_index(tmp_path: Path) -> None:
    """Features of one coordinate: their products and lengths are sums of a number and zeros, exact in any order."""
    _, entries = draw(12)
    index = make(tmp_path / "i", (np.eye(1, DIM, dtype=np.float32).repeat(12, axis=0), entries))
    (hits,) = index.search(np.eye(1, DIM), 5)
    assert [hit.row for hit in hits] == [0, 1, 2, 3, 4]


def test_search_changes_no_file(tmp_path: Path) -> None:
    index = make(tmp_path / "i", draw(20))
    before = snapshot(tmp_path / "i")
    for gallery in GALLERIES:
        index.search(np.ones((1, DIM)), 3, gallery, "cam 0")
    index.features[0] = 7  # in memory alone
    assert snapshot(tmp_path / "i") == before


def test_an_identity_that_only_the_camera_left_out_saw_is_not_found(tmp_path: Path) -> None:
    entries = [Entry("a", "anna", "door"), Entry("b", "ben", "door"), Entry("c", "ben", "hall")]
    index = make(tmp_path / "i", (np.eye(3, DIM, dtype=np.float32), entries))
    (hits,) = index.search(np.eye(1, DIM), 5, "centroids", "door")
    assert hits == [Hit(2, 0.0, 1)]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 1, "gallery": "faces"}, "unknown gallery 'faces'; known: images, centroids"),
        ({"k": 1, "without": "roof"}, "no camera 'roof'; it has: cam"),
    ],
)
def test_searches_that_make_no_sense(tmp_path: Path, asked: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "i", draw(20)).search(np.ones((1, DIM)), **asked)


def test_an_error_while_appending_leaves_the_index_as_it_was(tmp_path: Path) -> None:
    make(tmp_path / "i", draw(20))
    before = content(tmp_path / "i")
    with contextlib.suppress(Stop), append(tmp_path / "i") as appender:
        appender.add(*draw(9, seed=1))
        raise Stop
    assert content(tmp_path / "i") == before
    features = np.full((2, DIM), np.nan, np.float32)
    with pytest.raises(ValueError, match=r"1/0\.jpg: its feature is not finite"), append(tmp_path / "i") as appender:
        appender.add(features, draw(2, seed=1)[1])
    assert content(tmp_path / "i") == before


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def append_and_die(path: Path, stop: str) -> None:
    """Append, and die where `stop` says: once the entries are written, or in the place of a step of the commit."""
    if stop != "add":
        setattr(writer, stop, die)
    with append(path) as appender:
        appender.add(*draw(9, seed=1))
        for file in appender._files.values():
            file.flush()
        if stop == "add":
            die()


@pytest.mark.parametrize("stop", ["add", "write_atomically"])
def test_a_killed_append_leaves_the_index_as_it_was_and_the_next_one_is_whole(tmp_path: Path, stop: str) -> None:
    path = tmp_path / "i"
    make(path, draw(20))
    before, sizes = content(path), (path / "features.npy").stat().st_size
    process = multiprocessing.get_context("fork").Process(target=append_and_die, args=(path, stop))
    process.start()
    process.join(100)
    assert process.exitcode == -signal.SIGKILL
    assert (path / "features.npy").stat().st_size > sizes  # something was written
    assert content(path) == before
    with append(path) as appender:
        appender.add(*draw(5, seed=2))
    whole = make(tmp_path / "whole", draw(20), draw(5, seed=2))
    assert content(path) == content(whole.folder)
    for name in ("features.npy", "pids.npy", "entries.jsonl"):  # nothing of the killed one is left at their ends
        assert (path / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_killed_or_failed_making_leaves_nothing(tmp_path: Path) -> None:
    with contextlib.suppress(Stop), create(tmp_path / "i", META) as appender:
        appender.add(*draw(5))
        raise Stop
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".i.building").mkdir()  # of a killed one
    assert len(make(tmp_path / "i", draw(5))) == 5


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    make(tmp_path / "i", draw(5))
    with pytest.raises(ValueError, match="is an index; `add`"), create(tmp_path / "i", META):
        pass
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(ValueError, match="is not empty"), create(tmp_path / "photos", META):
        pass


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    make(tmp_path / "i", draw(5))
    with append(tmp_path / "i"):
        with (
            pytest.raises(ValueError, match=f"process {os.getpid()} .* is changing this index"),
            append(tmp_path / "i"),
        ):
            pass
        with pytest.raises(ValueError, match="is changing this index"):
            remove(tmp_path / "i", lambda _: True)


def test_who_reads_while_another_appends_keeps_what_it_opened(tmp_path: Path) -> None:
    features, entries = draw(20)
    index = make(tmp_path / "i", (features, entries))
    with append(tmp_path / "i") as appender:
        appender.add(*draw(9, seed=1))
    assert len(index) == 20 and np.array_equal(index.features, features) and list(index.entries()) == entries
    assert int(index.centroids().images.sum()) == sum(bool(entry.identity) for entry in entries)


def test_removed_images_are_gone_from_every_file(tmp_path: Path) -> None:
    features, entries = draw(20)
    entries[7] = Entry("secret.jpg", "somebody", "hidden camera", "noon", source=Source("/nowhere else"))
    make(tmp_path / "i", (features, entries))
    assert remove(tmp_path / "i", lambda entry: entry.identity == "somebody") == 1
    rest = [row for row in range(20) if row != 7]
    wanted = make(tmp_path / "wanted", (features[rest], [entries[row] for row in rest]))
    assert content(tmp_path / "i") == content(wanted.folder)
    for data in snapshot(tmp_path / "i").values():
        assert not any(word in data for word in (b"secret", b"somebody", b"hidden", b"nowhere", features[7].tobytes()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i", "wanted"]
    before = snapshot(tmp_path / "i")
    assert remove(tmp_path / "i", lambda entry: entry.identity == "somebody") == 0
    assert snapshot(tmp_path / "i") == before


def test_removing_everything_leaves_an_index_to_add_to(tmp_path: Path) -> None:
    make(tmp_path / "i", draw(5))
    assert remove(tmp_path / "i", lambda _: True) == 5
    assert len(Index(tmp_path / "i")) == 0
    with append(tmp_path / "i") as appender:
        appender.add(*draw(6))
    assert len(Index(tmp_path / "i")) == 6


def edit(path: Path, **changes: object) -> None:
    document = json.loads((path / "index.json").read_text())
    document.update(changes)
    (path / "index.json").write_text(json.dumps({k: v for k, v in document.items() if v is not None}))


def change(path: Path, column: str, value: int) -> None:
    """Set the first number of a column, as an index without checksums may have it."""
    as_version_1(path)
    np.load(path / column, mmap_mode="r+")[0] = value


def forge(path: Path, read: object) -> None:
    """Write another line for the first entry."""
    as_version_1(path)
    lines = (path / "entries.jsonl").read_bytes().splitlines(keepends=True)
    text = json.dumps(read) if not isinstance(read, bytes) else read.decode()
    lines[0] = text.encode().ljust(len(lines[0]) - 1)[: len(lines[0]) - 1] + b"\n"
    (path / "entries.jsonl").write_bytes(b"".join(lines))


WRONG = (
    {"count": -1}, {"count": True}, {"count": "20"}, {"dim": 0}, {"size": [32]}, {"size": 7}, {"text_bytes": 1.5},
    {"identities": [7]}, {"fingerprint": None}, {"sources": [{"root": 7}]}, {"sums": {"x": [1]}}, {"unknown": 1},
    {"flip": 1},
)  # fmt: skip
ENTRY = {"path": "a.jpg", "time": "", "source": 0, "place": 1}
FORGED = (
    b"[" * 99,
    7,
    [],
    {},
    ENTRY | {"source": -1},
    ENTRY | {"source": 1},
    ENTRY | {"path": 7},
    ENTRY | {"place": ""},
)


def test_any_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    index = make(tmp_path / "i", draw(13), draw(9, seed=1))
    files, queries = snapshot(index.folder), draw(3, seed=2)[0]
    wanted = content(index.folder), index.search(queries, 30), index.search(queries, 30, "centroids", "cam 1")
    rng, found = np.random.default_rng(0), 0
    for name, sound in files.items():
        for at in rng.integers(0, len(sound), 25):
            changed = bytearray(sound)
            changed[at] ^= 1 << int(rng.integers(8))
            (index.folder / name).write_bytes(changed)
            try:
                other = Index(index.folder)
                other.check_features()
            except ValueError as error:
                found += 1
                text = str(error)
            else:
                text = name
                answers = other.search(queries, 30), other.search(queries, 30, "centroids", "cam 1")
                assert (content(index.folder), *answers) == wanted
            assert name in text and "\n" not in text
        (index.folder / name).write_bytes(sound)
    assert found > 80  # the rest are headers, which an index does not read


def test_checksums_continue_across_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).integers(0, 256, 100).astype(np.uint8)
    monkeypatch.setattr(index_files, "SUM_BYTES", 16)
    wanted = [zlib.crc32(data[i : i + 16]) for i in range(0, 100, 16)]
    assert index_files.checksums(data) == wanted
    for cuts in ([0, 7, 16, 20, 100], [0, 40, 40, 41, 100], [0, 32, 100]):
        sums: list[int] = []
        for begin, end in pairwise(cuts):
            sums = index_files.checksums(data[begin:end], sums, begin)
        assert sums == wanted


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: edit(p, format=5), "index version 5, this program reads version 4; index again"),
        (lambda p: edit(p, format=None), "is damaged"),
        (lambda p: edit(p, checksum=None), "is damaged"),
        (lambda p: edit(p, cameras=["cam 1", "cam 0", "cam 2"]), "is damaged.*checksum"),
        *[(lambda p, wrong=wrong: as_version_1(p, **wrong), r"index\.json is damaged") for wrong in WRONG],
        *[
            (lambda p, column=column: as_version_1(p, **column), "missing or cut short")
            for column in ({"count": 10**11}, {"text_bytes": 10**11}, {"dim": 10**11})
        ],
        (lambda p: (p / "index.json").write_text("[" * 9999), r"index\.json is damaged"),
        (lambda p: change(p, "pids.npy", -2), r"pids\.npy holds numbers outside -1 to 4"),
        (lambda p: change(p, "camids.npy", 3), r"camids\.npy holds numbers outside -1 to 2"),
        (lambda p: change(p, "ends.npy", 10**9), r"ends\.npy does not fit entries\.jsonl"),
        (lambda p: edit(p, dim=None), "is damaged"),
        (lambda p: edit(p, sources=7), "is damaged"),
        (lambda p: (p / "index.json").write_text("{"), r"index\.json is damaged"),
        (lambda p: (p / "index.json").unlink(), r"is not an index: it has no index\.json"),
        (lambda p: (p / "pids.npy").unlink(), r"pids\.npy is missing or cut short"),
        (lambda p: os.truncate(p / "features.npy", 300), r"features\.npy is missing or cut short"),
        (lambda p: os.truncate(p / "entries.jsonl", 300), r"entries\.jsonl is missing or cut short"),
        (lambda p: (p / "entries.jsonl").write_bytes(b"x" * 2000), r"entries\.jsonl: its checksum is wrong"),
        *[(lambda p, read=read: forge(p, read), "entry 0 is damaged") for read in FORGED],
    ],
)
def test_damage_and_other_versions_are_named(tmp_path: Path, damage, message: str) -> None:
    make(tmp_path / "i", draw(20))
    damage(tmp_path / "i")
    with pytest.raises(ValueError, match=message) as error:
        content(tmp_path / "i")
    assert "\n" not in str(error.value)
