"""The report: its tables and charts are right, its page is self-contained, escaped and readable in a browser."""

import ast
import base64
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from reid.metrics.protocols import PROTOCOLS
from reid.reports.analysis import CameraPairs, Embedding, ScoreHistogram
from reid.reports.charts import (
    choose_colors,
    color_range,
    draw_ap_histogram,
    draw_camera_pairs,
    draw_differences,
    draw_points,
    draw_scores,
)
from reid.reports.curves import Panel, TrainingCurves, draw_panel
from reid.reports.figures import draw_cmc, draw_cmc_zoom, draw_rank_lists, wrap_caption
from reid.reports.hard_examples import Confusion, HardQuery
from reid.reports.html import render
from reid.reports.rank_lists import RankedImage, RankList
from reid.reports.report import PICTURES, Report, list_pictures, write_report
from reid.reports.style import DARK, GREEN, GREY, LIGHT, RED
from reid.reports.tables import RERANKED, format_notes, format_results, list_cost
from tests.support.undrawn import leave_out_charts

REID = Path(__file__).parents[2] / "reid"


def figures(mean_ap, rank_1, gallery=15_913, max_rank=50):
    return {
        "mAP": mean_ap,
        "mAP_trapezoid": mean_ap - 0.0123,
        "mAP_interval": [mean_ap - 0.01, mean_ap + 0.01],
        "mINP": mean_ap / 2,
        "cmc": [rank_1 + (1 - rank_1) * (1 - 0.9**i) for i in range(max_rank)],
        "num_valid_queries": 3367,
        "num_queries": 3368,
        "gallery_size": gallery,
    }


RESULTS = {
    "trained": {"image": figures(0.854, 0.939), "centroid": figures(0.9674, 0.948, 3544)},
    "untrained": {"image": figures(0.031, 0.082)},
}


def picture(caption="id 7, camera 2", correct=True, shape=(64, 32), seed=0):
    blocks = np.random.default_rng(seed).integers(90, 160, (4, 2, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(blocks).resize(shape[::-1], Image.Resampling.NEAREST))
    return RankedImage(image, caption, correct)


def rank_list(right=3, wrong=2, late=0, **options):
    gallery = [picture(correct=i < right, seed=i, **options) for i in range(right + wrong + late)]
    for entry in gallery[right + wrong :]:
        entry.late = True
    return RankList(picture(), gallery, ap=0.7266, title="median")


class Page(HTMLParser):
    """Text, image sources, attributes and balance of a page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.sources, self.attributes = [], [], [], set()
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "srcset")]
        self.attributes |= {name for name, _ in attributes}
        if tag not in ("meta", "link", "img", "source", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


THRESHOLDS = {
    "verification": {
        "pairs": {"genuine": 3000, "impostor": 400000},
        "thresholds": {
            "0.01": {
                "threshold": 0.51, "false_positive_rate": 0.0099, "true_positive_rate": 0.93,
                "false_positive_rate_interval": [0.008, 0.012], "true_positive_rate_interval": [0.91, 0.95],
            }
        },
        "equal_error": {"threshold": 0.42, "rate": 0.04},
        "roc": {"false_positive_rate": [1e-5, 1e-2, 1.0], "true_positive_rate": [0.5, 0.93, 1.0]},
    },
    "open_set": {
        "left_out": 0.5,
        "queries": {"mated": 1600, "unmated": 1768},
        "thresholds": {"0.1": {"threshold": 0.6, "false_alarm_rate": 0.0995, "identification_rate": 0.81}},
    },
}  # fmt: skip


def write(folder, results=RESULTS, rank_lists=(), **more):
    page = write_report(folder, Report("market1501", results, rank_lists=list(rank_lists), **more))
    return Page(page.read_text(encoding="utf-8"))


def camera_pairs():
    mean_ap = np.array([[np.nan, 0.25, 0.75], [0.5, np.nan, 0.125]])
    return CameraPairs(np.array([1, 2]), np.array([1, 2, 5]), mean_ap, np.array([[0, 8, 3], [4, 0, 9]]))


def embedding(identities=12, total=12, tsne=True):
    rng = np.random.default_rng(0)
    mean_ap = np.where(np.arange(identities) % 4, np.linspace(0, 1, identities), np.nan)
    points = rng.normal(size=(2, identities, 2))
    return Embedding(
        np.arange(identities), mean_ap, points[0], np.array([0.5, 0.25]), points[1] if tsne else None, total
    )


def hard_query(name="query/a_long_name_0001.jpg"):
    query, wrong = picture("id 7 · camera 2"), picture("id 9 · camera 1", correct=False, seed=1)
    query.name, wrong.name = name, "gallery/b.jpg"
    return HardQuery(query, 0.125, 1234, wrong, 0.75)


def training():
    x = np.arange(1, 30) / 10
    losses = {"loss": (x, 5 / x), "triplet × 1": (x, 2 / x)}
    return TrainingCurves([Panel("Loss", losses, x_end=3.0), Panel("lr", {"lr": (x, 10.0**-x)}, x_end=3.0, log=True)])


def scores(shift=0):
    spread = np.exp(-(np.linspace(-3, 3, 128) ** 2) * 8)
    genuine, impostor = (np.roll(np.round(size * spread), at).astype(int) for size, at in ((90, 20 + shift), (9000, 0)))
    return ScoreHistogram(genuine, impostor, 0.4, 0.05, 300, 900)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The folder of a report with all parts, written while pyplot could not be imported. Tests only read it."""
    folder = tmp_path_factory.mktemp("new") / "folder"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.pyplot", None)
        write(
            folder, facts={"run": "runs/a"}, warnings=["one"], notes=["n" * 300], rank_lists=[rank_list()],
            ap=np.linspace(0, 1, 30), cameras=camera_pairs(), embedding=embedding(), thresholds=THRESHOLDS,
            hard_queries=[hard_query()], curves=training(), scores=scores(),
            confusions=[Confusion(7, 9, 2, 3, picture(), picture(), 1, 0.75)],
        )  # fmt: skip
    return folder


def html_of(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def without_charts(monkeypatch):
    leave_out_charts(monkeypatch)


def test_table_for_the_terminal():
    lines = format_results(RESULTS).splitlines()
    header = ["model", "protocol", "gallery", "queries", "mAP", "95%", "mINP", "R1", "R5", "R10", "trapezoid"]
    assert lines[0].split() == header
    cells = ["15,913", "3,367", "85.4", "84.4–86.4", "42.7", "93.9", "96.0", "97.6", "84.2"]
    assert lines[2].split() == ["trained", "image", *cells]
    assert lines[3].split()[:4] == ["centroid", "3,544", "3,367", "96.7"]
    assert lines[4].split()[:2] == ["untrained", "image"]
    assert len({len(line) for line in lines}) == 1


def test_any_ranks():
    header, _, row, *_ = format_results(RESULTS, ranks=(1, 2, 50, 51)).splitlines()
    assert header.split()[-5:] == ["R1", "R2", "R50", "R51", "trapezoid"]
    cmc = RESULTS["trained"]["image"]["cmc"]
    assert row.split()[-5:-1] == [f"{100 * cmc[0]:.1f}", f"{100 * cmc[1]:.1f}", f"{100 * cmc[49]:.1f}", "-"]


def test_notes_name_what_each_protocol_compares_with():
    results = {"trained": {name: figures(0.5, 0.5) for name in (*PROTOCOLS, *RERANKED.values())}}
    said = format_notes(results)
    assert "mean reciprocal rank" in said and "never compare" in " ".join(said.split())
    lines = {line.split("  ")[1]: line for line in said.splitlines() if line.startswith("  ")}
    assert set(lines) == {*PROTOCOLS, *RERANKED.values()}
    assert "MCTL papers, and nothing else" in lines["ctl_published"] and "BoT" in lines["image"]


def test_cost_of_galleries():
    image = figures(0.8, 0.9, gallery=1000) | {"gallery_bytes": 3 << 20, "comparisons": 40_000}
    centroid = figures(0.9, 0.9, gallery=50) | {"gallery_bytes": 1 << 20, "comparisons": 2_000}
    rows = list_cost({"image": image, "centroid": centroid, RERANKED["image"]: image})
    assert rows == [
        ("image", "1,000", "3.00", "40,000", "100.0%", "80.0", "90.0"),
        ("centroid", "50", "1.00", "2,000", "5.0%", "90.0", "90.0"),
    ]


@pytest.mark.usefixtures("without_charts")
def test_page_has_the_metrics_of_the_table(tmp_path):
    text = write(tmp_path).text
    assert "trained image 15,913 3,367 85.4 84.4–86.4 42.7 93.9 96.0 97.6 84.2 centroid" in text
    assert "never compare it with image mAP" in text and "mean reciprocal rank" in text
    assert "3,367 of 3,368 queries have a match" in text
    assert "Compares with: the image-level tables of BoT" in text
    assert "No warnings." in text


def test_page_is_self_contained(full):
    html = html_of(full)
    page = Page(html)
    assert not re.search(r"https?:|<script|@import|url\(", html)
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html
    assert len(page.sources) == 2 * 10 + 6 + 4  # ten charts, dark and light; a query and its five; two pairs
    assert len(set(page.sources[: 2 * 2])) == 4
    for source in page.sources:
        Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))).verify()


def test_everything_from_outside_is_escaped(tmp_path):
    evil = '<img src=x onerror="alert(1)">&\'$x^2$ $'
    results = {evil: {evil: figures(0.5, 0.5), "image": figures(0.4, 0.4)}}
    ranks = RankList(picture(evil), [picture(evil, False)], 0.5, evil)
    report = Report(
        evil, results, {evil: evil, "run": evil}, [evil], [evil], [ranks], evil, cameras=evil, embedding=evil,
        scores=evil, hard_queries=[hard_query(evil)], curves=TrainingCurves([], evil),
    )  # fmt: skip
    path = write_report(tmp_path, report)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.text.count(evil) >= 16 and "onerror" not in page.attributes
    assert all(source.startswith("data:image/") for source in page.sources)


@pytest.mark.usefixtures("without_charts")
def test_facts_and_warnings_are_listed(tmp_path):
    text = write(tmp_path, facts={"checkpoint": "runs/a", "processes": "2"}, warnings=["4 broken", "no cameras"]).text
    assert "checkpoint runs/a processes 2" in text
    assert "2 warnings 4 broken no cameras" in text and "No warnings" not in text


def test_thresholds_are_two_tables(full):
    text = Page(html_of(full)).text
    assert "FPR 0.01 0.5100 9.90e-03 8.0e-03–1.2e-02 93.0% 91.0–95.0%" in text
    assert "equal error 0.4200 4.00e-02 - 96.0% -" in text
    assert "false alarms 0.1 0.6000 10.0% 81.0%" in text and "400,000 of two persons" in text


def test_pictures_are_files_next_to_the_page(full):
    assert {path.name for path in full.glob("*.png")} == {f"{name}.png" for name in PICTURES}
    assert set(list_pictures(full)) == set(PICTURES)
    for name in PICTURES:
        image = Image.open(full / f"{name}.png")
        assert image.width > 800 and image.height > 200, name


@pytest.mark.usefixtures("without_charts")
def test_pictures_of_an_earlier_report_are_removed(full, tmp_path):
    folder = shutil.copytree(full, tmp_path / "copy")
    write(folder)
    assert {path.stem for path in folder.glob("*.png")} == {"cmc", "cmc_zoom"} == set(list_pictures(folder))


@pytest.mark.parametrize(("right", "wrong", "late"), [(4, 0, 0), (0, 4, 0), (2, 2, 2)])
def test_frames_are_green_for_right_red_for_wrong_and_grey_after_the_last_match(right, wrong, late):
    pixels = pixels_of(draw_rank_lists([rank_list(right, wrong, late)]))
    green, red, grey = count(pixels, GREEN), count(pixels, RED), count(pixels, GREY)
    assert (green > 500) == (right > 0) and (red > 500) == (wrong > 0) and (grey > 500) == (late > 0)
    assert green * wrong == pytest.approx(red * right, rel=0.1)


def test_captions_break_between_parts():
    assert wrap_caption("0.54 · id 260 · camera 1") == ["0.54 · id 260", "camera 1"]
    assert wrap_caption("distractor · camera 12") == ["distractor", "camera 12"]
    assert all(len(line) <= 18 for line in wrap_caption("a_very_long_name_without_any_space · id 1"))


def pixels_of(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def count(pixels, colour):
    return int((pixels == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=-1).sum())


@pytest.mark.usefixtures("without_charts")
@pytest.mark.parametrize("shape", [(105, 105), (30, 90), (600, 200), (1, 1)])
def test_any_picture_size(tmp_path, shape):
    write(tmp_path, rank_lists=[rank_list(shape=shape, caption="a_very_long_name_without_any_space_" * 4)])
    assert Image.open(tmp_path / "rank_lists.png").height < 1500


@pytest.mark.usefixtures("without_charts")
@pytest.mark.parametrize("max_rank", [1, 3, 50, 120])
def test_any_length_of_curve(tmp_path, max_rank):
    results = {str(i): {f"p{j}": figures(0.3, 0.2, max_rank=max_rank) for j in range(6)} for i in range(5)}
    write(tmp_path, results)
    drawn = {"cmc": draw_cmc, "cmc_zoom": draw_cmc_zoom} if max_rank > 1 else {"cmc": draw_cmc}
    alone = tmp_path / "alone"
    write(alone, {"a": results["0"]})
    assert ("cmc_zoom" in list_pictures(alone)) == (max_rank > 10)  # otherwise it would repeat the first chart
    assert set(list_pictures(tmp_path)) == set(drawn)
    assert all(pixels_of(draw(results, "d")).shape[1] > 800 for draw in drawn.values())
    assert ("-" in format_results(results).splitlines()[2].split()) == (max_rank < 10)


def test_curves_differ_by_theme_and_data():
    other = {"trained": {"image": figures(0.5, 0.2)}}
    assert len({draw_cmc(RESULTS, "a"), draw_cmc(other, "a"), draw_cmc(RESULTS, "b")}) == 3


@pytest.mark.usefixtures("without_charts")
def test_one_model_needs_no_name(tmp_path):
    one, both = (" ".join(write(tmp_path, results).text.split()) for results in ({"a": RESULTS["trained"]}, RESULTS))
    assert "second chart: trained" in both and "second chart" not in one
    same = {"a": RESULTS["trained"]}, {"b": RESULTS["trained"]}
    assert draw_cmc(same[0], "d") == draw_cmc(same[1], "d")  # no name of the model in the legend


def test_equal_curves_can_all_be_seen():
    """The image protocol's is on top; the others are wider below it."""
    names = ("centroid", "image", "centroid_all")
    pixels = pixels_of(draw_cmc({"a": {name: figures(0.5, 0.5) for name in names}}, "d"))
    seen = [count(pixels[: len(pixels) * 3 // 4], colour) for colour in LIGHT.lines[:3]]
    apart = {name: figures(0.5, 0.1 + 0.2 * i) for i, name in enumerate(names)}
    pixels = pixels_of(draw_cmc({"a": apart}, "d"))
    alone = [count(pixels[: len(pixels) * 3 // 4], colour) for colour in LIGHT.lines[:3]]
    assert min(seen) > 0.4 * min(alone)
    assert draw_cmc({"a": {"image": figures(0.5, 0.5), "centroid": figures(0.5, 0.5, max_rank=9)}}, "d")


def test_each_protocol_has_its_color():
    for theme in (LIGHT, DARK):
        assert len(set(theme.lines)) >= len(PROTOCOLS) + len(RERANKED)


def test_dots_are_visible_on_dark_paper():
    paper = np.array([int(DARK.paper[i : i + 2], 16) for i in (1, 3, 5)])
    darkest = 255 * np.array(choose_colors(DARK)(0.0)[:3])
    assert np.abs(darkest - paper).max() > 80 and choose_colors(LIGHT).name == "viridis"


def test_no_pyplot(full):
    """pyplot keeps figures in memory and may need a display. The report of `full` was written without it."""
    assert set(list_pictures(full)) == set(PICTURES)
    imported = set()
    for path in REID.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    assert "matplotlib.figure.Figure" in imported
    assert not imported & {"matplotlib.pyplot", "matplotlib.pylab", "pylab"}


@pytest.mark.parametrize("results", [{}, {"trained": {}}])
def test_nothing_to_report(tmp_path, results):
    with pytest.raises(ValueError, match="nothing to report"):
        write(tmp_path, results)


def test_pictures_must_be_rgb_bytes(tmp_path):
    grey = RankList(picture(), [RankedImage(np.zeros((8, 8), np.uint8), "grey one", True)], 1.0, "best")
    with pytest.raises(ValueError, match=r"image 'grey one' is uint8 \(8, 8\); give uint8 \(height, width, 3\)"):
        write(tmp_path, rank_lists=[grey])


@pytest.mark.usefixtures("without_charts")
def test_reasons_for_missing_parts(tmp_path):
    without = {"cameras": "one camera", "embedding": "2 identities", "rank_lists_note": "As text: no paths."}
    text = write(
        tmp_path, rank_lists=[RankList(bare("asked"), [bare("a"), bare("b", False)], 0.5, "best")], **without
    ).text
    assert "Left out: one camera." in text and "Left out: 2 identities." in text
    assert "As text: no paths. best AP 50.0% asked ✓ a ✗ b" in text
    assert not (tmp_path / "rank_lists.png").exists()


def bare(caption, correct=True):
    return RankedImage(None, caption, correct)


@pytest.mark.usefixtures("without_charts")
def test_a_rank_list_without_some_images(tmp_path):
    text = write(tmp_path, rank_lists=[RankList(picture(), [picture(), bare("lost")], 0.5, "best")]).text
    assert "no image 2 ✓ lost" in text
    assert "Green ✓" in text and "grey –" in text
    assert (tmp_path / "rank_lists.png").is_file()


@pytest.mark.usefixtures("without_charts")
def test_hard_queries_and_confused_identities_are_tables_of_files(tmp_path):
    lost = replace(hard_query(), wrong=None)
    pair = Confusion(7, 9, 2, 3, hard_query().query, hard_query().wrong, 4, 0.75)
    text = write(tmp_path, hard_queries=[hard_query(), lost], confusions=[pair]).text
    asked = "query/ a_ long_ name_ 0001.jpg id 7 · camera 2"
    assert f"{asked} gallery/ b.jpg id 9 · camera 1 0.75 12.5 1,234" in text and f"{asked} none - 12.5 1,234" in text
    assert f"{asked} gallery/ b.jpg id 9 · camera 1 0.75 4 2 of 3" in text
    assert "None: no query finds another identity before its first match." in write(tmp_path, confusions=[]).text
    assert lost.to_json() == {
        "file": "query/a_long_name_0001.jpg", "image": "id 7 · camera 2", "row": -1, "ap": 0.125,
        "first_match_rank": 1234, "best_wrong": None,
    }  # fmt: skip


@pytest.mark.usefixtures("without_charts")
def test_the_page_says_at_its_top_which_run_it_is_of_and_when(tmp_path):
    text = write(tmp_path, facts={"run": "runs/one/", "checkpoint": "epoch-0003", "made": "2026-11-26 13:07 UTC"}).text
    assert "market1501 run one · epoch-0003 · 2026-11-26 13:07 UTC" in text
    assert "one · market1501 · evaluation" in text  # the window's title


def test_columns_explain_themselves(full):
    heads = re.findall(r'<th scope="col"[^>]*title="([^"]*)">([^<]*)</th>', html_of(full))
    unexplained = {name for about, name in heads if not about}
    assert len(heads) > 20 and unexplained <= {"protocol", "query", "nearest wrong image", "found first"}


def test_the_camera_map_is_scaled_to_its_range():
    assert color_range(np.array([0.2, np.nan, 0.9])) == (0.2, 0.9)
    low, high = color_range(np.array([0.97, 0.99]))
    assert high <= 1 and high - low == pytest.approx(0.1) and low <= 0.97
    assert color_range(np.array([np.nan])) == (0, 1)
    pixels = pixels_of(draw_camera_pairs(camera_pairs())).astype(int)
    drawn = np.flatnonzero((np.abs(pixels - 255).sum(axis=-1) > 30).any(axis=0))
    assert abs(drawn[0] - (pixels.shape[1] - 1 - drawn[-1])) < 0.05 * pixels.shape[1]  # centred


def test_images_have_alternative_texts(full):
    html = html_of(full)
    words = re.findall(r'<img src="[^"]*" alt="([^"]*)"', html)
    assert len(words) == html.count("<img ") and all(len(word) > 5 for word in words)
    assert any("lowest 2 → 5 with 12.5% (9 queries), highest 1 → 5 with 75.0% (3 queries)" in word for word in words)
    assert any("quartiles 25.0%, 50.0%, 75.0%" in word for word in words)
    assert any("12 identities" in word and "50.0% and 25.0% of the variance" in word for word in words)


@pytest.mark.usefixtures("without_charts")
def test_a_sample_of_identities_is_mentioned(tmp_path):
    text = write(tmp_path, embedding=embedding(total=3000, tsne=False)).text
    assert "12 identities, a fixed random sample of 3,000." in text
    assert "t-SNE is left out: 12 identities" in text and not (tmp_path / "tsne.png").exists()


def test_the_zoom_shows_only_the_first_model_and_ranks():
    def changed(model, rank):
        cmc = [*RESULTS[model]["image"]["cmc"]]
        cmc[rank - 1] -= 0.03
        return RESULTS | {model: RESULTS[model] | {"image": RESULTS[model]["image"] | {"cmc": cmc}}}

    plain = draw_cmc_zoom(RESULTS, "a")
    assert draw_cmc_zoom(changed("trained", 9), "a") != plain
    assert draw_cmc_zoom(changed("trained", 11), "a") == plain == draw_cmc_zoom(changed("untrained", 3), "a")


def test_charts_differ_by_theme_and_data():
    points = np.random.default_rng(0).normal(size=(9, 2))
    ap = np.linspace(0, 1, 9)
    pairs = camera_pairs()
    for draw, one, other in (
        (draw_ap_histogram, (ap,), (ap / 2,)),
        (draw_camera_pairs, (pairs,), (replace(pairs, mean_ap=pairs.mean_ap / 2),)),
        (draw_points, (points, ap, "t", ("x", "y")), (points, ap[::-1], "t", ("x", "y"))),
        (draw_scores, (scores(),), (scores(20),)),
        (draw_panel, (training().panels[0],), (training().panels[1],)),
        (draw_differences, ([("a", 0.1, 0.05, 0.2)],), ([("a", -0.1, -0.2, 0.1)],)),
    ):
        first = draw(*one, LIGHT)
        assert len({first, draw(*one, DARK), draw(*other, LIGHT)}) == 3
        assert draw(*one, LIGHT) == first


@pytest.mark.parametrize("count", [1, 17, 40])
def test_any_number_of_cameras(count):
    pairs = CameraPairs(
        np.arange(count), np.arange(count), np.full((count, count), np.nan), np.zeros((count, count), int)
    )
    assert Image.open(io.BytesIO(draw_camera_pairs(pairs))).width > 800


def test_a_template_without_a_value_is_an_error():
    with pytest.raises(UndefinedError, match="'lists' is undefined"):
        render("search.html", title="title", search_facts={})


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page in")
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(full, tmp_path, dark):
    """A script in a copy of the page, in frames as wide as a phone and a screen, measures the page there."""
    html = html_of(full)
    probe = """<script>addEventListener('load', () => parent.document.title += '|' + [
        window.name, document.documentElement.scrollWidth, [...document.images].every(image => image.naturalWidth > 0),
        Math.max(...[...document.querySelectorAll('tr:not(.model, .pictures tr)')].map(row => row.offsetHeight)),
        getComputedStyle(document.body).backgroundColor].join(';'))</script></body>"""
    policy = re.search(r"<meta http-equiv=[^>]*>", html)[0]
    (tmp_path / "probe.html").write_text(html.replace(policy, "").replace("</body>", probe), encoding="utf-8")
    frame = '<iframe name="{0}" src="probe.html" style="border:0;width:{0}px;height:800px"></iframe>'
    frames = "".join(frame.format(width) for width in (390, 1100))
    (tmp_path / "frame.html").write_text(f"<title>found</title><body>{frames}</body>")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=5000", "--dump-dom",
        (tmp_path / "frame.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stderr[-2000:]
    found = [told.split(";") for told in title[1].split("|")[1:]]
    assert {width for width, *_ in found} == {"390", "1100"}, title[1]
    for width, reached, images, row_height, background in found:
        assert int(reached) <= int(width)  # only tables scroll sideways
        assert images == "true"
        assert int(row_height) <= 60  # at most two lines: names break between words
        assert background == ("rgb(15, 18, 23)" if dark else "rgb(246, 247, 249)")
