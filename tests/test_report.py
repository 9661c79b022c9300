"""The report: figures in the table and on the page, pictures that open, nothing that leaves the file or breaks it."""

import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from reid.pictures import RIGHT, WRONG, draw_cmc
from reid.report import Ranked, RankList, format_table, write_report


def figures(mean_ap, rank_1, gallery=15_913, max_rank=50):
    return {
        "mAP": mean_ap,
        "mAP_trapezoid": mean_ap - 0.0123,
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
    image = np.random.default_rng(seed).integers(90, 160, (*shape, 3), dtype=np.uint8)
    return Ranked(image, caption, correct)


def rank_list(right=3, wrong=2, **options):
    gallery = [picture(correct=i < right, seed=i, **options) for i in range(right + wrong)]
    return RankList(picture(), gallery, ap=0.7266, title="median")


class Page(HTMLParser):
    """Text, image sources and balance of a page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.sources = [], [], []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "srcset")]
        if tag not in ("meta", "link", "img", "source", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def write(folder, results=RESULTS, rank_lists=(), facts=None, warnings=()):
    page = write_report(folder, "market1501", results, list(rank_lists), facts or {}, list(warnings))
    return Page(page.read_text(encoding="utf-8"))


def test_table_for_the_terminal():
    lines = format_table(RESULTS).splitlines()
    assert lines[0].split() == ["model", "protocol", "gallery", "queries", "mAP", "mINP", "R1", "R5", "R10"]
    assert lines[2].split() == ["trained", "image", "15,913", "3,367", "85.4", "42.7", "93.9", "96.0", "97.6"]
    assert lines[3].split()[:4] == ["centroid", "3,544", "3,367", "96.7"]
    assert lines[4].split()[:2] == ["untrained", "image"]
    assert len({len(line) for line in lines[:5]}) == 1
    assert "mean reciprocal rank" in " ".join(lines[5:]) and "never compare" in " ".join(" ".join(lines[5:]).split())


def test_page_has_the_tables_figures(tmp_path):
    text = write(tmp_path).text
    assert "trained image 15,913 3,367 85.4 42.7 93.9 96.0 97.6 centroid 3,544 3,367 96.7" in text
    assert "never compare it with image mAP" in text and "mean reciprocal rank" in text
    assert "3,367 of 3,368 queries have a match" in text
    assert "image 84.2, centroid 95.5" in text  # the trapezoid
    assert "No warnings." in text


def test_page_stands_alone(tmp_path):
    page = write(tmp_path, rank_lists=[rank_list()], facts={"command": "evaluate.py"}, warnings=["one"])
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|<script|@import|url\(", html)
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html
    assert len(set(page.sources[:2])) == 2 and len(page.sources) == 2 + 6  # CMC dark and light; a query and its five
    for source in page.sources:
        Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))).verify()


def test_everything_from_outside_is_escaped(tmp_path):
    evil = '<img src=x onerror="alert(1)">&\'$x^2$ $'
    results = {evil: {evil: figures(0.5, 0.5), "image": figures(0.4, 0.4)}}
    ranks = RankList(picture(evil), [picture(evil, False)], 0.5, evil)
    path = write_report(tmp_path, evil, results, [ranks], {evil: evil}, [evil])
    html = path.read_text(encoding="utf-8")
    assert "onerror=&quot;alert(1)&quot;" in html and "<img src=x" not in html
    page = Page(html)
    assert page.text.count(evil) >= 9
    assert all(source.startswith("data:image/") for source in page.sources)


def test_facts_and_warnings_are_listed(tmp_path):
    text = write(tmp_path, facts={"checkpoint": "runs/a", "processes": "2"}, warnings=["4 broken", "no cameras"]).text
    assert "checkpoint runs/a processes 2" in text
    assert "2 warnings 4 broken no cameras" in text and "No warnings" not in text


def test_pictures_lie_beside_the_page(tmp_path):
    write(tmp_path / "new" / "folder", rank_lists=[rank_list(), rank_list(0, 1)])
    for name in ("cmc.png", "rank_lists.png"):
        image = Image.open(tmp_path / "new" / "folder" / name)
        assert image.width > 800 and image.height > 500
    write(tmp_path / "without")
    assert not (tmp_path / "without" / "rank_lists.png").exists()


@pytest.mark.parametrize(("right", "wrong"), [(4, 0), (0, 4), (2, 2)])
def test_frames_are_green_for_right_and_red_for_wrong(tmp_path, right, wrong):
    write(tmp_path, rank_lists=[rank_list(right, wrong)])
    pixels = np.asarray(Image.open(tmp_path / "rank_lists.png").convert("RGB")).reshape(-1, 3)

    def count(colour):
        return int((pixels == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(1).sum())

    assert (count(RIGHT) > 500) == (right > 0) and (count(WRONG) > 500) == (wrong > 0)
    assert count(RIGHT) * wrong == pytest.approx(count(WRONG) * right, rel=0.1)


@pytest.mark.parametrize("shape", [(105, 105), (30, 90), (600, 200), (1, 1)])
def test_any_picture_size(tmp_path, shape):
    write(tmp_path, rank_lists=[rank_list(shape=shape, caption="a_very_long_name_without_any_space_" * 4)])
    assert Image.open(tmp_path / "rank_lists.png").height < 1500


@pytest.mark.parametrize("max_rank", [1, 3, 50, 120])
def test_any_length_of_curve(tmp_path, max_rank):
    results = {str(i): {f"p{j}": figures(0.3, 0.2, max_rank=max_rank) for j in range(6)} for i in range(5)}
    write(tmp_path, results)
    assert ("-" in format_table(results).splitlines()[2].split()) == (max_rank < 10)


def test_curves_differ_by_theme_and_data():
    other = {"trained": {"image": figures(0.5, 0.2)}}
    assert len({draw_cmc(RESULTS, "a"), draw_cmc(other, "a"), draw_cmc(RESULTS, "b")}) == 3


def test_no_pyplot():
    """pyplot keeps every figure alive and may look for a display."""
    code = "import sys, reid.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("results", [{}, {"trained": {}}])
def test_nothing_to_report(tmp_path, results):
    with pytest.raises(ValueError, match="nothing to report"):
        write(tmp_path, results)


def test_pictures_must_be_rgb_bytes(tmp_path):
    grey = RankList(picture(), [Ranked(np.zeros((8, 8), np.uint8), "grey one", True)], 1.0, "best")
    with pytest.raises(ValueError, match=r"picture 'grey one' is uint8 \(8, 8\); give uint8 \(height, width, 3\)"):
        write(tmp_path, rank_lists=[grey])
