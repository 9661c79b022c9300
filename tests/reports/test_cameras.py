"""reid/reports/analysis.py: each cell equals an evaluation on the images of its two cameras."""

import numpy as np
import pytest
import torch

from reid.metrics import retrieval
from reid.metrics.features import Features
from reid.reports.analysis import MAX_CAMERAS, CameraPairs, measure_camera_pairs
from tests.support.blocks import block_sizes
from tests.support.memory import allocations


def draw(number, cameras, seed, pids=12, dim=8):
    """Features in multiples of 1/16: products are exact in float32, so they do not depend on the number of images."""
    rng = np.random.default_rng(seed)
    pid = rng.integers(0, pids, number)
    centre = np.random.default_rng(0).normal(size=(pids, dim))
    embeddings = np.round(16 * (centre[pid] + rng.normal(size=(number, dim)))) / 16
    return Features(embeddings, pid, rng.integers(0, cameras, number), pid == 0)


@pytest.mark.parametrize("most_by_one", [False, True])
def test_cells_equal_separate_evaluations(most_by_one):
    query, gallery = draw(60, 3, 1), draw(200, 4, 2)
    if most_by_one:
        gallery.camids[:120] = 2
    pairs = measure_camera_pairs(query, gallery)
    assert pairs.query_cameras.tolist() == [0, 1, 2] and pairs.gallery_cameras.tolist() == [0, 1, 2, 3]
    for i in range(3):
        for j in range(4):
            if i == j:
                assert np.isnan(pairs.mean_ap[i, j]) and pairs.num_queries[i, j] == 0
                continue
            asked, listed = query.camids == i, gallery.camids == j
            result = retrieval.evaluate(
                Features(query.embeddings[asked], query.pids[asked], query.camids[asked], query.distractors[asked]),
                Features(
                    gallery.embeddings[listed],
                    gallery.pids[listed],
                    gallery.camids[listed],
                    gallery.distractors[listed],
                ),
            )
            assert pairs.mean_ap[i, j] == pytest.approx(result.mAP, abs=1e-12)
            assert pairs.num_queries[i, j] == result.num_valid_queries


@pytest.mark.parametrize("cameras", [[1], [0, 1], [0, 1, 2, 3]])
def test_no_copy_as_large_as_half_the_gallery(cameras):
    query, gallery = draw(8, 1, 1, dim=32), draw(2000, 1, 2, dim=32)
    gallery.camids = torch.tensor(cameras)[torch.arange(2000) % len(cameras)]
    with (
        block_sizes(PRODUCT_ROWS=4, GALLERY_BLOCK=500, MATCH_BLOCK=128, NORM_ROWS=500),
    ):
        largest = max(allocations(lambda: measure_camera_pairs(query, gallery)))
    assert 0 < largest < gallery.embeddings.nbytes / 2


def test_unknown_cameras_and_junk_are_left_out():
    query, gallery = draw(40, 2, 1), draw(80, 2, 2)
    gallery.camids[:5] = -1
    gallery.camids[5], gallery.pids[5] = 9, -1
    pairs = measure_camera_pairs(query, gallery)
    assert isinstance(pairs, CameraPairs) and pairs.gallery_cameras.tolist() == [0, 1]


def test_reasons_for_no_matrix():
    assert measure_camera_pairs(draw(9, 1, 1), draw(9, 1, 2)) == "fewer than two known cameras"
    many = draw(2000, MAX_CAMERAS + 1, 1)
    assert "cannot be read" in measure_camera_pairs(many, draw(20, 2, 2))
    unknown = draw(9, 2, 1)
    unknown.camids[:] = -1
    assert measure_camera_pairs(unknown, draw(9, 2, 2)) == "fewer than two known cameras"


def test_json_has_no_nan():
    cells = measure_camera_pairs(draw(60, 3, 1), draw(200, 4, 2)).to_json()["mAP"]
    assert cells[0][0] is None and isinstance(cells[0][1], float)
