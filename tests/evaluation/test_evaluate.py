"""The evaluation program: what a user types and what then lies on disk; bad input ends with one line and status 2."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reid import Embedder, program
from reid.config import Config, EvaluateConfig, parse
from reid.data.images import Pixels
from reid.data.manifest import load_manifest
from reid.evaluation import evaluate, query_table, track
from reid.evaluation.about import ABOUT
from reid.evaluation.dataset_report import (
    BASELINES,
    CAMERAS,
    CONFUSIONS,
    FEATURES,
    HARD_QUERIES,
    METRICS,
    PER_QUERY,
    THRESHOLDS,
)
from reid.evaluation.evaluator import extract
from reid.evaluation.external_features import read_features
from reid.evaluation.sources import name_image
from reid.metrics import retrieval
from reid.metrics.protocols import PROTOCOLS
from reid.metrics.rerank import Reranked
from reid.model.network import ReIDModel
from reid.model.saved import STATE, format_state
from reid.reports.report import PICTURES
from reid.reports.tables import RERANKED
from reid.runs import checkpoint
from tests.support.drawn import HEIGHT, WIDTH, Drawn, draw_dataset
from tests.support.runs import make_run
from tests.support.undrawn import leave_out_pictures


@dataclass(frozen=True)
class Done:
    """A run, other data of the same name and of another, and what a full evaluation on all three said."""

    run: Path
    drawn: Drawn
    same_name: Drawn
    stdout: str


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return draw_dataset(tmp_path_factory.mktemp("other"), num_test=12, num_shards=2, seed=5)


def call(*args: str) -> None:
    wandb = [] if "--wandb" in " ".join(args) else ["--wandb=off"]
    evaluate.start(program.call(lambda: parse(EvaluateConfig, [*args, "--workers=0", *wandb])))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, drawn: Drawn, other: Drawn) -> Done:
    run = make_run(tmp_path_factory.mktemp("runs") / "full", drawn)
    entries = [{"step": step, "epoch": step // 5, "train/loss": 5.0, "train/cross_entropy": 4.0} for step in range(10)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        call(
            str(run), "--data", str(drawn.root), str(other.root), "--rerank", "--save-features",
            "--baselines", "histogram", "--ranks", "1", "3", "60", "--verification", "--open-set=0.5",
        )  # fmt: skip
    return Done(run, drawn, other, "\n".join(said))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_pictures(monkeypatch)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def folders(done: Done) -> tuple[Path, Path]:
    return done.run / "eval" / "drawn", done.run / "eval" / f"drawn-{done.same_name.manifest.fingerprint[:8]}"


def test_every_dataset_has_its_folder_and_all_files(done: Done) -> None:
    files = {METRICS, BASELINES, ABOUT, CAMERAS, THRESHOLDS, HARD_QUERIES, CONFUSIONS, PER_QUERY, *FEATURES}
    assert {"metrics.json", "baselines.json", "about.json", "cameras.json", "per_query.npz", "query.npz"} < files
    for folder in folders(done):
        names = {path.name for path in folder.iterdir()}
        assert names >= files | {"report.html"} | {f"{name}.png" for name in PICTURES if name != "tsne"}
    assert not (folders(done)[0] / "tsne.png").exists()  # six identities
    assert (folders(done)[1] / "tsne.png").exists()  # twelve


def test_the_figures_are_those_of_the_features(done: Done) -> None:
    """Extracted here by hand: the same model, one forward pass, every protocol."""
    config = Config()
    config.model.encoder, config.model.weights = "resnet10", "none"
    model = ReIDModel(16, config.model, config.data.image_size)
    checkpoint.load_weights(done.run / "checkpoints" / "epoch-0002-step-000000", model)
    query, gallery = (
        extract(
            model, done.drawn.root, done.drawn.manifest, split, Pixels(HEIGHT, WIDTH), batch_size=128, workers=0,
            device=torch.device("cpu"),
        )
        for split in ("query", "gallery")
    )  # fmt: skip
    figures = read(folders(done)[0] / "metrics.json")
    assert list(figures) == [*PROTOCOLS, *RERANKED.values()]
    for protocol in PROTOCOLS:
        assert figures[protocol] == retrieval.evaluate(query, gallery, protocol, max_rank=60).to_json()
    for protocol, row in RERANKED.items():
        assert figures[row] == retrieval.evaluate_search(Reranked(query, gallery, protocol), max_rank=60).to_json()
    saved = read_features(folders(done)[0] / "gallery.npz").features
    assert torch.equal(saved.embeddings, gallery.embeddings) and torch.equal(saved.distractors, gallery.distractors)
    assert len(figures["image"]["cmc"]) == 60  # as far as --ranks looks
    hardest, *_ = read(folders(done)[0] / HARD_QUERIES)
    place = int(np.flatnonzero(done.drawn.manifest.split("query").pids == int(hardest["file"][6:10]))[0])
    assert (done.drawn.raw / hardest["file"]).is_file() and hardest["row"] == place  # one image of each
    assert hardest["ap"] == min(retrieval.load_results(folders(done)[0] / PER_QUERY)["image"].ap)
    per_query = retrieval.load_results(folders(done)[0] / PER_QUERY)
    assert per_query["image"].to_json() == figures["image"]


def test_tables_of_all_datasets(done: Done) -> None:
    domains = read(done.run / "eval" / "domains.json")
    assert list(domains) == [folder.name for folder in folders(done)]
    for folder in folders(done):
        assert domains[folder.name] == read(folder / "metrics.json")
        assert f"report: {folder / 'report.html'}" in done.stdout
    text = (done.run / "eval" / "domains.txt").read_text()
    assert text.strip() in done.stdout
    assert text.splitlines()[0].split()[:2] == ["dataset", "protocol"] and "R60" in text
    assert "Compares with" in done.stdout and "colour histogram" in done.stdout


def test_other_data_is_noted_and_is_no_warning(done: Done) -> None:
    home, abroad = ((folder / "report.html").read_text() for folder in folders(done))
    assert "Across domains" not in home and "No warnings." in home
    assert "Across domains: the checkpoint was trained on other data" in abroad and "No warnings." in abroad


@pytest.mark.usefixtures("undrawn")
def test_a_report_of_other_data_is_never_overwritten(done: Done, tmp_path: Path) -> None:
    """The second dataset only, later: still not into the first one's folder."""
    first, second = (tmp_path / "eval" / folder.name for folder in folders(done))
    shutil.copytree(done.run / "eval", tmp_path / "eval")
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    call("--run", str(done.run), "--data", str(done.same_name.root), "--protocols=[image]",
         "--out", str(tmp_path / "eval"))  # fmt: skip
    assert before == {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert list(read(second / "metrics.json")) == ["image"]


@pytest.mark.usefixtures("undrawn")
def test_features_alone_give_the_same_figures(done: Done, tmp_path: Path) -> None:
    out = tmp_path / "foreign"
    files = [str(folders(done)[0] / f"{split}.npz") for split in ("query", "gallery")]
    call("--features", *files, "--out", str(out), "--rerank", "--ranks", "60")
    assert read(out / "metrics.json") == read(folders(done)[0] / "metrics.json")
    page = (out / "report.html").read_text()
    assert "As text: the feature files name no images" in page and "✓</b> " in page
    assert not (out / "rank_lists.png").exists()


@pytest.mark.usefixtures("undrawn")
def test_features_without_cameras_with_paths(drawn: Drawn, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("query", "gallery"):
        files = [str(path.relative_to(drawn.raw)) for paths in drawn.sources(split) for path in paths]
        pids = np.array([int(Path(file).name.split("_")[0]) for file in files])
        files[0] = "lost.jpg"
        files[1::2] = [str(drawn.raw / file) for file in files[1::2]]
        np.savez(tmp_path / f"{split}.npz", embeddings=rng.normal(size=(len(pids), 4)), pids=pids, paths=files)
    out = tmp_path / "report"
    call("--features", str(tmp_path / "query.npz"), str(tmp_path / "gallery.npz"), "--out", str(out),
         "--images", str(drawn.raw))  # fmt: skip
    page = html.unescape((out / "report.html").read_text())
    assert "No camera ids: images of the query's identity by its own camera are not removed" in page
    assert page.count("camera id") == 1 and "Left out: fewer than two known cameras." in page
    assert "query: no image has a camera id" not in page  # the note says it
    assert "18 gallery images have pid 0 and the file has no distractors key" in page
    assert (out / "rank_lists.png").is_file() and page.count("data:image/jpeg") > 10
    (out / "report.html").unlink()
    call("--features", str(tmp_path / "query.npz"), str(tmp_path / "gallery.npz"), "--out", str(out))
    page = (out / "report.html").read_text()  # paths now count from where no images are, or lie elsewhere
    assert "pictures of this page are absent or cannot be read" in page
    assert page.count(f"pictures outside of {tmp_path} are not shown; give --images a folder that holds them") == 1
    assert not (out / "rank_lists.png").exists()


def test_queries_that_cannot_match_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "q.npz", features=rng.normal(size=(6, 4)), pids=[1, 2, 3, 4, 5, 5], camids=[1] * 6)
    np.savez(tmp_path / "g.npz", features=rng.normal(size=(5, 4)), pids=[1, 2, 3, 9, 9], camids=[2, 2, 1, 1, 2])
    call("--features", str(tmp_path / "q.npz"), str(tmp_path / "g.npz"), "--out", str(tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "image, centroid: 4 of 6 queries have no possible match; left out" in page
    assert "2 identities of the queries have no image in the gallery" in page
    assert read(tmp_path / "out" / "metrics.json")["image"]["num_valid_queries"] == 2


def save_features(folder: Path, seed: int = 0, cameras: int = 2, images: int = 40) -> list[str]:
    """Arguments of an evaluation of random features of ten identities, by name or all by one camera."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    for name, size in (("q", 20), ("g", images)):
        pids = np.arange(size) % 10
        np.savez(folder / f"{name}.npz", features=rng.normal(size=(size, 4)), pids=pids,
                 camids=rng.integers(0, cameras, size))  # fmt: skip
    return ["--features", str(folder / "q.npz"), str(folder / "g.npz")]


@pytest.mark.usefixtures("undrawn")
def test_reranking_without_a_match_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All by one camera: among images no query can match, among centroids of complete identities every query can."""
    call(*save_features(tmp_path / "a", cameras=1), "--out", str(tmp_path / "out"), "--rerank")
    assert list(read(tmp_path / "out" / "metrics.json")) == ["centroid_all", RERANKED["centroid_all"]]
    assert not (tmp_path / "out" / "baselines.json").exists()
    page, said = (tmp_path / "out" / "report.html").read_text(), capsys.readouterr().out
    for warning in ("image is left out: none of the 20 queries", f"{RERANKED['image']} is left out: none of the 20"):
        assert warning in page and f"warning: {warning}" in said
    assert "leave the camera column empty" in said


@pytest.mark.usefixtures("undrawn")
def test_a_second_report_leaves_nothing_of_the_first(done: Done, tmp_path: Path) -> None:
    """The first report is the one of `done`, a copy of it."""
    out, saved = tmp_path / "eval" / "drawn", {"query.npz", "gallery.npz"}
    shutil.copytree(folders(done)[0], out)
    assert saved < {path.name for path in out.iterdir()}
    call("--run", str(done.run), "--protocols=[image]", "--out", str(tmp_path / "eval"))
    assert not saved & {path.name for path in out.iterdir()}


@pytest.mark.usefixtures("undrawn")
def test_a_second_report_on_features_leaves_their_files_and_no_cameras(tmp_path: Path) -> None:
    out = tmp_path / "out"
    call(*save_features(out, cameras=2), "--out", str(out))
    assert (out / "cameras.json").is_file()
    same = np.load(out / "g.npz")
    np.savez(out / "gallery.npz", **same), np.savez(out / "query.npz", **np.load(out / "q.npz"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reid.evaluation.dataset_report.measure_camera_pairs", lambda *_: "too many")
        call("--features", str(out / "query.npz"), str(out / "gallery.npz"), "--out", str(out))
    assert not (out / "cameras.json").exists() and (out / "query.npz").is_file() and (out / "gallery.npz").is_file()


@pytest.mark.usefixtures("undrawn")
def test_features_of_other_data_go_beside(tmp_path: Path) -> None:
    out, before = tmp_path / "out", {}
    call(*save_features(tmp_path / "a"), "--out", str(out))
    before = {path: path.read_bytes() for path in out.iterdir()}
    call(*save_features(tmp_path / "b", images=50), "--out", str(out))
    assert before == {path: path.read_bytes() for path in out.iterdir()}
    (beside,) = tmp_path.glob("out-*")
    about = read(beside / "about.json")
    assert beside.name == f"out-{about['labels_fingerprint'][:8]}" and about["num_gallery"] == 50
    call(*save_features(tmp_path / "a"), "--out", str(out), "--protocols=[image]")  # the same data: written anew
    assert list(read(out / "metrics.json")) == ["image"] and len(list(tmp_path.glob("out*"))) == 2


@pytest.mark.usefixtures("undrawn")
def test_the_timeout_reaches_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    start = evaluate.start_accelerator
    monkeypatch.setattr(evaluate, "start_accelerator", lambda *given: started.append(given[1]) or start(*given))
    call(*save_features(tmp_path / "a"), "--out", str(tmp_path / "out"), "--protocols=[image]", "--timeout_s=77")
    assert started == [77]


@pytest.mark.usefixtures("undrawn")
def test_checkpoints_by_path_and_by_name(drawn: Drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "a", drawn)
    for arguments in (
        ["--checkpoint", str(run / "checkpoints" / "epoch-0001-step-000000")],
        ["--run", str(run), "--checkpoint=epoch-0001-step-000000"],
    ):
        call(*arguments, "--protocols=[image]")
        page = (run / "eval" / "drawn" / "report.html").read_text()
        assert "<dt>checkpoint</dt><dd>epoch-0001-step-000000</dd>" in page
    call("--run", str(run), "--protocols=[image]", "--out", str(tmp_path / "elsewhere"))
    assert "epoch-0002" in (tmp_path / "elsewhere" / "drawn" / "report.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_runs_are_compared(done: Done, drawn: Drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = make_run(tmp_path / "second", drawn, seed=1)
    call("--run", str(second), "--protocols=[image]")
    capsys.readouterr()
    call("--compare", str(done.run), str(second), "--out", str(tmp_path / "out"))
    table = capsys.readouterr().out
    rows = read(tmp_path / "out" / "comparison.json")["drawn"]["image"]
    assert rows[0]["mAP"] == read(folders(done)[0] / "metrics.json")["image"]["mAP"]
    assert rows[1]["against"]["mean"] == pytest.approx(rows[1]["mAP"] - rows[0]["mAP"])
    assert str(second) in table and f"{100 * rows[1]['against']['mean']:+.1f}" in table
    page = html.unescape((tmp_path / "out" / "comparison.html").read_text()).replace("<wbr>", "")
    assert "data:image/jpeg" in page and re.search(r"query/\d+_c1s1_000000_01\.jpg", page)  # of flipped queries
    assert str(tmp_path / "out" / "comparison.html") in table


def evaluate_with(done: Done, knob: str, out: Path) -> tuple[torch.Tensor, np.ndarray]:
    """The queries' features and image APs of an evaluation that differs from that of `done` by a knob."""
    call("--run", str(done.run), "--out", str(out), "--save_features", "--protocols=[image]", knob)
    return query_features(out / "drawn"), retrieval.load_results(out / "drawn" / PER_QUERY)["image"].ap


def query_features(folder: Path) -> torch.Tensor:
    return read_features(folder / "query.npz").features.embeddings


@pytest.mark.usefixtures("undrawn")
def test_the_metric_changes_the_figures_and_not_the_features(done: Done, tmp_path: Path) -> None:
    features, ap = evaluate_with(done, "--metric=euclidean", tmp_path / "out")
    assert torch.equal(features, query_features(folders(done)[0]))
    assert not np.array_equal(ap, retrieval.load_results(folders(done)[0] / PER_QUERY)["image"].ap)


@pytest.mark.usefixtures("undrawn")
def test_bfloat16_features_are_near_those_of_float32_and_not_the_same(done: Done, tmp_path: Path) -> None:
    """bfloat16 has 8 significant bits: an operation is off by up to 2^-9 of its result. The 30 operations in a row of a
    resnet10 move a feature by up to 30 * 2^-9 of its length, to a cosine of 0.998; other images' features lie below.
    """
    low, full = evaluate_with(done, "--precision=bf16", tmp_path / "out")[0], query_features(folders(done)[0])
    assert low.isfinite().all() and not torch.equal(low, full)
    assert torch.cosine_similarity(low, full).min() > 0.998
    assert torch.cosine_similarity(low, full.roll(1, dims=0)).max() < 0.998


@pytest.mark.usefixtures("undrawn")
def test_the_flip_test_changes_the_features_and_says_so_everywhere(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The features of a few images are computed one by one, here and from their mirror images."""
    features, _ = evaluate_with(done, "--flip", tmp_path)
    assert "\ntrained + flip test  image" in capsys.readouterr().out
    assert "trained + flip test" in (tmp_path / "drawn" / "report.html").read_text()
    assert read(tmp_path / "drawn" / ABOUT)["flip"] and not read(folders(done)[0] / ABOUT)["flip"]
    embedder = Embedder.load(done.run, device="cpu")
    images = torch.stack([embedder.read(paths[0]) for paths in done.drawn.sources("query")[:3]])
    wanted = (embedder.embed_pixels(images) + embedder.embed_pixels(images.flip(3))) / 2
    rows = np.cumsum([0, *(len(paths) for paths in done.drawn.sources("query")[:2])])
    np.testing.assert_allclose(features[rows], wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    call("--compare", str(done.run), str(tmp_path / "drawn"))
    said = capsys.readouterr().out
    assert f"{tmp_path / 'drawn'} + flip test  image" in said and "Some of these reports are of a flip test" in said
    call("--compare", str(tmp_path / "drawn"), str(tmp_path / "drawn"))
    assert "Some of these" not in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_nested_lengths_have_rows_of_their_own(
    drawn: Drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", drawn, model__nested=[2, 4])
    call(str(run), "--save_features", "--protocols=[image]")
    folder = run / "eval" / "drawn"
    found, said = read(folder / BASELINES), capsys.readouterr().out
    assert list(found) == ["trained, first 2", "trained, first 4"]
    query, gallery = (read_features(folder / name).features for name in FEATURES)
    for length in (2, 4):
        wanted = retrieval.evaluate(query.cut(length), gallery.cut(length), "image").to_json()
        assert found[f"trained, first {length}"]["image"] == wanted and wanted["dimension"] == length
        assert f"\ntrained, first {length}  image" in said
        assert f"trained, first {length}" in (folder / "report.html").read_text()


class Recorder:
    """Keeps what an evaluation tells W&B."""

    last: Recorder
    where = ""

    def __init__(self, folder: Path, **knobs: Any) -> None:
        self.folder, self.knobs = folder, knobs
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.lines: dict[str, dict[str, list[float]]] = {}
        self.scalars: dict[str, float] = {}
        self.pictures: dict[str, Path] = {}
        self.steps: set[int] = set()
        Recorder.last = self

    def log_table(self, step: int, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        self.steps.add(step)
        self.tables[name] = [dict(zip(columns, row, strict=True)) for row in rows]

    def log_lines(self, step: int, name: str, xs: Sequence[int], lines: dict[str, list[float]], **texts: str) -> None:
        self.steps.add(step)
        assert all(len(line) == len(xs) and xs[0] == 1 for line in lines.values())
        self.lines[name] = lines

    def log_pictures(self, step: int, pictures: dict[str, Path]) -> None:
        self.steps.add(step)
        self.pictures |= pictures

    def log(self, step: int, values: dict[str, float]) -> None:
        self.steps.add(step)
        self.scalars = values

    def summarize(self, values: dict[str, float]) -> None:
        self.summary = values

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    leave_out_pictures(monkeypatch)
    monkeypatch.setattr(track, "Tracker", Recorder)
    return Recorder


def test_wandb_gets_what_the_report_has(drawn: Drawn, tmp_path: Path, recorder: type[Recorder]) -> None:
    run = make_run(tmp_path / "a", drawn)
    call("--run", str(run), "--ranks", "1", "7", "--wandb=offline", "--baselines=histogram")
    told, metrics = recorder.last, read(run / "eval" / "drawn" / "metrics.json")
    assert told.knobs["mode"] == "offline" and told.knobs["job_type"] == "eval" and told.finished
    rows = {row["protocol"]: row for row in told.tables["eval/table"] if row["model"] == "trained"}
    assert set(rows) == set(PROTOCOLS)
    assert rows["image"]["rank-7"] == metrics["image"]["cmc"][6]
    assert [row["protocol"] for row in told.tables["eval/cost"]] == list(PROTOCOLS)
    assert {path.name for path in told.pictures.values()} == {p.name for p in (run / "eval" / "drawn").glob("*.png")}
    for protocol in PROTOCOLS:
        assert told.scalars[f"eval/{protocol}/mAP"] == told.summary[f"eval/{protocol}/mAP"] == metrics[protocol]["mAP"]
        assert told.scalars[f"eval/{protocol}/rank1"] == metrics[protocol]["cmc"][0]
        lines = told.lines[f"eval/{protocol}/cmc"]
        assert list(lines) == ["trained", "colour histogram"] and lines["trained"] == metrics[protocol]["cmc"]


def test_the_table_of_queries_has_the_worst_and_a_sample(
    drawn: Drawn, tmp_path: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_table, "WORST", 2)
    monkeypatch.setattr(query_table, "SAMPLE", 3)
    run = make_run(tmp_path / "a", drawn)
    sampled = []
    for _ in range(2):
        call("--run", str(run), "--wandb=offline")
        rows = recorder.last.tables["eval/queries"]
        sampled.append([row["query file"] for row in rows])
    assert sampled[0] == sampled[1]
    result = retrieval.load_results(run / "eval" / "drawn" / PER_QUERY)["image"]
    files = [file for identity in drawn.sources("query") for file in identity if not file.name.startswith("-1")]
    by_name = {str(file.relative_to(drawn.raw)): place for place, file in enumerate(files)}
    assert [row["chosen as"] for row in rows] == ["worst", "worst", "sample", "sample", "sample"]
    aps = [row["AP"] for row in rows]
    assert aps[:2] == sorted(result.ap)[:2] and aps == sorted(aps)
    for row in rows:
        place = by_name[row["query file"]]
        assert result.valid.all() and row["AP"] == result.ap[place]
        assert row["rank of first match"] == result.first_ranks[place]
        assert row["query file"].startswith(f"query/{row['identity']:04d}_c{row['camera']}")
        lines = row["results"].splitlines()
        first = [line.startswith("✓") for line in lines]
        assert first == [f"/{row['identity']:04d}_" in line for line in lines]
        assert (first.index(True) + 1 if any(first) else 6) == min(row["rank of first match"], 6)
        assert row["query"].shape[0] == 128 and row["first 5 results"].shape[1] == len(lines) * (64 + 8)
        for number, is_right in enumerate(first):
            red, green, _ = map(int, row["first 5 results"][0, number * 72])
            assert (green > red + 30) == is_right  # of another identity: red, or grey after the last match


def test_an_evaluation_is_logged_at_the_step_of_its_checkpoint(
    drawn: Drawn, other: Drawn, tmp_path: Path, recorder: type[Recorder]
) -> None:
    """With the names of the training, and as the run's W&B settings say, unless told otherwise."""
    run = make_run(tmp_path / "a", drawn, track__wandb="off", track__project="mine", track__group="sweep")
    call(str(run), "--wandb=auto", "--protocols=[image, centroid]")
    told = recorder.last
    assert (told.knobs["mode"], told.knobs["project"], told.knobs["group"], told.knobs["name"]) == (
        "off", "mine", "sweep", "a",
    )  # fmt: skip
    assert "eval/queries" not in told.tables and told.steps == {0}  # its checkpoint does not say its steps
    rewrite_state(run, epoch=2, step=3, steps_per_epoch=7)
    call("--checkpoint", str(run / "checkpoints" / "epoch-0002-step-000003"), "--project=other", "--protocols=[image]")
    assert recorder.last.steps == {2 * 7 + 3 - 1} and recorder.last.scalars["epoch"] == 3
    assert recorder.last.knobs["project"] == "other"
    call(str(run), "--flip", "--protocols=[image]")
    assert recorder.last.knobs["name"] == "a, flip test"  # no other figures under the same name
    call(str(run), "--data", str(other.root), "--protocols=[image]")  # which has the name of the run's own data
    assert "eval/drawn/image/mAP" in recorder.last.scalars and "eval/image/mAP" not in recorder.last.scalars


def test_features_of_another_system_are_kept_offline(done: Done, tmp_path: Path, recorder: type[Recorder]) -> None:
    files = [str(folders(done)[0] / name) for name in FEATURES]
    call("--features", *files, "--out", str(tmp_path / "theirs"), "--wandb=auto", "--protocols=[image]")
    told = recorder.last
    assert (told.knobs["mode"], told.knobs["project"], told.knobs["name"]) == ("offline", "mctl-reid", "theirs")
    assert told.scalars == told.summary and "epoch" not in told.scalars and told.steps == {0}
    assert told.scalars["eval/image/mAP"] == read(folders(done)[0] / "metrics.json")["image"]["mAP"]
    assert {row["query"] is None and row["first 5 results"] is None for row in told.tables["eval/queries"]} == {True}


def test_wandb_gets_each_dataset_and_the_means_of_a_joint_training(
    drawn: Drawn, other: Drawn, tmp_path: Path, recorder: type[Recorder]
) -> None:
    run = make_run(tmp_path / "a", drawn, track__wandb="offline")
    words = [str(run), "--data", str(drawn.root), str(other.root), "--protocols=[image, centroid]", "--wandb=auto"]
    call(*words)
    assert recorder.last.knobs["mode"] == "offline"
    columns = [list(row.items())[:3] for row in recorder.last.tables["eval/domains"]]
    domains = read(run / "eval" / "domains.json")
    assert columns == [
        [("dataset", dataset), ("protocol", protocol), ("mAP", metrics["mAP"])]
        for dataset, protocols in domains.items()
        for protocol, metrics in protocols.items()
    ]
    scalars = recorder.last.scalars
    assert scalars["eval/image/mAP"] == domains["drawn"]["image"]["mAP"]  # the run's own data
    fingerprints = [each.manifest.fingerprint for each in (drawn, other)]
    rewrite_state(run, epoch=2, step=0, data=fingerprints)
    call(*words)
    scalars = recorder.last.scalars
    names = [f"eval/drawn-{fingerprint[:8]}/centroid/mINP" for fingerprint in fingerprints]
    assert scalars["eval/centroid/mINP"] == pytest.approx(sum(scalars[name] for name in names) / 2)
    assert scalars["epoch"] == 2


def rewrite_state(run: Path, epoch: int, step: int, **changes: Any) -> None:
    """Move the newest checkpoint of a run to another step. changes: of its state, and `data` of what it describes."""
    found = checkpoint.find(run / "checkpoints")[0]
    state = checkpoint.read_state(found)
    state["describes"]["data"] = changes.pop("data", state["describes"]["data"])
    state |= {"epoch": epoch, "step": step, **changes}
    (found / STATE).write_text(format_state({name: value for name, value in state.items() if name != "sha256"}))
    found.rename(found.with_name(f"epoch-{epoch:04d}-step-{step:06d}"))


def test_images_are_named_where_they_lie(drawn: Drawn) -> None:
    sources = [file for files in drawn.sources("gallery") for file in files if not file.name.startswith("-1")]
    identities = drawn.manifest.split("gallery")
    for row in (0, 7, len(sources) - 1):
        named = name_image(drawn.manifest, "gallery", row)
        pid = int(sources[row].name.split("_")[0])
        nth = 1 + [file for file in sources if file.name[:4] == sources[row].name[:4]].index(sources[row])
        assert f"(pid {pid}, row {row})" in named and any(shard.name in named for shard in identities.shards)
        assert pid == 0 or named.startswith(f"image {nth} of identity ")


def edited(drawn: Drawn, folder: Path, edit: Callable[[dict], object]) -> str:
    """A copy of the shards with another manifest."""
    shutil.copytree(drawn.root, folder)
    manifest = read(folder / "manifest.json")
    edit(manifest["splits"])
    del manifest["fingerprint"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    load_manifest(folder)
    return str(folder)


def without_query(drawn: Drawn, tmp_path: Path) -> list[str]:
    return [
        "--run",
        str(make_run(tmp_path / "a", drawn)),
        "--data",
        edited(drawn, tmp_path / "d", lambda s: s.pop("query")),
    ]


def junk_alone(drawn: Drawn, tmp_path: Path) -> list[str]:
    def edit(splits: dict) -> None:
        identities = splits["query"]["identities"]
        identities["pid"] = [-1] * len(identities["pid"])

    return ["--run", str(make_run(tmp_path / "a", drawn)), "--data", edited(drawn, tmp_path / "d", edit)]


def twice(drawn: Drawn, tmp_path: Path) -> list[str]:
    return ["--run", str(make_run(tmp_path / "a", drawn)), "--data", str(drawn.root), f"{drawn.root}/"]


def not_finite(drawn: Drawn, tmp_path: Path) -> list[str]:
    return ["--run", str(make_run(tmp_path / "a", drawn, damage=float("nan")))]


def no_checkpoint(drawn: Drawn, tmp_path: Path) -> list[str]:
    run = make_run(tmp_path / "a", drawn)
    shutil.rmtree(run / "checkpoints")
    return ["--run", str(run)]


def another_model(drawn: Drawn, tmp_path: Path) -> list[str]:
    wide = make_run(tmp_path / "wide", drawn, encoder="resnet18")
    return [
        "--run",
        str(make_run(tmp_path / "a", drawn)),
        "--checkpoint",
        str(checkpoint.find(wide / "checkpoints")[0]),
    ]


def exchanged_file(drawn: Drawn, tmp_path: Path) -> list[str]:
    """All checkpoints hold the tensors of another model."""
    run, wide = make_run(tmp_path / "a", drawn), make_run(tmp_path / "wide", drawn, encoder="resnet18")
    for path in checkpoint.find(run / "checkpoints"):
        shutil.copy(wide / "checkpoints" / path.name / "model.safetensors", path)
    return ["--run", str(run)]


def unknown_checkpoint(drawn: Drawn, tmp_path: Path) -> list[str]:
    return ["--run", str(make_run(tmp_path / "a", drawn)), "--checkpoint=best"]


def mismatched(drawn: Drawn, tmp_path: Path) -> list[str]:
    for name, dimensions in (("q", 4), ("g", 5)):
        np.savez(tmp_path / f"{name}.npz", features=np.ones((3, dimensions)), pids=[1, 2, 3], camids=[1, 2, 3])
    return ["--features", str(tmp_path / "q.npz"), str(tmp_path / "g.npz"), "--out", str(tmp_path / "out")]


def huge(drawn: Drawn, tmp_path: Path) -> list[str]:
    for name, size in (("q", 1.0), ("g", 1e25)):
        np.savez(tmp_path / f"{name}.npz", features=np.full((3, 4), size), pids=[1, 2, 3], camids=[1, 2, 3])
    return ["--features", str(tmp_path / "q.npz"), str(tmp_path / "g.npz"), "--out", str(tmp_path / "out")]


def out_is_a_file(drawn: Drawn, tmp_path: Path) -> list[str]:
    (tmp_path / "out").write_text("kept")
    return ["--features", "none.npz", "none.npz", "--out", str(tmp_path / "out")]


def eval_is_a_file(drawn: Drawn, tmp_path: Path) -> list[str]:
    run = make_run(tmp_path / "a", drawn)
    (run / "eval").write_text("kept")
    return ["--run", str(run)]


def no_match(drawn: Drawn, tmp_path: Path) -> list[str]:
    for name, pid in (("q", 1), ("g", 2)):
        np.savez(tmp_path / f"{name}.npz", features=np.ones((3, 4)), pids=[pid] * 3, camids=[1, 2, 3])
    return ["--features", str(tmp_path / "q.npz"), str(tmp_path / "g.npz"), "--out", str(tmp_path / "out")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (without_query, "/d: the query split holds no image; give --data shards"),
        (junk_alone, "the query split holds no image; give --data shards"),
        (twice, "holds the same data as"),
        (
            not_finite,
            "query: the feature of image 1 of identity 1001 (pid 1001, row 0) in query-0000.tar is not finite",
        ),
        (no_checkpoint, "holds no checkpoint yet; train the run first"),
        (another_model, "holds another model: its encoder is 'resnet18', the run's config.yaml says 'resnet10'"),
        (exchanged_file, "damaged checkpoint: model.safetensors has other bytes than were written"),
        (unknown_checkpoint, "holds epoch-0002-step-000000, epoch-0001-step-000000"),
        (mismatched, "query embeddings have 4 dimensions, gallery embeddings 5"),
        (huge, "g.npz: the feature of row 0 is too large for float32 (3 of 3 rows are)"),
        (out_is_a_file, "out cannot be written: File exists; give another --out"),
        (eval_is_a_file, "eval cannot be written: File exists; give another --out"),
        (lambda *_: ["--compare", "a", "b", "--out=/proc/none"], "/proc/none cannot be written"),
        (lambda *_: ["--run=a", "--rerank", "--protocols=[centroid]"], "--rerank re-ranks image and centroid_all; add"),
        (no_match, "none of the 3 queries has a possible match"),
        (lambda *_: ["--run=none/such"], "none/such: no such folder"),
        (lambda *_: ["--checkpoint=none"], "give --run with its name, or its path"),
        (lambda *_: [], "give one of: --run"),
        (lambda *_: ["--run=a", "--compare", "a", "b"], "give one of: --run"),
        (lambda *_: ["--compare", "a"], "give two runs or reports"),
        (lambda *_: ["--compare", "a", "b"], "a holds no report"),
        (lambda *_: ["--features", "a", "b"], "--out is missing"),
        (lambda *_: ["--features", "a", "--out=b"], "give two, the query's and the gallery's"),
        (lambda *_: ["--features", "a", "b", "--out=c", "--data", "d"], "--data works only with --run"),
        (lambda *_: ["--features", "a", "b", "--out=c", "--flip"], "--flip works only with --run"),
        (lambda *_: ["--run=a", "--ranks", "0", "5"], "--ranks [0, 5]: the first rank is 1"),
        (lambda *_: ["--run=a", "--ranks"], "give at least one rank"),
        (lambda *_: ["--run=a", "--protocols=[]"], "--protocols is empty"),
    ],
)
def test_bad_input_is_one_line(
    drawn: Drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    arguments: Callable[[Drawn, Path], list[str]], message: str,
) -> None:  # fmt: skip
    given = arguments(drawn, tmp_path)
    with pytest.raises(SystemExit) as stopped:
        call(*given)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said
    assert not list(tmp_path.glob("**/report.html"))


@pytest.mark.parametrize("ranks", [["one"], ["1.5"]])
def test_ranks_are_numbers(ranks: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        call("--run=a", "--ranks", *ranks)
    assert stopped.value.code == 2 and f"ranks = {ranks[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["--data", "a", "b c", "--run", "r"], {"data": ["a", "b c"], "run": "r"}),
        (["runs/x", "--rerank"], {"run": "runs/x", "rerank": True}),
        (["runs/x", "--save-features", "--batch-size=7"], {"run": "runs/x", "save_features": True, "batch_size": 7}),
        (["--data=a"], {"data": ["a"]}),
        (["--data=[a, b]"], {"data": ["a", "b"]}),
        (["--baselines=[untrained,histogram]", "--rerank"], {"baselines": ["untrained", "histogram"], "rerank": True}),
        (["--rerank", "false", "--ranks", "3", "9"], {"rerank": False, "ranks": [3, 9]}),
        (["--rerank=true", "--save_features", "--ranks=2"], {"rerank": True, "save_features": True, "ranks": [2]}),
        (["--compare", "a", "b", "c"], {"compare": ["a", "b", "c"]}),
    ],
)
def test_lists_and_switches_as_people_type_them(typed: list[str], expected: dict[str, object]) -> None:
    options = parse(EvaluateConfig, typed)
    assert {name: getattr(options, name) for name in expected} == expected


def test_lists_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("run: r\ndata: [a, b]\nranks:\n- 2\nrerank: true\n")
    options = parse(EvaluateConfig, ["--config", str(tmp_path / "e.yaml"), "--ranks", "4"])
    assert (options.run, options.data, options.ranks, options.rerank) == ("r", ["a", "b"], [4], True)
