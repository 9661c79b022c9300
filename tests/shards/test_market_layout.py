"""shards/readers/market_layout.py and the datasets in that layout: DukeMTMC-reID, CUHK03-NP, VeRi-776."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from reid.data.manifest import load_manifest
from shards.__main__ import main
from shards.build import build
from shards.readers import cuhk03, dukemtmc, ltcc, market1501, msmt17, occluded_duke, veri776
from shards.records import SPLITS, Counts, RawDataset, name_dataset
from shards.summary import compare_counts
from tests.support.status import status_of


def facts(raw: RawDataset) -> dict[str, list[tuple[int, int]]]:
    found: dict[str, list[tuple[int, int]]] = {"train": [], "query": [], "gallery": []}
    for record in raw.records:
        found[record.split].append((record.pid, record.camid))
    return found


@pytest.fixture
def duke(tmp_path: Path, draw) -> Path:
    """Two train identities; 0005 in query and gallery; 0009 in the gallery alone, under one camera; strays."""
    root = tmp_path / "DukeMTMC-reID"
    for name in ("0001_c2_f0046182.jpg", "0001_c5_f0046302.jpg", "0007_c8_f0091212.jpg", "0007_c1_f0091213.jpg"):
        draw(root / "bounding_box_train" / name)
    draw(root / "query" / "0005_c2_f0046985.jpg")
    for name in ("0005_c3_f0047000.jpg", "0009_c6_f0000001.jpg", "0009_c6_f0000002.jpg"):
        draw(root / "bounding_box_test" / name)
    (root / "CITATION.txt").write_text("cite")
    (root / "query" / "Thumbs.db").write_bytes(b"\xd0\xcf")
    return root


@pytest.fixture
def cuhk(tmp_path: Path, draw) -> Path:
    root = tmp_path / "cuhk03-np"
    for boxes, images in (("detected", 2), ("labeled", 3)):
        for image in range(images):
            draw(root / boxes / "bounding_box_train" / f"0001_c{image % 2 + 1}_{image + 1}.png")
        draw(root / boxes / "query" / "0768_c1_1.png")
        draw(root / boxes / "bounding_box_test" / "0768_c2_6.png")
        draw(root / boxes / "bounding_box_test" / "0768_c1_2.png")
        (root / boxes / "query" / ".DS_Store").write_bytes(b"\0")
    return root


@pytest.fixture
def veri(tmp_path: Path, draw) -> Path:
    """Three-digit cameras; the test folder holds the query's image again, as VeRi-776 does; lists beside the images."""
    root = tmp_path / "VeRi"
    for name in ("0001_c001_00016450_0.jpg", "0001_c012_00016460_0.jpg", "0004_c020_00083700_1.jpg"):
        draw(root / "image_train" / name)
    query = draw(root / "image_query" / "0002_c002_00030600_0.jpg")
    draw(root / "image_test" / "0002_c003_00030670_1.jpg")
    (root / "image_test" / query.name).write_bytes(query.read_bytes())
    (root / "name_train.txt").write_text("0001_c001_00016450_0.jpg\n")
    (root / "image_test" / "gt_index.txt").write_text("1 2\n")
    return root


def test_duke(duke: Path, tmp_path: Path) -> None:
    raw = dukemtmc.read(duke)
    assert facts(raw)["train"] == [(1, 2), (1, 5), (7, 1), (7, 8)]
    assert facts(raw)["query"] == [(5, 2)] and facts(raw)["gallery"] == [(5, 3), (9, 6), (9, 6)]
    assert raw.name == "dukemtmc" and raw.distractor_pid is None
    assert [path.name for path in raw.ignored] == ["Thumbs.db"]
    assert raw.published["gallery"] == Counts(17_661, 1_110)
    notice = build(raw, tmp_path / "out").manifest.notice
    assert "withdrawn by Duke University in 2019" in notice and "download" in notice


def test_cuhk_has_two_kinds_of_boxes(cuhk: Path) -> None:
    detected, labeled = cuhk03.read(cuhk), cuhk03.read(cuhk, "labeled")
    assert (detected.name, labeled.name) == ("cuhk03-detected", "cuhk03-labeled")
    assert facts(detected)["train"] == [(1, 1), (1, 2)]
    assert facts(labeled)["train"] == [(1, 1), (1, 1), (1, 2)]
    assert facts(labeled)["query"] == [(768, 1)] and facts(labeled)["gallery"] == [(768, 1), (768, 2)]
    assert all("labeled" in record.path.parts for record in labeled.records)
    assert (detected.published["train"], labeled.published["train"]) == (Counts(7_365, 767), Counts(7_368, 767))
    assert (detected.published["gallery"], labeled.published["gallery"]) == (Counts(5_332, 700), Counts(5_328, 700))
    assert [path.name for path in labeled.ignored] == [".DS_Store"]
    with pytest.raises(ValueError, match="--boxes drawn: use detected or labeled"):
        cuhk03.read(cuhk, "drawn")
    with pytest.raises(ValueError, match=r"detected: no such folder; .*holds bounding_box_test/"):
        cuhk03.read(cuhk / "labeled")
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        cuhk03.read(cuhk / "nowhere")


def test_veri(veri: Path) -> None:
    raw = veri776.read(veri)
    assert facts(raw) == {"train": [(1, 1), (1, 12), (4, 20)], "query": [(2, 2)], "gallery": [(2, 2), (2, 3)]}
    assert raw.distractor_pid is None and raw.published["query"] == Counts(1_678, 200)
    assert [path.name for path in raw.ignored] == ["gt_index.txt"]
    assert "vehicle" in raw.notice.lower() and "research" in raw.notice


def test_occluded_duke_and_ltcc(duke: Path, tmp_path: Path, draw, capsys: pytest.CaptureFixture[str]) -> None:
    raw = occluded_duke.read(duke)
    assert facts(raw) == facts(dukemtmc.read(duke)) and raw.name == "occluded-duke" and "withdrawn" in raw.notice
    root = tmp_path / "LTCC_ReID"
    for name in ("train/094_1_c9_015833.png", "train/094_2_c1_000001.png", "train/095_1_c1_000002.png"):
        draw(root / name)
    for name in ("query/041_2_c12_028834.png", "test/041_1_c3_000003.png", "test/._041_1_c3_000003.png"):
        draw(root / name)
    (root / "info").mkdir()
    raw = ltcc.read(root)
    assert facts(raw) == {"train": [(94, 9), (94, 1), (95, 1)], "query": [(41, 12)], "gallery": [(41, 3)]}
    assert [record.extra for record in raw.records][:2] == [(("clothes", "1"),), (("clothes", "2"),)]
    assert main(["build", "ltcc", "--root", str(root), "--out", str(tmp_path / "out"), "--dataset=mine"]) == 0
    assert status_of(main, "build", "veri776", "--root", str(duke), "--out", str(tmp_path / "out")) == 2
    assert "build occluded-duke" not in capsys.readouterr().err  # named only if the counts are theirs


@pytest.mark.parametrize("name", ["cuhk-03.mat", "cuhk03_release/cuhk-03.mat"])
def test_cuhk_as_matlab_data(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"MATLAB 7.3 MAT-file")
    for root in (tmp_path, path):
        with pytest.raises(ValueError, match=r"cuhk-03\.mat: .*reid shards build cuhk03 --root cuhk03-np"):
            cuhk03.read(root)


@pytest.mark.parametrize("folder", ["Market-1501-v15.09.15", "market"])
def test_market_in_a_folder_of_its_own_name(market: Path, tmp_path: Path, folder: str) -> None:
    (tmp_path / folder / "__MACOSX").mkdir(parents=True)
    (tmp_path / folder / folder).symlink_to(market)
    assert len(market1501.read(tmp_path / folder).records) == len(market1501.read(market).records)
    (tmp_path / folder / "other").mkdir()
    with pytest.raises(ValueError, match="bounding_box_train: no such folder"):
        market1501.read(tmp_path / folder)


def test_zero_is_an_identity_where_there_are_no_distractors(duke: Path, draw) -> None:
    draw(duke / "bounding_box_train" / "0000_c1_f1.jpg")
    draw(duke / "bounding_box_train" / "-1_c1_f1.jpg")
    raw = dukemtmc.read(duke)
    assert Counter(pid for pid, _ in facts(raw)["train"]) == {0: 1, 1: 2, 7: 2}
    assert raw.warnings == ["1 images with pid -1 outside bounding_box_test were left out"]


@pytest.mark.parametrize("read", [dukemtmc.read, veri776.read])
def test_errors_name_the_folders_of_the_dataset(read, tmp_path: Path, draw) -> None:
    draw(tmp_path / "images" / "1.jpg")
    folder = "image_train" if read is veri776.read else "bounding_box_train"
    with pytest.raises(ValueError, match=rf"{folder}: no such folder; .* holds images/; give --root .*{folder}, "):
        read(tmp_path)
    draw(tmp_path / folder / "1.jpg")
    example = veri776.EXAMPLE if read is veri776.read else dukemtmc.EXAMPLE
    with pytest.raises(ValueError, match=f"no image is named like {example}"):
        read(tmp_path)


def test_published_counts_are_those_of_the_datasets(tmp_path: Path) -> None:
    """Images and identities as the authors, and everyone who reports results, count them."""
    counted = {
        "market1501": (market1501.PUBLISHED, (12_936, 751), (3_368, 750), (13_115 + 2_798 + 3_819, 750)),
        "dukemtmc": (dukemtmc.PUBLISHED, (16_522, 702), (2_228, 702), (17_661, 1_110)),
        "msmt17": (msmt17.PUBLISHED, (32_621, 1_041), (11_659, 3_060), (82_161, 3_060)),
        "detected": (cuhk03.PUBLISHED["detected"], (7_365, 767), (1_400, 700), (5_332, 700)),
        "labeled": (cuhk03.PUBLISHED["labeled"], (7_368, 767), (1_400, 700), (5_328, 700)),
        "occluded-duke": (occluded_duke.PUBLISHED, (15_618, 702), (2_210, 519), (17_661, 1_110)),
        "ltcc": (ltcc.PUBLISHED, (9_576, 77), (493, 75), (7_050, 75)),
        "veri776": (veri776.PUBLISHED, (37_778, 576), (1_678, 200), (11_579, 200)),
    }
    for name, (published, *splits) in counted.items():
        wanted = {split: Counts(*numbers) for split, numbers in zip(SPLITS, splits, strict=True)}
        assert published == wanted, name


@pytest.mark.parametrize("boxes", [None, "labeled"])
def test_cuhk_from_the_command_line(
    cuhk: Path, boxes: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"cuhk03-{boxes or 'detected'}"
    command = ["build", "cuhk03", "--root", str(cuhk), "--out", str(tmp_path / "out"), "--dataset", name]
    assert main(command + (["--boxes", boxes] if boxes else [])) == 0
    printed = capsys.readouterr()
    assert "privacy must be kept" in printed.err
    images = 3 if boxes else 2
    assert f"warning: train: {images} images of 1 identities; as published it has 736" in printed.out
    manifest = load_manifest(tmp_path / "out")
    assert manifest.dataset == name and manifest.distractor_pid is None
    assert [split.num_images for split in manifest.splits.values()] == [images, 1, 2]
    assert main(["verify", str(tmp_path / "out"), "--decode"]) == 0


def test_veri_from_the_command_line(veri: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["build", "veri776", "--root", str(veri), "--out", str(tmp_path / "out"), "--dataset", "veri776"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "academic research only" in printed.err
    assert "warning: train: 3 images of 2 identities; as published it has 37778 of 576" in printed.out
    manifest = load_manifest(tmp_path / "out")
    assert manifest.split("train").cameras == ((1, 12), (20,)) and manifest.split("gallery").cameras == ((2, 3),)
    assert main(["verify", str(tmp_path / "out"), "--decode"]) == 0
    assert "intact, every image decodes" in capsys.readouterr().out


def test_other_counts_than_published_are_a_warning_with_both(market: Path, duke: Path, tmp_path: Path) -> None:
    """Where the user says that it is this dataset."""
    warnings = build(market1501.read(market), tmp_path / "m", dataset="market1501").warnings
    assert len(warnings) == 3
    assert warnings[2].startswith("gallery: 47 images of 3 identities; as published it has 19732 of 750")
    done = build(dukemtmc.read(duke), tmp_path / "d", dataset="dukemtmc")
    assert done.warnings[0].startswith("train: 4 images of 2 identities; as published it has 16522 of 702")
    found = {"train": Counts(4, 2), "query": Counts(1, 1), "gallery": Counts(3, 2)}
    assert compare_counts(done.manifest, found) == []
    assert len(compare_counts(done.manifest, {**found, "gallery": Counts(3, 3)})) == 1
    assert compare_counts(done.manifest, {"val": Counts(1, 1)})[0].startswith("val: 0 images of 0 identities")


def test_own_images_in_a_published_layout_are_not_that_dataset(market: Path, tmp_path: Path) -> None:
    raw = market1501.read(market)
    done = build(raw, tmp_path / "mine", dataset="mine")
    assert done.warnings == () and done.manifest.dataset == "mine"
    assert "Zheng" not in done.manifest.notice and "of yours" in done.manifest.notice
    warnings = build(raw, tmp_path / "unnamed").warnings
    assert len(warnings) == 1 and "--dataset" in warnings[0] and "incomplete" not in warnings[0]


@pytest.mark.parametrize("name", [None, "market"])
def test_counts_near_the_published_ones_are_compared(market: Path, name: str | None) -> None:
    """One split is enough: the copy of another may be incomplete."""
    published = {"train": Counts(60, 9), "query": Counts(3368, 750), "gallery": Counts(19_732, 750)}
    raw = name_dataset(replace(market1501.read(market), published=published), name)
    assert raw.published == published and "Zheng" in raw.notice and raw.name == (name or "market1501")
