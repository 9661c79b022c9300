"""reid/evaluation/comparison.py: differences over the same queries, and what does not compare."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from reid.evaluation.about import ABOUT, describe, difference, load_about, write_json
from reid.evaluation.comparison import compare, format_comparison
from reid.evaluation.comparison_page import find_changed_queries, write_comparison
from reid.evaluation.dataset_report import PER_QUERY
from reid.metrics import retrieval
from reid.metrics.bootstrap import paired
from reid.metrics.features import Features

RNG = np.random.default_rng(0)
PIDS, CAMIDS = np.arange(80) % 10, np.arange(80) % 3


def features(noise, rows=slice(None), pids=PIDS, camids=CAMIDS):
    centres = np.random.default_rng(1).normal(size=(10, 16))
    embeddings = centres[PIDS] + noise * np.random.default_rng(2).normal(size=(80, 16))
    return Features(torch.from_numpy(embeddings[rows]), pids[rows], camids[rows])


def report(folder, noise=1.0, protocols=("image", "centroid"), dataset="d", fingerprint="f" * 64, **more):
    query, gallery = features(noise, slice(None, 30), **more), features(noise, slice(30, None), **more)
    folder.mkdir(parents=True)
    results = {protocol: retrieval.evaluate(query, gallery, protocol) for protocol in protocols}
    retrieval.save_results(folder / PER_QUERY, results)
    write_json(folder / ABOUT, asdict(describe(dataset, "somewhere", fingerprint, query, gallery)))
    return results


def test_differences_are_paired_and_against_the_first(tmp_path):
    one, other = report(tmp_path / "a" / "eval" / "d", 1.0), report(tmp_path / "b", 1.4)
    places = [str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "a")]  # a run, a report, the run again
    compared = compare(places)
    assert list(compared) == ["d"] and list(compared["d"]) == ["image", "centroid"]
    for protocol, (first, second, third) in compared["d"].items():
        assert (first.place, second.place) == tuple(places[:2])
        assert first.against is None and first.mAP == one[protocol].mAP
        assert second.mAP == other[protocol].mAP and second.rank1 == other[protocol].cmc[0]
        assert second.against == paired(other[protocol].ap, one[protocol].ap)
        assert second.against.mean == pytest.approx(other[protocol].mAP - one[protocol].mAP)
        assert third.against.mean == third.against.low == third.against.high == 0 and third.against.p == 1
    assert compared["d"]["image"][1].against.mean < 0  # more noise is worse


def test_text_and_json(tmp_path):
    report(tmp_path / "a"), report(tmp_path / "b", 1.4)
    compared = compare([str(tmp_path / "a"), str(tmp_path / "b")])
    row = compared["d"]["image"][1]
    line = next(line for line in format_comparison(compared).splitlines() if line.startswith(f"{tmp_path / 'b'} "))
    assert (
        f"{100 * row.mAP:.1f}" in line and f"{100 * row.against.mean:+.1f}" in line and f"{row.against.p:.3f}" in line
    )
    path = write_comparison(tmp_path / "new" / "out", compared)
    plain = json.loads((path.parent / "comparison.json").read_text())["d"]["image"]
    assert plain[0]["against"] is None and plain[1]["against"]["p"] == row.against.p and plain[1]["mAP"] == row.mAP
    assert (path.parent / "comparison.txt").read_text().startswith("d\n")


def test_the_page_shows_changed_queries(tmp_path):
    first, other = report(tmp_path / "a", 1.3)["image"], report(tmp_path / "b", 1.8)["image"]
    rows = compare([str(tmp_path / "a"), str(tmp_path / "b")])["d"]["image"]
    (changed,) = find_changed_queries("image", rows)
    queries = np.flatnonzero(first.valid)
    lost = set(queries[(first.first_ranks == 1) & (other.first_ranks > 1)].tolist())
    won = set(queries[(first.first_ranks > 1) & (other.first_ranks == 1)].tolist())
    assert lost and (changed.won, changed.lost) == (len(won), len(lost))
    rows = {kind: {each.query.row for each in shown} for kind, shown in changed.shown.items()}
    assert rows["lost"] <= lost and rows["won"] <= won
    changes = [each.aps[1] - each.aps[0] for each in changed.shown["lost"]]
    assert changes == sorted(changes)  # the largest loss first
    text = write_comparison(tmp_path / "out", compare([str(tmp_path / "a"), str(tmp_path / "b")])).read_text()
    assert "Right only in the first report" in text and f"query row {changed.shown['lost'][0].query.row}" in text
    assert "names no local folder of shards" in text  # why there are no pictures


def test_only_what_all_have_is_compared(tmp_path):
    for name, fingerprint in (("x", "1" * 64), ("y", "2" * 64)):
        report(tmp_path / "a" / "eval" / name, dataset=name, fingerprint=fingerprint)
    report(tmp_path / "b" / "eval" / "renamed", dataset="y", fingerprint="2" * 64, protocols=("centroid",))
    compared = compare([str(tmp_path / "a"), str(tmp_path / "b")])
    assert list(compared) == ["y"] and list(compared["y"]) == ["centroid"]


def test_features_without_shards_compare_by_their_labels(tmp_path):
    (
        report(tmp_path / "a"),
        report(tmp_path / "b", fingerprint=""),
        report(tmp_path / "c", fingerprint="", pids=np.roll(PIDS, 1)),
    )
    assert compare([str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(ValueError, match="labels fingerprint"):
        compare([str(tmp_path / "a"), str(tmp_path / "c")])


def test_other_data_is_refused(tmp_path):
    report(tmp_path / "a"), report(tmp_path / "other", fingerprint="0" * 64)
    with pytest.raises(ValueError, match=r"data fingerprint f{12} against 0{12}; evaluate all on the same shards"):
        compare([str(tmp_path / "a"), str(tmp_path / "other")])
    fewer = report(tmp_path / "fewer")["image"]
    assert fewer.num_valid_queries
    (tmp_path / "fewer" / "about.json").write_text(json.dumps({**about(tmp_path / "a"), "num_queries": 29}))
    with pytest.raises(ValueError, match="30 queries and 50 gallery images against 29 and 50"):
        compare([str(tmp_path / "a"), str(tmp_path / "fewer")])


def about(folder):
    return json.loads((folder / "about.json").read_text())


def test_other_valid_queries_are_refused(tmp_path):
    report(tmp_path / "a"), report(tmp_path / "b", protocols=("image",))
    result = retrieval.load_results(tmp_path / "b" / PER_QUERY)["image"]
    valid = result.valid.copy()
    valid[0] = False
    shorter = {name: getattr(result, name)[1:] for name in ("ap", "ap_trapezoid", "inp", "first_ranks")}
    retrieval.save_results(tmp_path / "b" / PER_QUERY, {"image": replace(result, valid=valid, **shorter)})
    with pytest.raises(ValueError, match="other queries can match"):
        compare([str(tmp_path / "a"), str(tmp_path / "b")])


def test_folders_without_reports_and_damage(tmp_path):
    report(tmp_path / "a"), report(tmp_path / "b", protocols=("centroid_all",)), (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no report"):
        compare([str(tmp_path / "a"), str(tmp_path / "empty")])
    with pytest.raises(ValueError, match="share no protocol"):
        compare([str(tmp_path / "a"), str(tmp_path / "b")])
    with np.load(tmp_path / "a" / PER_QUERY) as file:
        arrays = dict(file)
    for name, value in {
        "image/valid": np.ones(30),
        "image/ap": arrays["image/ap"][1:],
        "image/inp": arrays["image/inp"] + 1,
        "image/first_ranks": 0 * arrays["image/first_ranks"],
        "image/own": np.zeros(2),
        "image/gallery_size": np.array("x"),
        "image/cmc": np.array(0.5),
    }.items():
        np.savez(tmp_path / "b" / PER_QUERY, **{**arrays, name: value})
        with pytest.raises(ValueError, match=f"b/{PER_QUERY} does not hold results: {name.partition('/')[2]}"):
            compare([str(tmp_path / "a"), str(tmp_path / "b")])
    (tmp_path / "b" / PER_QUERY).write_bytes(b"noise")
    with pytest.raises(ValueError, match=PER_QUERY):
        compare([str(tmp_path / "a"), str(tmp_path / "b")])
    (tmp_path / "b" / PER_QUERY).unlink()
    with pytest.raises(ValueError, match=PER_QUERY):
        compare([str(tmp_path / "a"), str(tmp_path / "b")])
    wrong = {"dataset": ["d"], "num_queries": "30"}
    for text in ("{}", "[" * 9999, *(json.dumps(about(tmp_path / "a") | {key: wrong[key]}) for key in wrong)):
        (tmp_path / "b" / "about.json").write_text(text)
        with pytest.raises(ValueError, match=r"about\.json is damaged"):
            compare([str(tmp_path / "a"), str(tmp_path / "b")])


def test_labels_are_told_apart_by_every_column():
    query, gallery = features(1.0, slice(None, 30)), features(1.0, slice(30, None))
    base = describe("d", "s", "", query, gallery)
    assert not difference(base, describe("e", "t", "", query, gallery))
    same = Features(torch.randn(51, 4), np.append(gallery.pids, -1), np.append(gallery.camids, 2))
    assert not difference(base, describe("d", "s", "", query, same))  # other features, and junk
    for column in ("pids", "camids", "distractors"):
        other = Features(gallery.embeddings, gallery.pids.clone(), gallery.camids.clone(), np.zeros(50, bool))
        getattr(other, column)[3] = 1 if column == "distractors" else 7
        assert "labels fingerprint" in difference(base, describe("d", "s", "", query, other))
    assert difference(base, describe("d", "s", "", gallery, query))


def test_about_is_read_back(tmp_path):
    report(tmp_path / "a", dataset="ä")
    found = load_about(tmp_path / "a")
    assert (found.dataset, found.num_queries, found.num_gallery) == ("ä", 30, 50)
    earlier = {name: value for name, value in about(tmp_path / "a").items() if name != "flip"}
    (tmp_path / "a" / ABOUT).write_text(json.dumps(earlier))
    assert load_about(tmp_path / "a") == found and not found.flip
