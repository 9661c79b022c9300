"""The search program: what a user types, what is printed and written; bad input ends with one line and status 2."""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid import Embedder
from reid.data.images import Pixels
from reid.data.manifest import save_manifest
from reid.export import TOLERANCE
from reid.files import hash_file
from reid.metrics.features import JUNK
from reid.model.saved import MODEL
from reid.search import __main__ as search
from reid.search.index import Entry, Index
from reid.search.index_files import Source, describe_meta, read_meta
from reid.search.sources import list_folder, list_shards, name_root, read_pictures
from reid.search.writer import append
from tests.support.drawn import HEIGHT, WIDTH, Drawn
from tests.support.gaps import are_apart
from tests.support.runs import load_once, make_run
from tests.support.status import status_of

ROOT = Path(__file__).parents[2]


def photo(path: Path, person: int, shot: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    """A person is a palette; shots of a person differ a little."""
    palette = np.random.default_rng(person).integers(0, 256, (4, 2, 3))
    noise = np.random.default_rng([person, shot]).normal(0, 8, (4, 2, 3))
    image = Image.fromarray((palette + noise).clip(0, 255).astype(np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize(size[::-1], Image.Resampling.BICUBIC).save(path)
    return path


PEOPLE = {"anna": 3, "ben": 2, "çelik": 1}


@dataclass(frozen=True)
class Album:
    """Photos of three people in a folder each and two of strangers, an index of them, and what making it said."""

    run: Path
    other_run: Path
    photos: Path
    index: Path
    said: str


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        load_once(patch)
        yield


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory, drawn: Drawn) -> Album:
    base = tmp_path_factory.mktemp("album")
    for person, (name, shots) in enumerate(PEOPLE.items()):
        for shot in range(shots):
            photo(base / "photos" / name / f"{shot}.png", person, shot)
    for stranger in (10, 11):
        photo(base / "photos" / f"stranger {stranger}.png", stranger)
    (base / "photos" / "notes.txt").write_text("no image")
    run, other = make_run(base / "runs" / "one", drawn), make_run(base / "runs" / "two", drawn, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        assert call("index", "--checkpoint", run, "--images", base / "photos", "--out", base / "index") == 0
    return Album(run, other, base / "photos", base / "index", "\n".join(said))


def call(*words: object) -> int:
    """Run the search program and return its exit status."""
    device = ["--device", "cpu"] if words[0] in ("index", "add", "query") else []
    return status_of(search.main, *words, *device)


@pytest.fixture
def copy(album: Album, tmp_path: Path) -> Path:
    return Path(shutil.copytree(album.index, tmp_path / "index"))


def test_the_index_holds_the_features_of_the_embedder(album: Album) -> None:
    index = Index(album.index)
    paths = [*(f"{name}/{shot}.png" for name in sorted(PEOPLE) for shot in range(PEOPLE[name]))]
    paths += [f"stranger {stranger}.png" for stranger in (10, 11)]
    assert [entry.path for entry in index.entries()] == sorted(paths)
    known = [entry.identity for entry in index.entries()]
    assert known == [path.partition("/")[0] if "/" in path else "" for path in sorted(paths)]
    wanted = Embedder.load(album.run, device="cpu").embed([album.photos / path for path in sorted(paths)])
    assert np.array_equal(index.features, wanted)
    assert "8 images added (" in album.said and "now 8 images of 3 identities" in album.said


def test_links_out_of_the_folder_are_said(album: Album, copy: Path, tmp_path: Path, capsys) -> None:
    photo(tmp_path / "outside" / "x.png", 5)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "linked.png").symlink_to(tmp_path / "outside" / "x.png")
    assert call("add", copy, "--images", tmp_path / "more") == 0
    assert f"warning: 1 image(s) lie outside {tmp_path / 'more'}: symbolic links" in capsys.readouterr().err


def test_a_query_finds_its_person(album: Album, tmp_path: Path, capsys) -> None:
    asked = [photo(tmp_path / "anna.jpg", 0, 9), photo(tmp_path / "ben.png", 1, 9, size=(80, 50))]
    outputs = {name: tmp_path / f"result.{name}" for name in ("html", "csv", "json")}
    assert call("query", album.index, *asked, "--top", 4, "--out", outputs["html"], "--csv", outputs["csv"],
                "--json", outputs["json"], "--images", album.photos) == 0  # fmt: skip
    document = json.loads(outputs["json"].read_text())
    assert [part["query"] for part in document] == [str(path) for path in asked]
    assert {result["identity"] for result in document[0]["results"][:3]} == {"anna"}
    assert {result["identity"] for result in document[1]["results"][:2]} == {"ben"}

    embedder, index = Embedder.load(album.run, device="cpu"), Index(album.index)
    query, rows = embedder.embed(asked[:1])[0].astype(float), index.features.astype(float)
    scores = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    order = np.argsort(-scores)[:4]
    assert are_apart(np.sort(scores)[-5:])
    for rank, (row, result) in enumerate(zip(order, document[0]["results"], strict=True), start=1):
        entry = index.entry(int(row))
        assert result["score"] == pytest.approx(scores[row], abs=1e-6)
        assert (result["rank"], result["path"], result["identity"]) == (rank, entry.path, entry.identity)
        assert result["images"] == 1 and result["root"] == str(album.photos)

    lines = list(csv.DictReader(io.StringIO(outputs["csv"].read_text())))
    flat = [{"query": part["query"], **result} for part in document for result in part["results"]]
    assert lines == [{key: str(value) for key, value in line.items()} for line in flat]
    printed = capsys.readouterr().out
    assert all(f"{result['rank']:>5}  {result['score']:6.3f}  identity" in printed for result in document[0]["results"])
    page = outputs["html"].read_text()
    assert page.count("<article>") == 2 and page.count("data:image/jpeg;base64,") == 2 + 8 and "no image" not in page


def thresholds(album: Album, path: Path, **changes: object) -> Path:
    """What an evaluation of the album's model would write."""
    embedder = Embedder.load(album.run, device="cpu")
    made = {"model": hash_file(embedder.source / MODEL), "flip": False, "dim": embedder.dim}
    rates = {"0.1": {"threshold": 0.5}, "0.01": {"threshold": 0.9999}}
    path.write_text(json.dumps({**made, "open_set": {"thresholds": rates}, **changes}))
    return path


def ask_with(album: Album, index: Path, threshold: object) -> list[object]:
    """Return the words of a query with a threshold."""
    return ["query", index, album.photos / "anna" / "0.png", "--threshold", threshold]


@pytest.mark.parametrize(("at", "threshold"), [("", 0.9999), ("open_set/0.1", 0.5)])
def test_below_a_threshold_people_are_unknown(
    album: Album, tmp_path: Path, capsys: pytest.CaptureFixture[str], at: str, threshold: float
) -> None:
    file, out = thresholds(album, tmp_path / "thresholds.json"), tmp_path / "result.json"
    asked = [album.photos / "anna" / "0.png", photo(tmp_path / "new.png", 30)]
    chosen = ["--threshold", file, *(["--at", at] if at else []), "--json", out, "--out", tmp_path / "result.html"]
    assert call("query", album.index, *asked, *chosen) == 0
    known, unknown = json.loads(out.read_text())
    assert known["results"][0]["identity"] == "anna" and known["results"][0]["score"] >= threshold
    assert all(result["score"] >= threshold for result in unknown["results"])
    if not at:
        assert not unknown["results"] and unknown["reason"].startswith("unknown: the best score, ")
        assert "below the threshold, 1.000" in capsys.readouterr().out
        assert unknown["reason"] in (tmp_path / "result.html").read_text()


def test_centroids_are_means_and_strangers_stand_alone(album: Album, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    assert call("query", album.index, photo(tmp_path / "x.png", 0, 5), "--gallery", "centroids", "--json", out) == 0
    results = json.loads(out.read_text())[0]["results"]
    assert (results[0]["identity"], results[0]["images"], results[0]["path"]) == ("anna", 3, "anna/0.png")
    assert sorted(result["images"] for result in results) == [1, 1, 1, 2, 3]
    assert sum(result["identity"] == "" for result in results) == 2


def test_the_page_needs_nothing_and_every_output_escapes(album: Album, tmp_path: Path, capfd) -> None:
    nasty = '<img src=x onerror=alert(1)> & "q"'
    photo(tmp_path / "photos" / nasty / "<b>.png", 3)
    photo(tmp_path / "photos" / "=1+1" / "\x1b[31m \udcff.png", 3)  # a formula, a control sequence, no UTF-8
    assert call("index", "--checkpoint", album.run, "--images", tmp_path / "photos", "--out", tmp_path / "i") == 0
    asked = photo(tmp_path / "<script>.png", 3)
    assert call("query", tmp_path / "i", asked, "--out", tmp_path / "r.html", "--csv", tmp_path / "r.csv") == 0
    said, table = capfd.readouterr().out, (tmp_path / "r.csv").read_text()
    assert "\x1b" not in said and r"=1+1/\x1b[31m \udcff.png" in said
    assert ",'=1+1," in table and ",=1+1" not in table and r",'=1+1/" in table
    page = (tmp_path / "r.html").read_text()
    assert "<script" not in page and "<img src=x" not in page and "<b>.png" not in page
    assert nasty in html.unescape(page)
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_pictures_that_are_gone_or_elsewhere_are_blanks(album: Album, tmp_path: Path, capsys) -> None:
    photos = Path(shutil.copytree(album.photos, tmp_path / "photos"))
    assert call("index", "--checkpoint", album.run, "--images", photos, "--out", tmp_path / "i") == 0
    (photos / "anna" / "1.png").unlink()
    asked = ("query", tmp_path / "i", photos / "anna" / "0.png", "--top", 3, "--out", tmp_path / "r.html")
    assert call(*asked, "--images", photos) == 0
    assert (tmp_path / "r.html").read_text().count("no image") == 1
    assert "1 pictures are absent" in capsys.readouterr().out
    assert call(*asked) == 0  # an index may come from anywhere: what it names is not read without the user's word
    assert (tmp_path / "r.html").read_text().count("no image") == 3
    assert f"show them with --images {photos}" in capsys.readouterr().out
    (tmp_path / "secret.png").symlink_to(album.photos / "anna" / "0.png")
    source, row = Source(str(photos)), Index(tmp_path / "i").features[:1]
    for path in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "a\0.png"):
        with append(tmp_path / "i") as appender:
            appender.add(row, [Entry(path, source=source)])
    (photos / "link.png").symlink_to(album.photos / "ben" / "0.png")
    pixels = Pixels(HEIGHT, WIDTH)
    shown = read_pictures(list(Index(tmp_path / "i").entries()), pixels, {str(photos)})
    assert [picture is not None for picture in shown] == [True, False, *[True] * 6, *[False] * 4]


def test_a_table_gives_identity_camera_and_time(album: Album, tmp_path: Path, capsys) -> None:
    (tmp_path / "t.csv").write_text(
        "\ufeffpath,camera,time,identity\n"
        "anna/0.png,door,2024-05-01T10:00,Anna\n"
        "anna/1.png,hall,,Anna\n"
        "ben/0.png,door,12.5,\n"
        "gone.png,door,,Ben\n",
        encoding="utf-8",
    )  # fmt: skip
    assert call("index", "--checkpoint", album.run, "--images", album.photos, "--csv", tmp_path / "t.csv",
                "--out", tmp_path / "i") == 0  # fmt: skip
    said = capsys.readouterr()
    assert "3 images added, 1 unreadable and skipped (" in said.out and "gone.png: No such file" in said.err
    found = [(entry.identity, entry.camera, entry.time) for entry in Index(tmp_path / "i").entries()]
    assert found == [("Anna", "door", "2024-05-01T10:00"), ("Anna", "hall", ""), ("", "door", "12.5")]
    query = ("query", tmp_path / "i", album.photos / "anna" / "0.png", "--json", tmp_path / "r.json")
    assert call(*query, "--camera", "door") == 0
    (result,) = json.loads((tmp_path / "r.json").read_text())[0]["results"]
    assert (result["path"], result["camera"]) == ("anna/1.png", "hall")
    assert call(*query) == 0
    assert json.loads((tmp_path / "r.json").read_text())[0]["results"][0]["time"] == "2024-05-01T10:00"
    assert call("remove", tmp_path / "i", "--path", "anna/1.png") == 0
    assert call(*query, "--camera", "door") == 0
    assert "nothing found: all images are by camera door" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,name\na.png,x\n", "columns that are not read: 'name'"),
        ("path\n", "no line below the header"),
        ("path\n../a.png\n", r"line 2: path '../a.png' lies outside"),
        ("path\na.png\n./a.png\n", "lines 2 and 3: a.png twice"),
    ],
)
def test_tables_that_make_no_sense(album: Album, tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        list_folder(str(album.photos), str(tmp_path / "t.csv"))


def test_shards_with_their_identities_and_cameras(album: Album, drawn: Drawn, tmp_path: Path) -> None:
    out = tmp_path / "i"
    assert call("index", "--checkpoint", album.run, "--images", drawn.root, "--split", "gallery", "query", "train",
                "--out", out) == 0  # fmt: skip
    index, row = Index(out), 0
    embedder = Embedder.load(album.run, device="cpu", batch_size=1)
    entries = list(index.entries())
    for split in ("gallery", "query", "train"):
        part = drawn.manifest.split(split)
        for pid, name, files in zip(part.pids, part.names, drawn.sources(split), strict=True):
            for file in files if pid != JUNK else []:
                camera = re.search(r"_c(\d)", file.name)[1]
                named = "" if pid == drawn.manifest.distractor_pid else f"train/{name}" if split == "train" else name
                assert (entries[row].identity, entries[row].camera) == (named, camera)
                if row % 7 == 0:
                    wanted = embedder.embed([file])
                    assert np.abs(index.features[row] - wanted).max() <= TOLERANCE * np.abs(wanted).max()
                row += 1
    assert row == len(index)
    rows = [0, 30, len(index) - 1]
    some = [entries[i] for i in rows]
    assert read_pictures(some, Pixels(HEIGHT, WIDTH), set()) == [None] * 3
    beyond = [replace(some[0], place=place) for place in (-1, 10**9)]
    assert read_pictures(beyond, Pixels(HEIGHT, WIDTH), {name_root(str(drawn.root))}) == [None] * 2
    shown = read_pictures(some, Pixels(HEIGHT, WIDTH), {name_root(str(drawn.root))})
    files = [f for s in ("gallery", "query", "train") for p, fs in
             zip(drawn.manifest.split(s).pids, drawn.sources(s), strict=True) if p != JUNK for f in fs]  # fmt: skip
    for i, image in zip(rows, shown, strict=True):
        assert np.abs(image.astype(int) - np.asarray(Image.open(files[i])).astype(int)).max() <= 1


def test_damaged_shards_are_passed_over_and_named(album: Album, drawn: Drawn, tmp_path: Path, capsys) -> None:
    root = Path(shutil.copytree(drawn.root, tmp_path / "shards"))
    shards = drawn.manifest.split("query").shards
    (root / shards[0].name).unlink()
    assert call("index", "--checkpoint", album.run, "--images", root, "--split", "query", "--out", tmp_path / "i") == 0
    said = capsys.readouterr()
    assert f"skipped: {root / shards[0].name}" in said.err and "1 unreadable and skipped" in said.out
    assert len(Index(tmp_path / "i")) == drawn.manifest.split("query").num_images - shards[0].images


def test_shards_without_the_split_are_named_by_their_folder(drawn: Drawn, tmp_path: Path) -> None:
    splits = {name: split for name, split in drawn.manifest.splits.items() if name != "gallery"}
    save_manifest(replace(drawn.manifest, splits=splits), tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}: the gallery split holds no image; give --split one of train"):
        list_shards(str(tmp_path), "gallery")


def test_adding_appends_what_is_new(album: Album, copy: Path, tmp_path: Path, capsys) -> None:
    more = Path(shutil.copytree(album.photos, tmp_path / "more"))
    photo(more / "anna" / "7.png", 0, 7)
    assert call("add", copy, "--images", more) == 0  # another folder: other images, the same people
    assert "9 images added" in capsys.readouterr().out
    index = Index(copy)
    images = index.centroids().images.tolist()
    assert dict(zip(index.meta.identities, images, strict=True)) == {"anna": 7, "ben": 4, "çelik": 2}
    photo(more / "dora" / "0.png", 4)
    (more / "dora" / "1.png").write_bytes(b"")
    assert call("add", copy, "--images", more) == 0
    said = capsys.readouterr()
    assert (
        "1 images added, 9 are in the index already, 1 unreadable and skipped" in said.out
        and "an empty file" in said.err
    )
    assert call("add", copy, "--images", more, "--prefix", "x/") == 0
    assert "0 images added, 10 are in the index already, 1 unreadable" in capsys.readouterr().out
    photo(more / "dora" / "2.png", 4)
    assert call("add", copy, "--images", more, "--prefix", "x/") == 0
    assert Index(copy).meta.identities == ("anna", "ben", "çelik", "dora", "x/dora")


def test_removing(album: Album, copy: Path, capsys) -> None:
    assert call("remove", copy, "--identity", "anna", "--path", "ben/1.png") == 0
    assert "4 images removed; now 4 images of 2 identities" in capsys.readouterr().out
    assert "anna" not in (copy / "index.json").read_text() + (copy / "entries.jsonl").read_text()
    assert call("remove", copy, "--identity", "anna") == 2
    assert "holds nothing of anna" in capsys.readouterr().err
    assert call("remove", copy) == 2


def test_an_index_of_a_flip_test_fewer_dimensions_and_float16_is_searched_with_them(
    album: Album, drawn: Drawn, tmp_path: Path, capsys
) -> None:
    run = make_run(tmp_path / "run", drawn, model__nested=[4])  # of few numbers that the model uses
    index, photo_of_anna = tmp_path / "index", album.photos / "anna" / "0.png"
    photo(tmp_path / "more" / "dora" / "0.png", 7)
    photo(tmp_path / "photos" / "anna" / "0.png", 0)
    made = ["index", "--checkpoint", run, "--images", tmp_path / "photos", "--out", index, "--flip", "--half",
            "--dimensions", 4]  # fmt: skip
    assert call(*made) == call("add", index, "--images", tmp_path / "more") == 0
    embedder = Embedder.load(run, device="cpu", flip=True, dimensions=4)
    wanted = embedder.embed([photo_of_anna, tmp_path / "more/dora/0.png"])
    assert Index(index).features.shape == (2, 4) and Index(index).features.dtype == np.float16
    assert np.allclose(Index(index).features, wanted, rtol=2**-10, atol=TOLERANCE * np.abs(wanted).max())
    page, table = tmp_path / "page.html", tmp_path / "found.json"
    assert call("query", index, photo_of_anna, "--out", page, "--json", table) == call("info", index) == 0
    assert json.loads(table.read_text())[0]["results"][0]["score"] == pytest.approx(1, abs=1e-3)
    said = capsys.readouterr().out
    assert ", flip test" in page.read_text() and ", flip test" in said and "4 numbers, float16" in said
    assert Index(index).meta.fingerprint != Index(album.index).meta.fingerprint
    assert call("query", index, photo_of_anna, "--checkpoint", album.run) == 2  # it has no features of 4 numbers
    said = capsys.readouterr().err
    assert "holds features of another model" in said and "give the checkpoint it was made with" in said


def test_info(album: Album, capsys) -> None:
    assert call("info", album.index) == 0
    said = capsys.readouterr().out
    assert "images  8" in said and "3, and 2 images without an identity" in said and str(album.photos) in said


def test_unreadable_images_are_skipped_counted_and_named_or_stop_it(album: Album, tmp_path: Path, capsys) -> None:
    photo(tmp_path / "photos" / "a.png", 0)
    (tmp_path / "photos" / "empty.jpg").touch()
    (tmp_path / "photos" / "text.jpg").write_text("no image")
    fifo(tmp_path / "photos" / "fifo.jpg")
    make = ("index", "--checkpoint", album.run, "--images", tmp_path / "photos", "--out", tmp_path / "i")
    assert call(*make, "--on-damage", "stop") == 2
    assert "empty.jpg: an empty file" in capsys.readouterr().err
    assert not (tmp_path / "i").exists() and not list(tmp_path.glob(".*"))
    assert call(*make) == 0
    said = capsys.readouterr()
    assert "1 images added, 3 unreadable and skipped" in said.out
    assert [line.split(": ")[:2] for line in said.err.splitlines()] == [
        ["skipped", str(tmp_path / "photos" / name)] for name in ("empty.jpg", "fifo.jpg", "text.jpg")
    ]


def add_nothing(folder: Path) -> Path:
    folder.mkdir()
    (folder / "notes.txt").write_text("no image")
    return folder


def all_broken(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.jpg").write_text("no image")
    return folder


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def edited(index: Path, **changes: object) -> Path:
    document = describe_meta(replace(read_meta(index), **changes))
    (index / "index.json").write_text(json.dumps(document))
    return index


def of_version(index: Path, version: int) -> Path:
    document = json.loads((index / "index.json").read_text())
    (index / "index.json").write_text(json.dumps(document | {"format": version}))
    return index


# What is typed, and what the one line says.
BAD: dict[str, tuple[Callable[[Album, Path, Path], list], str]] = {
    "empty folder": (
        lambda a, c, t: ["index", "--checkpoint", a.run, "--images", add_nothing(t / "e"), "--out", t / "i"],
        "no image in this folder",
    ),
    "no folder": (
        lambda a, c, t: ["index", "--checkpoint", a.run, "--images", t / "e", "--out", t / "i"],
        "e: no such folder",
    ),
    "all broken": (
        lambda a, c, t: ["index", "--checkpoint", a.run, "--images", all_broken(t / "e"), "--out", t / "i"],
        "none of 1 images can be read",
    ),
    "no run": (
        lambda a, c, t: ["index", "--checkpoint", t / "run", "--images", a.photos, "--out", t / "i"],
        "run: no such folder",
    ),
    "index twice": (
        lambda a, c, t: ["index", "--checkpoint", a.run, "--images", a.photos, "--out", c],
        "is an index; `add` appends to it",
    ),
    "split of a folder": (
        lambda a, c, t: ["add", c, "--images", a.photos, "--split", "gallery"],
        "--split is for shards",
    ),
    "no table": (lambda a, c, t: ["add", c, "--images", a.photos, "--csv", t / "x.csv"], "x.csv: No such file"),
    "another model": (
        lambda a, c, t: ["query", c, a.photos / "anna" / "0.png", "--checkpoint", a.other_run],
        "holds features of another model",
    ),
    "another model adds": (
        lambda a, c, t: ["add", c, "--images", a.photos, "--checkpoint", a.other_run],
        "holds features of another model",
    ),
    "checkpoint moved": (
        lambda a, c, t: ["query", edited(c, checkpoint="/gone"), a.photos / "anna" / "0.png"],
        "the checkpoint of its model, /gone, does not exist; give --checkpoint",
    ),
    "another version": (
        lambda a, c, t: ["query", of_version(c, 99), a.photos / "anna" / "0.png"],
        "index version 99, this program reads version 4",
    ),
    "no index": (lambda a, c, t: ["query", t, a.photos / "anna" / "0.png"], "is not an index"),
    "no photo": (lambda a, c, t: ["query", c, t / "none.jpg"], "none.jpg: No such file"),
    "unreadable photo": (lambda a, c, t: ["query", c, a.photos / "notes.txt"], "notes.txt: image cannot be decoded"),
    "no top": (lambda a, c, t: ["query", c, a.photos / "anna" / "0.png", "--top", "0"], "k is 0"),
    "no camera": (lambda a, c, t: ["query", c, a.photos / "anna" / "0.png", "--camera", "x"], "has no camera 'x'"),
    "no source": (
        lambda a, c, t: ["query", c, a.photos / "anna" / "0.png", "--out", t / "r.html", "--images", t],
        "the index has no images of it, but of",
    ),
    "no page": (
        lambda a, c, t: ["query", c, a.photos / "anna" / "0.png", "--images", a.photos],
        "--images works only with --out",
    ),
    "threshold of another model": (
        lambda a, c, t: ask_with(a, c, thresholds(a, t / "x", model="0")),
        "is of another model than the index",
    ),
    "threshold of the flip test": (
        lambda a, c, t: ask_with(a, c, thresholds(a, t / "x", flip=True)),
        "is of another model than the index (flip: True against False)",
    ),
    "unknown threshold": (
        lambda a, c, t: [*ask_with(a, c, thresholds(a, t / "x")), "--at", "fpr"],
        "x has open_set/0.1, open_set/0.01",
    ),
    "damaged thresholds": (
        lambda a, c, t: ask_with(a, c, a.photos / "notes.txt"),
        "is not a thresholds.json",
    ),
    "threshold of no cosine": (
        lambda a, c, t: ask_with(a, c, 1.5),
        "--threshold 1.5: give a cosine",
    ),
    "a fifo": (lambda a, c, t: ["query", c, fifo(t / "f.jpg")], "f.jpg: is a FIFO"),
    "no place": (
        lambda a, c, t: ["query", c, a.photos / "anna" / "0.png", "--out", t / "x" / "y.html"],
        "No such file",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_with_one_line_and_status_2(album: Album, copy: Path, tmp_path: Path, capsys, name: str) -> None:
    words, message = BAD[name]
    typed = words(album, copy, tmp_path)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    assert call(*typed) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and message in said[0]
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert not (tmp_path / "i").exists()


def test_odd_kinds_of_images(album: Album, tmp_path: Path) -> None:
    """CMYK, palette, grey, alpha, and turned by EXIF: all found as what they show."""
    upright = Image.open(photo(tmp_path / "x.png", 5)).convert("RGB")
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.convert("CMYK").save(folder / "cmyk.tif")
    upright.quantize(256).save(folder / "palette.png")
    upright.convert("RGBA").save(folder / "alpha.png")
    upright.rotate(90, expand=True).save(folder / "turned.png", exif=exif)
    photo(folder / "zz another.png", 6)
    assert call("index", "--checkpoint", album.run, "--images", folder, "--out", tmp_path / "i") == 0
    assert call("query", tmp_path / "i", tmp_path / "x.png", "--json", tmp_path / "r.json") == 0
    results = json.loads((tmp_path / "r.json").read_text())[0]["results"]
    assert len(results) == 5 and results[-1]["path"] == "zz another.png"
    least = {"palette.png": 0.99}  # 256 colours are fewer than there were
    assert all(result["score"] > least.get(result["path"], 0.9999) for result in results[:4])
    assert results[-1]["score"] < 0.9


def test_the_commands_and_the_code_of_the_documentation_run(
    album: Album, drawn: Drawn, tmp_path: Path, monkeypatch
) -> None:
    """docs/search.md from top to bottom, in a folder where a reader's things lie."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(album.run, "runs/market1501")
    for name in ("photos", "more-photos"):
        shutil.copytree(album.photos, name)
    photo(tmp_path / "more-photos" / "emil" / "0.jpg", 8)
    for name in ("someone.jpg", "a.jpg", "b.png"):
        photo(tmp_path / name, 0)
    text = (ROOT / "docs" / "search.md").read_text()
    commands = re.findall(r"^reid search (.*)$", text, re.MULTILINE)
    assert len(commands) == 5
    for words in commands:
        search.main(shlex.split(words))
    assert {"result.html", "people.index"} <= {path.name for path in tmp_path.iterdir()}
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {"pil_image": Image.open("b.png"), "array": np.asarray(Image.open("b.png"))}
    exec(code, names)
    assert names["features"].shape == (4, names["embedder"].dim)


def test_the_example_runs(album: Album, tmp_path: Path, monkeypatch, capsys) -> None:
    for person in range(3):
        for shot in range(4):
            photo(tmp_path / "pictures" / f"person {person}" / f"{shot}.jpg", person, shot)
    example = str(ROOT / "examples" / "embed_and_search.py")
    monkeypatch.setattr(sys, "argv", [example, str(album.run), str(tmp_path / "pictures")])
    runpy.run_path(example, run_name="__main__")
    said = capsys.readouterr().out
    assert "person 2 looks most like person 2" in said
    assert "best match is the same person: 3 of 3" in said
