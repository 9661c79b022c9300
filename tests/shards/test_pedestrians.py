"""Drawn pedestrians: the layout, the promises about identities and cameras, the bytes, the difficulty."""

import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from shards.pedestrians import figure
from shards.pedestrians.dataset import plan_identity, plan_shots, synthesize
from shards.pedestrians.patterns import PATTERNS, paint_pattern
from shards.pedestrians.photo import Shot, draw_pedestrian
from shards.pedestrians.wardrobe import Identity
from shards.readers.market1501 import DRAWN_MARKER

NAME = re.compile(r"^(-1|\d{4})_c(\d+)s(\d)_(\d{6})_(\d{2,})\.jpg$")
SIZES = dict(identities_train=12, identities_test=16, images_per_identity=9, cameras=3, distractors=14, junk=7)
FOLDERS = ("bounding_box_train", "query", "bounding_box_test")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> tuple[Path, dict[str, int]]:
    """One small dataset; the tests only read it."""
    root = tmp_path_factory.mktemp("drawn") / "market"
    return root, synthesize(root, **SIZES, seed=3, progress=False)


def labels(root: Path, folder: str) -> list[tuple[int, int]]:
    """(pid, camid) of each file, in sorted order."""
    matches = [NAME.match(path.name) for path in sorted((root / folder).iterdir())]
    assert all(matches)
    return [(int(match[1]), int(match[2])) for match in matches if match]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_layout_names_and_counts(dataset):
    root, counts = dataset
    found = {folder: labels(root, folder) for folder in FOLDERS}
    pids = {folder: Counter(pid for pid, _ in rows) for folder, rows in found.items()}
    assert counts["train"] == len(found["bounding_box_train"]) == 12 * 9
    assert counts["query"] + counts["gallery"] == 16 * 9 + 14 + 7
    assert counts["query"] == len(found["query"])
    assert counts["gallery"] == len(found["bounding_box_test"])
    assert pids["bounding_box_test"][0] == counts["distractors"] == 14
    assert pids["bounding_box_test"][-1] == counts["junk"] == 7
    assert min(pids["bounding_box_train"]) > 0 and min(pids["query"]) > 0
    assert {camera for rows in found.values() for _, camera in rows} == {1, 2, 3}
    with Image.open(next((root / "query").iterdir())) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 128))


def test_train_and_test_identities_are_disjoint(dataset):
    root, _ = dataset
    train = {pid for pid, _ in labels(root, "bounding_box_train")}
    query = {pid for pid, _ in labels(root, "query")}
    gallery = {pid for pid, _ in labels(root, "bounding_box_test")} - {0, -1}
    assert len(train) == 12 and query == gallery and len(query) == 16
    assert not train & query
    assert train | query == set(range(1, 29))
    assert max(train) > min(query) and max(query) > min(train)  # mixed, as in Market


def test_each_query_has_a_match_on_another_camera_and_is_alone_on_its_own(dataset):
    root, _ = dataset
    gallery = defaultdict(set)
    for pid, camera in labels(root, "bounding_box_test"):
        gallery[pid].add(camera)
    queries = labels(root, "query")
    assert len(queries) == len(set(queries))
    assert all(gallery[pid] - {camera} for pid, camera in queries)
    assert all((pid, camera) in set(queries) for pid in set(gallery) - {0, -1} for camera in gallery[pid])


@pytest.mark.parametrize(("images", "cameras"), [(2, 2), (2, 4), (3, 2), (4, 4), (5, 4), (6, 5), (7, 2)])
def test_few_images_still_leave_every_query_a_match(images, cameras):
    for pid in range(1, 30):
        shots = plan_identity(0, pid, "test", images, cameras)
        queries = [shot.camera for shot in shots if shot.path.startswith("query/")]
        gallery = [shot.camera for shot in shots if shot.path.startswith("bounding_box_test/")]
        assert len(queries) + len(gallery) == images == len({shot.path for shot in shots})
        assert queries and len(set(queries)) == len(queries)
        assert all(set(gallery) - {camera} for camera in queries)


def test_same_seed_same_bytes_and_another_seed_another_picture(dataset, tmp_path):
    root, _ = dataset
    synthesize(tmp_path / "again", **SIZES, seed=3, progress=False)
    assert contents(tmp_path / "again") == contents(root)
    synthesize(tmp_path / "other", **{**SIZES, "identities_train": 1, "identities_test": 1}, seed=4, progress=False)
    assert not set(contents(tmp_path / "other").values()) & set(contents(root).values())


def test_another_seed_draws_other_people():
    few = dict(identities_train=3, identities_test=3, images_per_identity=4, cameras=2, distractors=4, junk=2)
    people = [{shot.who for shot in plan_shots({**few, "seed": seed})} - {None} for seed in (3, 4)]
    assert len(people[0]) == len(people[1]) == 3 + 3 + 2  # train, test, strangers
    assert not people[0] & people[1]


def test_a_file_does_not_depend_on_how_many_others_there_are(dataset, tmp_path):
    """Of people and distractors; junk shows whoever is in the test set."""
    root, _ = dataset
    fewer = dict(identities_train=2, identities_test=2, distractors=4)
    synthesize(tmp_path / "few", **{**SIZES, **fewer}, seed=3, progress=False)
    few = {path.name: path.read_bytes() for path in (tmp_path / "few").rglob("*.jpg")}
    many = {path.name: path.read_bytes() for path in root.rglob("*.jpg")}
    found = {name: data for name, data in few.items() if not name.startswith("-1")}
    assert len(found) == 4 * 9 + 4 and found == {name: many[name] for name in found}


def test_pictures_differ_by_identity_camera_and_image_and_fit_any_size():
    shot = Shot("0.jpg", "a", 1, "0")
    base = np.asarray(draw_pedestrian(shot), float)
    assert np.array_equal(base, np.asarray(draw_pedestrian(shot), float))
    for other in (replace(shot, who="b"), replace(shot, camera=2), replace(shot, key="1")):
        assert np.abs(base - np.asarray(draw_pedestrian(other), float)).mean() > 5
    assert draw_pedestrian(shot, height=256, width=128).size == (128, 256)
    assert draw_pedestrian(replace(shot, camera=7), height=50, width=21).size == (21, 50)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_shows_from_the_front_and_the_back(pattern):
    """All views are drawn without error; each pattern leaves pixels of its colour, plain leaves none."""
    for yaw in np.linspace(0, 2 * np.pi, 9):
        image = Image.new("RGB", (192, 384))
        view = figure.View(float(yaw), 96, 370, 330, 0.2, 1)
        torso = figure.Tube(view, [(0.8, 0.05, 0.04), (0.75, 0.1, 0.06), (0.6, 0.1, 0.07), (0.45, 0.1, 0.07)])
        paint_pattern(ImageDraw.Draw(image, "RGBA"), torso, pattern, (255, 0, 0), 6)
        shown = np.asarray(image)[..., 0].any()
        if pattern == "plain":
            assert not shown
        elif round(float(yaw) / (np.pi / 2), 3) % 2 != 1:  # from the very side a print may be hidden
            assert shown


def stripe_histograms(root: Path, folder: str, space: str) -> np.ndarray:
    """(N, D) unit rows: square roots of joint 8x8x8 colour histograms of four stripes, the margins left out."""
    rows = []
    for path in sorted((root / folder).iterdir()):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert(space))[6:-6, 12:-12] // 32
        codes = pixels[..., 0] * 64 + pixels[..., 1] * 8 + pixels[..., 2].astype(int)
        row = np.concatenate([np.bincount(part.ravel(), minlength=512) for part in np.array_split(codes, 4)])
        rows.append(np.sqrt(row / row.sum()))
    return np.stack(rows)


def mean_ap(scores: np.ndarray, query: list[tuple[int, int]], gallery: list[tuple[int, int]]) -> float:
    """The standard protocol in loops: same identity and camera removed, junk dropped, distractors kept."""
    aps = []
    for row, (pid, camera) in zip(scores, query, strict=True):
        hits, precisions, seen = 0, [], 0
        for index in np.argsort(-row, kind="stable"):
            other, other_camera = gallery[index]
            if other == -1 or (other == pid and other_camera == camera):
                continue
            seen += 1
            if other == pid:
                hits += 1
                precisions.append(hits / seen)
        aps.append(sum(precisions) / hits)
    return sum(aps) / len(aps)


@pytest.mark.parametrize("space", ["RGB", "HSV", "YCbCr"])
def test_colours_alone_do_not_identify(dataset, space):
    root, _ = dataset
    query, gallery = labels(root, "query"), labels(root, "bounding_box_test")
    scores = stripe_histograms(root, "query", space) @ stripe_histograms(root, "bounding_box_test", space).T
    assert mean_ap(scores, query, gallery) < 0.5


def test_people_share_their_colours_but_not_all_else():
    people = [Identity(f"0/{pid}") for pid in range(160)]
    colours = Counter((who.upper, who.trim, who.lower) for who in people)
    assert max(colours.values()) >= 3 and len(colours) < 70
    looks = {(w.upper, w.trim, w.lower, w.cut, w.pattern, w.legwear, w.hair, w.bag, w.sleeves) for w in people}
    assert len(looks) == len(people)


def test_own_output_is_left_or_completed_and_never_deleted(tmp_path):
    small = dict(identities_train=1, identities_test=1, images_per_identity=3, cameras=2, distractors=1, junk=1)
    out = tmp_path / "deep" / "market"
    counts = synthesize(out, **small, progress=False)
    before = contents(out)
    victim = next((out / "query").iterdir())
    other = next((out / "bounding_box_train").iterdir())
    (out / "notes.txt").write_text("mine")
    other.write_bytes(b"kept, since the set is complete")
    assert synthesize(out, **small, progress=False) == counts
    assert other.read_bytes() == b"kept, since the set is complete"
    victim.unlink()  # no longer complete: everything is drawn again
    assert synthesize(out, **small, progress=False) == counts
    after = contents(out)
    assert after.pop("notes.txt") == b"mine" and after == before
    with pytest.raises(ValueError, match="other arguments"):
        synthesize(out, **{**small, "junk": 2}, progress=False)
    assert json.loads((out / DRAWN_MARKER).read_text())["counts"] == counts


def test_an_interrupted_folder_is_drawn_again(tmp_path):
    small = dict(identities_train=1, identities_test=1, images_per_identity=2, cameras=2, distractors=1, junk=1)
    synthesize(tmp_path, **small, progress=False)
    whole = contents(tmp_path)
    marker = json.loads((tmp_path / DRAWN_MARKER).read_text())
    (tmp_path / DRAWN_MARKER).write_text(json.dumps({**marker, "complete": False}))
    next((tmp_path / "query").iterdir()).write_bytes(b"half a JPEG")
    synthesize(tmp_path, **small, progress=False)
    assert contents(tmp_path) == whole


def test_a_foreign_folder_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        synthesize(tmp_path, progress=False)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}
    with pytest.raises(ValueError, match="is a file"):
        synthesize(tmp_path / "thesis.txt", progress=False)


@pytest.mark.parametrize(
    ("name", "value"), [("cameras", 1), ("images_per_identity", 1), ("height", 8), ("junk", -1), ("hats", 1)]
)
def test_impossible_arguments_name_the_knob(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        synthesize(tmp_path / "out", **{name: value}, progress=False)
    assert not (tmp_path / "out").exists()
