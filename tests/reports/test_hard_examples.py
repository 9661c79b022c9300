"""reid/reports/hard_examples.py, rank_lists.py and the scores of pairs: each equals a slow loop over all pairs."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from reid.metrics import retrieval
from reid.metrics.features import Features
from reid.reports.analysis import SCORE_BINS, ScoreHistogram, measure_scores
from reid.reports.hard_examples import choose_hard_queries, find_confusions
from reid.reports.rank_lists import RankedImage, choose_rank_lists, load_images


def draw(number, seed, pids=9, cameras=3):
    rng = np.random.default_rng(seed)
    pid = rng.integers(0, pids, number)
    centre = np.random.default_rng(0).normal(size=(pids, 8))
    return Features(centre[pid] + 1.3 * rng.normal(size=(number, 8)), pid, rng.integers(-1, cameras, number), pid == 0)


@pytest.fixture(scope="module")
def splits():
    query, gallery = draw(60, 1), draw(150, 2)
    return query, gallery, retrieval.evaluate(query, gallery)


def ranking(query, gallery, row):
    """The gallery of one query as (entry, score, matches), best first, without its identity's images by its camera."""
    unit = [split.embeddings / split.embeddings.norm(dim=1, keepdim=True) for split in (query, gallery)]
    scores = (unit[1] @ unit[0][row]).numpy()
    same = ((gallery.pids == query.pids[row]) & ~gallery.distractors & ~query.distractors[row]).numpy()
    own = same & ((gallery.camids == query.camids[row]) & (query.camids[row] >= 0)).numpy()
    return [(j, scores[j], same[j]) for j in np.argsort(-scores, kind="stable") if not own[j]]


def test_hard_queries_are_those_of_lowest_ap(splits):
    query, gallery, result = splits
    valid = np.flatnonzero(result.valid)
    hard = choose_hard_queries(*splits, "cosine")
    assert len(hard) == 20 and [each.ap for each in hard] == sorted(result.ap)[:20]
    for each in hard:
        ranked = ranking(query, gallery, each.query.row)
        assert each.ap == result.ap[valid == each.query.row]
        assert each.first_rank == 1 + [matches for *_, matches in ranked].index(True)
        wrong, score = next((j, score) for j, score, matches in ranked if not matches)
        assert each.wrong.row == wrong and each.score == pytest.approx(score, abs=1e-5)


def test_a_query_without_a_wrong_result():
    query, gallery = Features(np.eye(2), [1, 1], [0, 0]), Features(np.eye(2), [1, 1], [1, 2])
    hard = choose_hard_queries(query, gallery, retrieval.evaluate(query, gallery), "cosine")
    assert [each.wrong for each in hard] == [None, None] and hard[0].to_json()["best_wrong"] is None
    assert find_confusions(query, gallery, retrieval.evaluate(query, gallery), "cosine") == []


def test_confusions_count_queries_with_another_identity_before_their_first_match(splits):
    query, gallery, result = splits
    expected = defaultdict(dict)
    for row in np.flatnonzero(result.valid):
        for rank, (j, score, matches) in enumerate(ranking(query, gallery, row), start=1):
            if matches:
                break
            if not gallery.distractors[j]:
                pair = int(query.pids[row]), int(gallery.pids[j])
                expected[pair].setdefault(row, (score, rank, j))
    found = find_confusions(*splits, "cosine")
    assert len(found) == 10
    numbers = sorted((len(rows) for rows in expected.values()), reverse=True)
    assert [each.queries for each in found] == numbers[:10]
    for each in found:
        rows = expected[each.pid, each.other]
        assert each.queries == len(rows) and each.of_queries == int((query.pids[result.valid] == each.pid).sum())
        score, rank, j = max(rows.values())
        assert (each.rank, each.wrong.row) == (rank, j) and each.score == pytest.approx(score, abs=1e-5)
        assert each.query.row in rows


def test_entries_after_the_last_match_are_late(splits):
    query, gallery, _ = splits
    lists = choose_rank_lists(*splits, "cosine")
    assert [ranks.title for ranks in lists] == ["best", "upper quarter", "median", "lower quarter", "worst"]
    late = 0
    for ranks in lists:
        matches = [matches for *_, matches in ranking(query, gallery, ranks.query.row)]
        last = max(np.flatnonzero(matches))
        for place, entry in enumerate(ranks.gallery):
            assert entry.kind == ("right" if matches[place] else "late" if place > last else "wrong")
            late += entry.kind == "late"
    own = np.eye(3)[:1]  # an image of the first query's identity by its own camera, which cannot match
    easy = (
        Features(np.eye(3), [1, 2, 3], [0, 0, 0]),
        Features(np.concatenate([np.eye(3), own]), [1, 2, 3, 1], [1, 1, 1, 0]),
    )
    (ranks, *_) = choose_rank_lists(*easy, retrieval.evaluate(*easy), "cosine")
    assert [entry.kind for entry in ranks.gallery] == ["right", "late", "late"] and ranks.gallery[1].symbol == "–"


def test_each_split_is_read_once():
    entries = [RankedImage(None, "", True, split=split, row=row) for split, row in (("query", 3), ("gallery", 1))]
    entries.append(RankedImage(None, "", False, split="gallery", row=0))
    read = []

    def read_images(split, rows):
        read.append((split, rows))
        return [(np.full((1, 1, 3), row, np.uint8), f"{split}-{row}") for row in rows]

    load_images(entries, read_images)
    assert read == [("query", [3]), ("gallery", [0, 1])]
    shown = [(entry.name, entry.image[0, 0, 0]) for entry in entries]
    assert shown == [("query-3", 3), ("gallery-1", 1), ("gallery-0", 0)]


def test_scores_are_those_of_pairs_by_different_cameras(splits, monkeypatch):
    query, gallery, _ = splits
    unit = [(split.embeddings / split.embeddings.norm(dim=1, keepdim=True)).double() for split in (query, gallery)]
    scores = (unit[0] @ unit[1].T).numpy()
    across = (query.camids[:, None] != gallery.camids) | (query.camids[:, None] == -1)
    same = (query.pids[:, None] == gallery.pids) & ~gallery.distractors & ~query.distractors[:, None]
    found = measure_scores(query, gallery)
    for counts, kind in ((found.genuine, same), (found.impostor, ~same)):
        expected, _ = np.histogram(scores[across & kind], bins=SCORE_BINS, range=(-1, 1))
        assert np.abs(counts - expected).sum() <= 4 and counts.sum() == expected.sum()  # rounding at an edge
    monkeypatch.setattr("reid.reports.analysis.MAX_PAIRS", 60 * 150 // 3)
    part = measure_scores(query, gallery)
    assert isinstance(part, ScoreHistogram) and (part.queries, part.total) == (20, 60)
    assert "0 of two" in measure_scores(Features(torch.eye(2), [1, 1], [0, 0]), Features(torch.eye(2), [1, 1], [1, 1]))
