"""Readers of footage: mot, tracks, coco and videos, on drawn people; and what is wrong with it by file and line."""

import contextlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from reid.data.manifest import load_manifest
from shards.__main__ import main
from shards.pedestrians import footage
from shards.readers import coco, mot, tracks
from shards.records import RawDataset
from tests.support.footage import SIZE, as_coco, as_tracks, draw_frames, write_sequence
from tests.support.status import status_of
from tests.support.stored import stored

PEOPLE, FRAMES = 8, 24


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight people past two cameras. Only to be read."""
    root = tmp_path_factory.mktemp("film") / "mot"
    footage.synthesize(root, people=PEOPLE, frames=FRAMES, height=120, width=160, progress=False)
    return root


def facts(raw: RawDataset) -> list[tuple[object, ...]]:
    """What does not depend on the form of the footage."""
    return sorted((r.name, r.pid, raw.cameras[r.camid], int(r.path.stem), r.box) for r in raw.records)


def test_drawn_footage_has_known_boxes(film: Path, tmp_path: Path) -> None:
    """Every person in every camera; inside their box the picture differs from one without them, outside hardly."""
    rows = [line.split(",") for line in (film / "c1" / "gt" / "gt.txt").read_text().splitlines()]
    assert {row[1] for row in rows} == {str(pid) for pid in range(1, PEOPLE + 1)}
    counts = Counter(int(row[0]) for row in rows)
    assert len(list((film / "c1" / "img1").iterdir())) == FRAMES and max(counts.values()) > 1
    sizes = {name: default for name, (default, _, _) in footage.ARGUMENTS.items()}
    sizes |= dict(people=PEOPLE, frames=FRAMES, height=120, width=160)
    frame, walks = max(counts, key=counts.__getitem__), footage.plan_walks(sizes, 1)
    with_people, boxes = footage.draw_frame(sizes, 1, frame, walks)
    empty, _ = footage.draw_frame(sizes, 1, frame, [])
    changed = np.abs(np.array(with_people).astype(int) - np.array(empty)).max(axis=2) > 40
    inside = np.zeros_like(changed)
    for _, (left, top, right, bottom), visible in boxes:
        inside[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = True
        assert visible < 0.9 or changed[top:bottom, left:right].mean() > 0.15
    assert changed[~inside].mean() < 0.002 < changed.mean()
    again = tmp_path / "again"
    footage.synthesize(again, people=PEOPLE, frames=FRAMES, height=120, width=160, progress=False)
    files = [path.relative_to(film) for path in film.rglob("*") if path.is_file()]
    assert files and all((again / path).read_bytes() == (film / path).read_bytes() for path in files)
    for arguments, message in (
        ({"frames": 1}, "frames=1"),
        ({"depth": 1}, "depth: unknown"),
        ({}, "is no empty folder"),
    ):
        with pytest.raises(ValueError, match=message):
            footage.synthesize(film if not arguments else tmp_path / "x", progress=False, **arguments)


def test_the_same_people_in_every_form(film: Path, tmp_path: Path) -> None:
    raw = mot.read(film, ids="shared")
    boxes = [len((film / camera / "gt" / "gt.txt").read_text().splitlines()) for camera in ("c1", "c2")]
    assert len(raw.records) == sum(boxes) and {record.split for record in raw.records} == {""}
    assert sorted(raw.cameras.values()) == ["c1", "c2"] and len({record.pid for record in raw.records}) == PEOPLE
    assert facts(tracks.read(as_tracks(film, tmp_path / "tracks"), ids="shared")) == facts(raw)
    for nested in (True, False):
        table = as_coco(film, tmp_path / "coco.json", nested)
        assert facts(coco.read(film, table)) == facts(raw)


def test_footage_to_shards(film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Directly, and by a table of the division, which gives the same images."""
    out, table = tmp_path / "a", tmp_path / "split.csv"
    words = ["mot", "--root", str(film), "--ids=shared", "--test-share=0.5", "--every=2", "--min-visibility=0.2"]
    assert main(["build", *words, "--out", str(out), "--pad-box=0.05"]) == 0
    said = capsys.readouterr().out
    assert "boxes were left out by --every 2" in said and "boxes were left out by --min-visibility 0.2" in said
    assert main(["verify", str(out), "--decode"]) == 0
    assert main(["split", *words, "--by=time", "--out", str(table)]) == 0
    assert main(["split", *words, "--out", str(tmp_path / "random.csv")]) == 0
    by_table = [
        "build",
        "csv",
        "--root",
        str(film),
        "--csv",
        str(tmp_path / "random.csv"),
        "--out",
        str(tmp_path / "b"),
    ]
    assert main([*by_table, "--pad-box=0.05"]) == 0
    one, two = load_manifest(out), load_manifest(tmp_path / "b")
    for split in one.splits:
        assert one.split(split).names == two.split(split).names
        assert (one.split(split).images == two.split(split).images).all()
        sizes = [sum(shard.bytes for shard in manifest.split(split).shards) for manifest in (one, two)]
        assert abs(sizes[0] - sizes[1]) <= 20480  # the names of datasets differ


def test_selection_and_ids(film: Path, tmp_path: Path) -> None:
    everything = mot.read(film, ids="shared").records
    assert {r.time for r in mot.read(film, ids="shared", every=5).records} <= {1.0, 6.0, 11.0, 16.0, 21.0}
    high = mot.read(film, ids="shared", min_height=60).records
    wanted = [r.box for r in everything if r.box and r.box.bottom - r.box.top >= 60]
    assert [r.box for r in high] == wanted and 0 < len(high) < len(everything)
    own = mot.read(film, ids="per-camera")
    assert len({r.pid for r in own.records}) == 2 * PEOPLE and {"c1-1", "c2-1"} <= {r.name for r in own.records}
    merge = tmp_path / "merge.csv"
    merge.write_text("camera,track,identity\nc1,1,ann\nc2,2,ann\n")
    merged = mot.read(film, merge=merge)
    seen = defaultdict(set)
    for record in merged.records:
        seen[record.name].add(merged.cameras[record.camid])
    assert seen["ann"] == {"c1", "c2"} and len(seen) == 2 * PEOPLE - 1 and seen["c1-2"] == {"c1"}
    write_sequence(tmp_path / "far", "a", ["1,1,10,10,30,60"])
    write_sequence(tmp_path / "far", "b", ["1,2,10,10,30,90", "1,3,50,10,30,90"])
    (tmp_path / "far" / "unlabelled" / "img1").mkdir(parents=True)
    near = mot.read(tmp_path / "far", min_height=80)
    assert {record.camid for record in near.records} == {-1} and "one camera" in near.warnings[-1]  # a is empty
    assert "1 sequences have no gt/gt.txt" in near.warnings[0] and near.warnings[0].endswith("far/unlabelled")
    alone = mot.read(film / "c1")
    assert {record.camid for record in alone.records} == {-1} and "one camera" in alone.warnings[-1]
    with pytest.raises(ValueError, match="give one of them"):
        mot.read(film, ids="shared", merge=merge)
    for text, message in (
        ("c1,1,ann\nc1,1,bob\n", "lines 2 and 3: c1 1 twice"),
        ("c9,1,ann\n", "line 2: camera c9 has no track 1; the cameras are c1, c2"),
        ("c1,1,\n", "line 2: identity is empty"),
        ("c1,1,c2-2\n", "the identity c2-2 is also the name of track 2 of camera c2, which has no line"),
    ):
        merge.write_text("camera,track,identity\n" + text)
        with pytest.raises(ValueError, match=rf"merge\.csv.*{message}"):
            mot.read(film, merge=merge)
    merge.write_text("camera,track,identity\nb,2,ann\nb,3,ann\n")
    with pytest.raises(
        ValueError, match=r"gt\.txt, line 1 and .*line 2: ann is in frame 1 twice; correct .*merge\.csv"
    ):
        mot.read(tmp_path / "far", merge=merge)


def test_motchallenge_keeps_people_and_one_copy_of_each_sequence(tmp_path: Path) -> None:
    lines = ["1,1,10,10,30,60,1,1,1", "1,2,50,10,30,60,0,1,1", "1,3,90,10,30,60,1,7,1", "2,1,12,10,30,60,1,1,0.1"]
    for detector in ("DPM", "FRCNN", "SDP"):
        write_sequence(tmp_path, f"train/MOT17-02-{detector}", lines)
    (tmp_path / "test" / "MOT17-01-DPM" / "img1").mkdir(parents=True)
    raw = mot.read(tmp_path)
    assert [(r.name, r.path.parent.parent.name) for r in raw.records] == [("1", "MOT17-02-DPM")] * 2
    assert "2 copies of sequences" in raw.warnings[0] and "2 boxes of the ground truth" in raw.warnings[1]
    with pytest.raises(ValueError, match="no visibility, the ninth column"):
        mot.read(write_sequence(tmp_path / "mot15", "a", ["1,1,10,10,30,60,1,-1,-1,-1"]), min_visibility=0.5)
    lines = ["1,1,10,10,30,60,1,1,5e-05", "1,2,50,10,30,60,1,1,.9"]  # as programs write numbers
    raw = mot.read(write_sequence(tmp_path / "powers", "a", lines), min_visibility=0.5)
    assert [r.name for r in raw.records] == ["2"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1,1,10,10,30,60", "9,1,10,10,30,60"], r"line 2: frame 9 has no picture; .*img1 holds the frames 1 to 4"),
        (["0,1,10,10,30,60"], "line 1: frame 0 has no picture"),
        (["1,1,10,10,-30,60"], "line 1: .*width -30"),
        (["1,1,10,10,30,0"], "line 1: .*height 0"),
        (["1,1,10,10,x,60"], "line 1: width 'x'"),
        (["1,1,10,10,30"], "line 1: 5 fields"),
        (["1,-1,10,10,30,60"], "line 1: track '-1' is no track"),
        (["1.5,1,10,10,30,60"], "line 1: frame '1.5'"),
        (["1,1,10,10,30,60", "1,1,50,10,30,60"], "line 1 and .*line 2: track 1 is in frame 1 twice"),
        (["1,1,0.1,0.1,0.2,0.5"], "every box ends within 2 pixels, .*multiply by"),
        ([""], "is empty"),
        (["frame,id,x,y,width,height", "1,1,1,1,30,60"], "no column track; the first line names frame, id"),
        (["frame,track,x,y,width,height,mood", "1,1,1,1,30,60,9"], "columns that are not read: mood"),
        (["frame,track,x1,y1,x2,y2", "1,1,40,1,30,60"], "line 2: .*x2 is not right of x1"),
        (["frame,track,x,y,width,height"], "no row below the header"),
        (["frame,track,x,y,x1,y1,x2,y2", "1,1,1,1,10,10,30,60"], "has boxes as x,y,width,height and as x1,y1,x2,y2"),
    ],
)
def test_what_is_wrong_with_tracks_is_named(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        mot.read(write_sequence(tmp_path, "a", lines))
    assert "gt.txt" in str(caught.value) and "\n" not in str(caught.value)


def test_a_track_of_two_cameras_needs_an_answer(tmp_path: Path) -> None:
    for camera in ("a", "b"):
        write_sequence(tmp_path, camera, ["1,7,10,10,30,60"])
    with pytest.raises(ValueError, match=r"a/gt/gt.txt, line 1 and .*b/gt/gt.txt, line 1: track 7 .*--ids shared"):
        mot.read(tmp_path)
    assert [record.name for record in mot.read(tmp_path, ids="shared").records] == ["7", "7"]


def test_where_the_frames_of_tracks_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no table of tracks"):
        tracks.read(tmp_path)
    (tmp_path / "gate.txt").write_text("7 1 10 10 30 60\n")
    with pytest.raises(ValueError, match=r"gate\.txt: needs its frames .*neither a folder gate/ nor a video"):
        tracks.read(tmp_path)
    draw_frames(tmp_path / "gate", [7, 8], "frame_{}.png")
    assert [record.path.name for record in tracks.read(tmp_path).records] == ["frame_7.png"]
    draw_frames(tmp_path / "gate", [7], "other_{}.png")
    with pytest.raises(ValueError, match=r"frame_7\.png and other_7\.png: are both frame 7"):
        tracks.read(tmp_path)
    (tmp_path / "gate.csv").write_text("frame,track,x1,y1,x2,y2,confidence\n7,1,10,10,40,70,0.5\n")
    (tmp_path / "gate" / "other_7.png").unlink()
    with pytest.raises(ValueError, match="the camera gate has two tables"):
        tracks.read(tmp_path)
    (tmp_path / "gate.txt").unlink()
    assert [str(record.box) for record in tracks.read(tmp_path).records] == ["10,10,30,60"]
    with pytest.raises(ValueError, match=r"no box is left; left out: 1 by --min-height 100; lower the thresholds"):
        tracks.read(tmp_path, min_height=100)
    for options in ({"every": 0}, {"min_height": float("nan")}, {"ids": "both"}):
        with pytest.raises(ValueError, match="--" + next(iter(options)).replace("_", "-")):
            tracks.read(tmp_path, **options)


IMAGE = {"id": 1, "file_name": "a.jpg"}
BOX = {"id": 5, "image_id": 1, "bbox": [10, 10, 30, 60], "person_id": 3}


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ([], {}, "images is no list"),
        ({"images": [IMAGE]}, {}, "annotations is no list"),
        ({"images": [{"id": 1}], "annotations": [BOX]}, {}, "no id or no file_name"),
        ({"images": [IMAGE, IMAGE | {"file_name": "b.jpg"}], "annotations": [BOX]}, {}, "two images have the id 1"),
        ({"images": [IMAGE, IMAGE | {"id": 2}], "annotations": [BOX]}, {}, r"two images are a\.jpg; keep one"),
        ({"images": [IMAGE], "annotations": []}, {}, "has no annotations"),
        ({"images": [IMAGE], "annotations": [BOX | {"image_id": 2}]}, {}, "annotation 5: no image has the id 2"),
        ({"images": [IMAGE], "annotations": [BOX | {"bbox": [1, 2, 3]}]}, {}, "annotation 5: bbox is"),
        ({"images": [IMAGE], "annotations": [BOX | {"bbox": [1, 2, -3, 4]}]}, {}, "annotation 5: .*width -3"),
        (
            {"images": [IMAGE], "annotations": [BOX, BOX | {"id": 6}]},
            {},
            "annotation 5 and .*annotation 6: 3 is",
        ),
        ({"images": [IMAGE | {"file_name": "../a.jpg"}], "annotations": [BOX]}, {}, "image 1: path .* lies outside"),
        ({"images": [IMAGE], "annotations": [BOX | {"track_id": 1}]}, {}, "has person_id and track_id; .*--identity"),
        ({"images": [IMAGE], "annotations": [BOX]}, {"identity": "who"}, "no who in any entry; there are bbox, id"),
        ({"images": [IMAGE], "annotations": [BOX]}, {"camera": "gate"}, "no gate .*--camera"),
        (
            {"images": [IMAGE], "annotations": [{"id": 5, "image_id": 1, "bbox": [1, 2, 3, 4]}]},
            {},
            "none of identity, ",
        ),
    ],
)
def test_what_is_wrong_with_coco_is_named(
    tmp_path: Path, content: object, options: dict[str, str], message: str
) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"labels\.json.*{message}"):
        coco.read(tmp_path, **options)


def test_coco_counts_what_it_leaves_out(tmp_path: Path) -> None:
    boxes = [BOX, BOX | {"id": 6, "person_id": None}, BOX | {"id": 7, "person_id": 4, "iscrowd": 1}]
    (tmp_path / "labels.json").write_text(json.dumps({"images": [IMAGE], "annotations": boxes}))
    raw = coco.read(tmp_path)
    assert [(r.name, r.camid) for r in raw.records] == [("3", -1)] and "2 annotations" in raw.warnings[0]
    (tmp_path / "labels.json").write_text("{")
    with pytest.raises(ValueError, match=r"labels\.json: is no JSON"):
        coco.read(tmp_path)
    (tmp_path / "more.json").write_text("{}")
    with pytest.raises(ValueError, match=r"found: labels\.json, more\.json; name it with --json"):
        coco.read(tmp_path)
    with pytest.raises(ValueError, match=r"other\.json: no such file"):
        coco.read(tmp_path, tmp_path / "other.json")


def film_of(numbers: int) -> list[np.ndarray]:
    return [np.full((SIZE[1], SIZE[0], 3), 20 * number, np.uint8) for number in range(1, numbers + 1)]


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """`gate.avi` of six frames, each of its own grey, and the tracks of two people."""
    av = pytest.importorskip("av", reason="PyAV, the extra `video`, is not installed")
    with av.open(str(tmp_path / "gate.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuvj420p"
        for pixels in film_of(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    rows = ["1,1,10,10,30,60", "3,1,20,10,30,60", "3,2,90,10,30,60", "6,2,99,10,30,60", "6,1,300,10,30,60"]
    (tmp_path / "gate.txt").write_text("\n".join(rows))
    return tmp_path


def test_a_video_is_decoded_frame_by_frame(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["build", "tracks", "--root", str(video), "--test-share=0", "--max-broken=0.3"]
    assert main([*words, "--out", str(out), "--workers=2"]) == 0
    manifest = load_manifest(out)
    assert [entry["source"] for entry in manifest.skipped] == ["gate.avi#frame=6&xywh=300,10,30,60"]
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "train-0000.tar"]
    greys = {source: np.array(picture).mean() for source, picture in stored(out).items()}
    frames = {source: int(source.split("frame=")[1].split("&")[0]) for source in greys}
    assert len(greys) == 4 and all(abs(grey - 20 * frames[source]) < 4 for source, grey in greys.items())
    assert main(["verify", str(out), "--decode"]) == 0
    (video / "gate.txt").write_text("9,1,10,10,30,60\n")
    assert status_of(main, *words, "--out", str(out)) == 2
    assert "gate.avi: has 6 frames, and frame 9 is asked for" in capsys.readouterr().err
    (video / "gate.avi").write_bytes(b"no video at all")
    assert status_of(main, *words, "--out", str(out)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "gate.avi: cannot be read as a video" in error


@contextlib.contextmanager
def fake_av(frames: list[np.ndarray]) -> Iterator[SimpleNamespace]:
    images = [SimpleNamespace(to_image=lambda pixels=pixels: Image.fromarray(pixels), rotation=0) for pixels in frames]
    yield SimpleNamespace(decode=lambda video: iter(images))


def test_frames_of_a_video_without_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names it; with a stand-in for PyAV, the right frames are cut, and a table of them gives the same."""
    (tmp_path / "gate.mp4").write_bytes(b"video")
    (tmp_path / "gate.txt").write_text("2,1,10,10,30,60\n2,2,50,10,30,60\n4,1,10,10,30,60\n4,2,50,10,30,60\n")
    out = tmp_path / "out"
    words = ["--root", str(tmp_path), "--test-share=0"]
    monkeypatch.setitem(sys.modules, "av", None)
    assert status_of(main, "build", "tracks", *words, "--out", str(out)) == 2
    assert "mctl-reid[video]" in capsys.readouterr().err.splitlines()[-1] and not out.exists()
    module = ModuleType("av")
    module.FFmpegError = type("FFmpegError", (Exception,), {})  # type: ignore[attr-defined]
    module.open = lambda file, options: fake_av(film_of(5))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "av", module)
    assert main(["build", "tracks", *words, "--out", str(out), "--dataset=x"]) == 0
    manifest = load_manifest(out)
    assert manifest.split("train").images.tolist() == [2, 2] and not (out / "frames").exists()
    assert main(["split", "tracks", *words, "--out", str(tmp_path / "split.csv")]) == 0
    table = ["--root", str(tmp_path), "--csv", str(tmp_path / "split.csv"), "--out", str(tmp_path / "again")]
    assert main(["build", "csv", *table, "--dataset=x"]) == 0
    assert [shard.sha256 for shard in load_manifest(tmp_path / "again").shards] == [
        shard.sha256 for shard in manifest.shards
    ]
    for rows, message in (
        ("gate.mp4,a,train,\n", "line 2: frame '' of gate.mp4; give the number"),
        ("gate.mp4,a,train,0\n", "line 2: frame '0'"),
        ("a.jpg,a,train,3\n", "a.jpg is no video"),
    ):
        (tmp_path / "split.csv").write_text("path,identity,split,frame\n" + rows)
        assert status_of(main, "build", "csv", *table) == 2
        assert message in capsys.readouterr().err
