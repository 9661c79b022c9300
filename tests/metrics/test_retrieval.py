"""Ranks and figures, against a loop in float64, scikit-learn and the results of other evaluators."""

import json
import math
from typing import NamedTuple, get_args, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from reid.config import EvaluateConfig
from reid.metrics import Features, bootstrap, retrieval, top_k
from reid.metrics.protocols import PROTOCOLS, build_gallery
from reid.metrics.retrieval import evaluate, merge
from reid.metrics.scores import METRICS
from tests.support.blocks import block_sizes
from tests.support.features import exact_split, features, random_split
from tests.support.gaps import are_apart
from tests.support.gpu_only import needs_cuda
from tests.support.oracles import DATA


def small_blocks():
    return block_sizes(QUERY_BLOCK=4, PRODUCT_ROWS=2, GALLERY_BLOCK=3, TIE_BLOCK=4)


# --- the slow obvious version: one query after another, plain lists, float64


class Plain(NamedTuple):
    """Features as numbers of Python."""

    embeddings: np.ndarray
    pids: list[int]
    camids: list[int]
    distractors: list[bool]

    @classmethod
    def of(cls, split):
        columns = (split.pids, split.camids, split.is_distractor())
        return cls(split.embeddings.double().numpy(), *(column.tolist() for column in columns))


class Entry(NamedTuple):
    """What a query sees: its score, whether it matches, and its first row of the gallery."""

    score: float
    matches: bool
    first: int


def entries_by_hand(query, gallery, q, protocol, published):
    """What one query may see, in gallery order: (rows of the gallery, matches?)."""
    pid, camid = query.pids[q], query.camids[q]
    asks = not query.distractors[q]
    if protocol == "ctl_published":
        return [
            (rows, asks and own == pid) for rows, own, held in published if not (asks and own == pid and camid in held)
        ]
    entries = []
    seen = set()
    for row, other in enumerate(gallery.pids):
        distractor = gallery.distractors[row]
        matches = other == pid and not distractor and asks
        same_camera = camid != -1 and gallery.camids[row] == camid
        if other == -1:
            continue
        if protocol == "image" or distractor:
            if not (matches and same_camera):
                entries.append(([row], matches))
        elif other not in seen:
            seen.add(other)
            rows = [r for r, own in enumerate(gallery.pids) if own == other and not gallery.distractors[r]]
            if protocol == "centroid" and matches:
                rows = [r for r in rows if camid == -1 or gallery.camids[r] != camid]
            if rows:
                entries.append((rows, matches))
    return entries


def published_by_hand(query, gallery):
    """The CTL authors' entries: (rows, identity, cameras that they are taken for), the complete mean of each last."""
    rows_left = [r for r, pid in enumerate(gallery.pids) if pid != -1]
    both = [pair for split in (query, gallery) for pair in zip(split.pids, split.camids, strict=True)]
    cameras = [camid for pid, camid in both if pid != -1]
    camera_of = {row: cameras[i] for i, row in enumerate(rows_left)}  # the i-th of both, where the gallery's is meant
    entries = []
    for pid in sorted({gallery.pids[r] for r in rows_left}):
        rows = [r for r in rows_left if gallery.pids[r] == pid and not gallery.distractors[r]]
        asking = [q for q, own in enumerate(query.pids) if own == pid and not query.distractors[q]]
        variants = {}
        for camid in sorted({query.camids[q] for q in asking}):
            kept = [r for r in rows if camid == -1 or camera_of[r] != camid]
            held = frozenset(camera_of[r] for r in kept) - {-1}
            if kept:
                variants.setdefault(held, (kept, pid, held))
        entries += sorted(variants.values(), key=lambda entry: entry[0] == rows)
    return entries


def rank_by_hand(query, gallery, protocol, metric):
    """What each query sees, best first."""
    query, gallery = Plain.of(query), Plain.of(gallery)
    published = published_by_hand(query, gallery) if protocol == "ctl_published" else None
    rankings = []
    for q, mine in enumerate(query.embeddings):
        ranked = []
        for rows, matches in entries_by_hand(query, gallery, q, protocol, published):
            vector = gallery.embeddings[rows].mean(0)
            if metric == "euclidean":
                score = -math.dist(mine, vector)
            else:
                norm = math.hypot(*mine) * math.hypot(*vector)
                score = float(mine @ vector / norm) if norm else 0.0
            ranked.append(Entry(round(score, 9), matches, rows[0]))
        ranked.sort(key=lambda entry: -entry.score)  # stable: ties stay in the order of their first kept image
        rankings.append(ranked)
    return rankings


def float32_agrees(rankings, k=0):
    """Whether matches, and the best k of each query, are far enough from the next to be ranked so in float32."""
    for ranked in rankings:
        scores = np.array([entry.score for entry in ranked])
        if not are_apart(scores, np.array([entry.matches for entry in ranked])) or not are_apart(scores[: k + 1]):
            return False
    return True


def figures_by_hand(rankings, max_rank):
    """cmc, mAP, trapezoid mAP, mINP, per-query AP."""
    cmc, aps, trapezoids, inps = np.zeros(max_rank), [], [], []
    for ranked in rankings:
        hits = [entry.matches for entry in ranked]
        total = sum(hits)
        if not total:
            continue
        ap = trapezoid = found = 0
        old_recall, old_precision = 0.0, 1.0
        for place, hit in enumerate(hits, start=1):
            found += hit
            ap += hit * found / place / total
            # The Market-1501 authors' script: the area under the curve through all points, by trapezoids.
            recall, precision = found / total, found / place
            trapezoid += (recall - old_recall) * (old_precision + precision) / 2
            old_recall, old_precision = recall, precision
            if found == total:
                inps.append(total / place)
                break
        aps.append(ap)
        trapezoids.append(trapezoid)
        cmc[hits.index(True) :] += 1
    return cmc / max(len(aps), 1), np.mean(aps), np.mean(trapezoids), np.mean(inps), aps


def assert_agree(result, expected):
    cmc, mean_ap, trapezoid, inp, aps = expected
    np.testing.assert_allclose(result.ap, aps, atol=1e-12)
    np.testing.assert_allclose(result.cmc, cmc, atol=1e-12)
    np.testing.assert_allclose(
        [result.mAP, result.mAP_trapezoid, result.mINP], [mean_ap, trapezoid, inp], atol=1e-12, err_msg="means"
    )


# Vectors for which float32 is exact, so that ties in float64 are ties in float32. Euclidean: multiples of 60, whose
# means over up to six are integers. Cosine: norms that are powers of two.
GRID = [tuple(60 * v for v in vector) for vector in np.ndindex(3, 2)]
UNITS = [(1, 0, 0, 0), (0, -2, 0, 0), (0, 0, 4, 0), (1, 1, 1, 1), (2, -2, 2, 2), (1, -1, -1, 1), (0, 0, 0, 0)]
# Cosine among means is inexact: these, each given once, make no two means of one direction, and so no ties.
GENERIC = [tuple(map(float, vector)) for vector in np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)]


@st.composite
def splits(draw, vectors, unique=False):
    def one(size, most_per_identity):
        pids = draw(st.lists(st.integers(-1, 3), min_size=size, max_size=size))
        counts: dict[int, int] = {}
        for i, pid in enumerate(pids):
            counts[pid] = counts.get(pid, 0) + 1
            if counts[pid] > most_per_identity:
                pids[i] = 10 + i
        camids = draw(st.lists(st.integers(-1, 2), min_size=size, max_size=size))
        embeddings = draw(st.lists(st.sampled_from(vectors), min_size=size, max_size=size, unique=unique))
        mask = np.array(pids) == 0 if masked else None
        return features(embeddings, pids, camids, mask)

    masked = draw(st.booleans())
    return one(draw(st.integers(1, 6)), 6), one(draw(st.integers(1, 14)), 6)


def agree_on(pair, rankings, protocol, metric, max_rank, blocks):
    assert float32_agrees(rankings, k=4)
    with small_blocks() if blocks == "small" else block_sizes(QUERY_BLOCK=8):
        if any(entry.matches for ranked in rankings for entry in ranked):
            assert_agree(evaluate(*pair, protocol, metric, max_rank), figures_by_hand(rankings, max_rank))
        else:
            with pytest.raises(ValueError, match="has a possible match"):
                evaluate(*pair, protocol, metric, max_rank)
        check_top_k(*pair, rankings, protocol, metric, k=4)


def check_top_k(query, gallery, rankings, protocol, metric, k):
    indices, scores = top_k(query, gallery, k, protocol, metric)
    assert indices.shape == scores.shape == (len(query), k)
    listed = build_gallery(query, gallery, protocol)
    for ranked, of_query, found_scores in zip(rankings, indices.tolist(), scores, strict=True):
        expected = ranked[:k]
        found = [i for i in of_query if i >= 0]
        assert len(found) == len(expected)
        np.testing.assert_allclose(found_scores[: len(found)], [entry.score for entry in expected], atol=1e-4)
        assert (found_scores[len(found) :] == -torch.inf).all()
        pids = gallery.pids[found] if protocol == "image" else listed.pids[found]
        assert pids.tolist() == gallery.pids[[entry.first for entry in expected]].tolist()
        if protocol == "image":
            assert found == [entry.first for entry in expected]


@settings(max_examples=150)
@given(splits(GRID), st.sampled_from(list(PROTOCOLS)), st.sampled_from([1, 5, 20]), st.sampled_from(["one", "small"]))
def test_euclidean_agrees_with_a_loop(pair, protocol, max_rank, blocks):
    agree_on(pair, rank_by_hand(*pair, protocol, "euclidean"), protocol, "euclidean", max_rank, blocks)


@settings(max_examples=60)
@given(splits(UNITS), st.sampled_from([1, 5, 20]), st.sampled_from(["one", "small"]))
def test_cosine_agrees_with_a_loop(pair, max_rank, blocks):
    agree_on(pair, rank_by_hand(*pair, "image", "cosine"), "image", "cosine", max_rank, blocks)


@settings(max_examples=150)
@given(splits(GENERIC, unique=True), st.sampled_from([1, 5, 20]), st.sampled_from(["one", "small"]))
def test_cosine_among_centroids_agrees_with_a_loop(pair, max_rank, blocks):
    rankings = rank_by_hand(*pair, "centroid", "cosine")
    assume(float32_agrees(rankings, k=4))
    agree_on(pair, rankings, "centroid", "cosine", max_rank, blocks)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_random_features_agree_with_a_loop(protocol, metric):
    query, gallery = exact_split(20, 8, 9, 4, seed=1), exact_split(90, 8, 12, 4, seed=2)
    rankings = rank_by_hand(query, gallery, protocol, metric)
    assert float32_agrees(rankings, k=7)
    expected = figures_by_hand(rankings, 50)
    assert_agree(evaluate(query, gallery, protocol, metric), expected)
    check_top_k(query, gallery, rankings, protocol, metric, k=7)
    with small_blocks():
        assert_agree(evaluate(query, gallery, protocol, metric), expected)


def test_ap_agrees_with_scikit_learn():
    query, gallery = random_split(30, 6, 10, 3, seed=3, with_junk=False), random_split(200, 6, 10, 3, seed=4)
    result = evaluate(query, gallery)
    expected = []
    for q in np.flatnonzero(result.valid):
        same = gallery.pids == query.pids[q]
        kept = (gallery.pids != -1) & ~(same & (gallery.camids == query.camids[q]))
        scores = torch.cosine_similarity(query.embeddings[q][None].double(), gallery.embeddings[kept].double())
        assert are_apart(scores.numpy(), same[kept].numpy())
        expected.append(average_precision_score(same[kept].numpy(), scores.numpy()))
    np.testing.assert_allclose(result.ap, expected, atol=1e-12)
    assert result.mAP == pytest.approx(np.mean(expected))


# --- other people's evaluators


def ctl_data():
    data = np.load(DATA / "eval_small_ctl.npz")
    cut = int(data["num_query"])
    columns = [data[name] for name in ("embeddings", "pids", "camids")]
    return data, Features(*(column[:cut] for column in columns)), Features(*(column[cut:] for column in columns))


@pytest.mark.parametrize(("protocol", "valid", "entries"), [("image", 135, 620), ("centroid_all", 136, 57)])
def test_agrees_with_the_ctl_authors_evaluator(protocol, valid, entries):
    """Their evaluator on 756 random features: image gallery, and centroids of complete identities."""
    data, query, gallery = ctl_data()
    result = evaluate(query, gallery, protocol)
    assert (result.num_valid_queries, result.gallery_size) == (valid, entries)
    assert np.flatnonzero(result.valid).tolist() == data[f"{protocol}_queries"].tolist()
    np.testing.assert_allclose(result.ap, data[f"{protocol}_ap"], atol=1e-12)
    np.testing.assert_allclose(result.mAP, data[f"{protocol}_mAP"], atol=1e-12)
    np.testing.assert_allclose(result.cmc, data[f"{protocol}_cmc"], atol=1e-7)  # theirs is float32


def test_ctl_published_agrees_with_the_ctl_authors_evaluator():
    """Their evaluator as it is, look-up and all. 21 of the queries find more than one centroid of their identity."""
    _, query, gallery = ctl_data()
    data = np.load(DATA / "eval_small_ctl_published.npz")
    result = evaluate(query, gallery, "ctl_published")
    assert (result.num_valid_queries, result.gallery_size) == (136, 136)
    assert np.flatnonzero(result.valid).tolist() == data["queries"].tolist()
    np.testing.assert_allclose(result.ap, data["ap"], atol=1e-12)
    np.testing.assert_allclose(result.mAP, data["mAP"], atol=1e-12)
    np.testing.assert_allclose(result.cmc, data["cmc"], atol=1e-7)  # theirs is float32


def test_ctl_published_flatters():
    """What its faults are worth where images of one camera look alike: more than the fixed protocol, far more than the
    image protocol on the same features."""
    query, gallery = alike_by_camera()
    image, fixed, published = (evaluate(query, gallery, p) for p in ("image", "centroid", "ctl_published"))
    assert published.mAP > fixed.mAP + 0.1 > image.mAP + 0.1


def test_centroid_agrees_with_the_ctl_authors_evaluator_given_its_negatives():
    """Their evaluator with the camera look-up fixed lists a centroid per (identity, camera) of the queries. A query's
    own centroid is ours; as negatives it sees every camera-variant of the other identities, and identities without a
    query vanish, where ours sees each other identity once, averaged over all cameras, and keeps all. With their
    negatives in place of ours, as distractors, all 135 APs are equal; with our negatives for the same 40 identities
    127 are, and the rest are better, having fewer entries to beat."""
    data, query, gallery = ctl_data()
    valid = evaluate(query, gallery, "centroid").valid
    aps = []
    for q in np.flatnonzero(valid):
        mine = (gallery.pids == query.pids[q]).numpy()
        theirs = data["centroid_fixed_labels"] != int(query.pids[q])
        mixed = Features(
            np.concatenate([gallery.embeddings.numpy()[mine], data["centroid_fixed_embeddings"][theirs]]),
            np.concatenate([gallery.pids.numpy()[mine], data["centroid_fixed_labels"][theirs]]),
            np.concatenate([gallery.camids.numpy()[mine], np.full(theirs.sum(), -1)]),
            np.arange(mine.sum() + theirs.sum()) >= mine.sum(),
        )
        one = Features(query.embeddings[[q]], query.pids[[q]], query.camids[[q]])
        aps.append(evaluate(one, mixed, "centroid").mAP)
    assert np.flatnonzero(valid).tolist() == data["centroid_fixed_queries"].tolist()
    np.testing.assert_allclose(aps, data["centroid_fixed_ap"], atol=1e-12)
    np.testing.assert_allclose(np.mean(aps), data["centroid_fixed_mAP"], atol=1e-12)

    kept = torch.isin(gallery.pids, query.pids[torch.as_tensor(valid)])
    result = evaluate(query, Features(gallery.embeddings[kept], gallery.pids[kept], gallery.camids[kept]), "centroid")
    assert result.gallery_size == 40
    assert np.isclose(result.ap, data["centroid_fixed_ap"]).sum() == 127
    assert (result.ap >= data["centroid_fixed_ap"] - 1e-12).all()


def test_agrees_on_features_of_a_real_model():
    """Features of 50 sketches and 100 photographs by a public sketch re-ID model (Gralach/SketchReidLightweightCNN,
    MIT), stored as float16, which leaves the ranking as it was; three implementations agree on these figures."""
    data = np.load(DATA / "eval_small_sketch.npz")
    query = Features(data["query"], data["query_pids"], data["query_camids"])
    gallery = Features(data["gallery"], data["gallery_pids"], data["gallery_camids"])
    result = evaluate(query, gallery, metric="euclidean")
    np.testing.assert_allclose(result.ap, data["ap"], atol=1e-12)
    assert (round(result.mAP, 6), round(result.mINP, 6)) == (0.217137, 0.187561)
    np.testing.assert_allclose(result.cmc[[0, 4, 9]], [0.14, 0.36, 0.48])


# --- each rule by itself, on a split where it matters


def alike_by_camera(seed=21):
    """1 query per identity and camera seen, 30 identities, 400 distractors, 300 junk images; an image is its identity,
    plus its identity under its camera, plus noise, so images of one identity and camera look alike."""
    rng = np.random.default_rng(seed)
    identity, under_camera = rng.normal(size=(30, 24)), 1.5 * rng.normal(size=(30, 5, 24))

    def images(pids, camids):
        return identity[pids] + under_camera[pids, camids] + rng.normal(size=(len(pids), 24))

    query_pids, query_camids = np.repeat(np.arange(30), 3), np.tile([0, 1, 2], 30)
    pids, camids = rng.integers(0, 30, 500), rng.integers(0, 5, 500)
    junk_pids, junk_camids = rng.integers(0, 30, 300), rng.integers(0, 5, 300)
    others = 1.9 * rng.normal(size=(400, 24))
    gallery = Features(
        np.concatenate([images(pids, camids), images(junk_pids, junk_camids), others]).astype(np.float32),
        np.concatenate([pids + 1, np.full(300, -1), np.zeros(400, int)]),
        np.concatenate([camids, junk_camids, rng.integers(0, 5, 400)]),
        np.arange(1200) >= 800,
    )
    query = Features(images(query_pids, query_camids).astype(np.float32), query_pids + 1, query_camids)
    return query, gallery


def altered(gallery, rows=None, pids=None, camids=None):
    keep = torch.ones(len(gallery), dtype=torch.bool) if rows is None else rows
    pids, camids = gallery.pids if pids is None else pids, gallery.camids if camids is None else camids
    return Features(gallery.embeddings[keep], pids[keep], camids[keep], gallery.is_distractor()[keep])


def test_each_rule_moves_the_value():
    """Junk left in (as images of no identity) lowers mAP, distractors dropped and same-camera images kept raise it."""
    query, gallery = alike_by_camera()
    right = evaluate(query, gallery).mAP
    junk = gallery.pids == -1
    left_in = evaluate(query, altered(gallery, pids=torch.where(junk, 999, gallery.pids))).mAP
    dropped = evaluate(query, altered(gallery, rows=~gallery.is_distractor())).mAP
    same_camera = evaluate(query, altered(gallery, camids=torch.full_like(gallery.camids, -1))).mAP
    assert left_in < 0.9 * right and dropped > 1.1 * right and same_camera > 1.5 * right
    assert evaluate(query, altered(gallery, rows=~junk)).mAP == right


# --- each rule by itself, made by hand: one query [1, 0] of identity 1 seen by camera 0, and scores from the angle


def ranked(angles, pids, camids=None, distractors=None, camid=0, protocol="image", max_rank=5):
    gallery = features([(math.cos(a), math.sin(a)) for a in angles], pids, camids, distractors)
    return evaluate(features([(1, 0)], [1], [camid]), gallery, protocol, max_rank=max_rank)


def test_figures_by_hand():
    result = ranked([0.1, 0.2, 0.3, 0.4, 0.5], [2, 1, 2, 1, 2], [1] * 5)  # matches at ranks 2 and 4
    assert result.ap == pytest.approx([(1 / 2 + 2 / 4) / 2])
    assert result.ap_trapezoid == pytest.approx([((0 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2])
    assert result.inp == pytest.approx([2 / 4])
    assert result.cmc.tolist() == [0, 1, 1, 1, 1] and result.first_ranks.tolist() == [2]


def test_same_identity_and_camera_is_removed():
    assert ranked([0.1, 0.2, 0.3], [1, 2, 1], [0, 0, 1]).ap == pytest.approx([1 / 2])


def test_same_camera_of_another_identity_stays():
    assert ranked([0.1, 0.3], [2, 1], [0, 1]).ap == pytest.approx([1 / 2])


@pytest.mark.parametrize(("camid", "camids"), [(-1, [0, 1, -1]), (-1, [-1] * 3), (0, [-1] * 3)])
def test_an_unknown_camera_equals_none(camid, camids):
    assert ranked([0.1, 0.2, 0.3], [1, 2, 1], camids, camid=camid).ap == pytest.approx([(1 + 2 / 3) / 2])


def test_junk_is_dropped():
    result = ranked([0.1, 0.2, 0.3], [-1, 1, -1], [1, 1, 1])
    assert result.ap.tolist() == [1] and result.gallery_size == 1


def test_distractors_stay_and_match_no_query():
    result = ranked([0.1, 0.2, 0.3], [0, 1, 1], [1, 1, 1], [True, False, True])
    assert result.ap.tolist() == [1 / 2] and result.inp.tolist() == [1 / 2] and result.gallery_size == 3


def test_pid_0_is_an_identity_without_a_mask_and_a_distractor_with_one():
    query = features([(1, 0), (1, 0)], [0, 1])
    gallery = features([(1, 0.1), (1, 0.2)], [0, 1])
    assert evaluate(query, gallery).ap.tolist() == [1, 1 / 2]
    masked = features([(1, 0.1), (1, 0.2)], [0, 1], distractors=[True, False])
    assert evaluate(query, masked).ap.tolist() == [1 / 2]
    assert evaluate(query, masked).valid.tolist() == [False, True]


def test_a_query_marked_as_distractor_matches_no_query():
    query = features([(1, 0), (1, 0)], [5, 1], distractors=[True, False])
    assert evaluate(query, features([(1, 0.1), (1, 0.2)], [5, 1])).valid.tolist() == [False, True]


@pytest.mark.parametrize("metric", METRICS)
def test_ties_rank_in_gallery_order(metric):
    query = features([(1, 0)], [1], [0])
    for place in range(4):
        pids = [2] * 4
        pids[place] = 1
        gallery = features([(1, 1)] * 4, pids)
        assert evaluate(query, gallery, metric=metric).first_ranks.tolist() == [place + 1]
        assert top_k(query, gallery, 4, metric=metric)[0].tolist() == [[0, 1, 2, 3]]
        with small_blocks():
            assert evaluate(query, gallery, metric=metric).first_ranks.tolist() == [place + 1]


def test_a_collapsed_model_scores_by_gallery_order():
    """All features equal: nothing but ties, among matches too."""
    query, gallery = features([(1, 1)] * 3, [1, 2, 3]), features([(1, 1)] * 9, [3, 2, 1] * 3)
    result = evaluate(query, gallery)
    assert result.first_ranks.tolist() == [3, 2, 1]
    assert result.ap == pytest.approx(
        [(1 / 3 + 2 / 6 + 3 / 9) / 3, (1 / 2 + 2 / 5 + 3 / 8) / 3, (1 + 2 / 4 + 3 / 7) / 3]
    )


def test_minus_zero_ties_with_zero():
    gallery = features([(0, 1), (0, -1), (-0.0, 1)], [2, 1, 2])
    assert evaluate(features([(1, -0.0)], [1]), gallery).first_ranks.tolist() == [2]
    assert top_k(features([(1, -0.0)], [1]), gallery, 3)[0].tolist() == [[0, 1, 2]]


def test_one_image_and_a_gallery_smaller_than_max_rank():
    result = ranked([0.1], [1], [1], max_rank=50)
    assert result.cmc.tolist() == [1.0] * 50 and result.mAP == result.mINP == result.mAP_trapezoid == 1


def test_queries_without_a_match_are_counted_and_left_out():
    query = features(np.eye(4), [1, 8, 2, -1], [0, 0, 1, 0])  # 8 is absent, 2 only under its own camera, -1 is junk
    result = evaluate(query, features(np.eye(4), [1, 2, 3, -1], [1, 1, 1, 1]))
    assert result.valid.tolist() == [True, False, False, False]
    assert result.num_valid_queries == len(result.ap) == 1
    assert result.to_json()["num_queries"] == 4


@pytest.mark.parametrize("protocol", ["centroid", "centroid_all"])
def test_centroid_map_is_the_mean_reciprocal_rank(protocol):
    query, gallery = random_split(40, 4, 12, 3, seed=5), random_split(200, 4, 15, 3, seed=6)
    result = evaluate(query, gallery, protocol)
    np.testing.assert_array_equal(result.ap, 1 / result.first_ranks)
    assert result.mAP == pytest.approx((1 / result.first_ranks).mean()) and result.mAP >= result.cmc[0]
    assert result.mINP == result.mAP


def test_centroids_are_normalised_after_the_mean():
    """[3, 0] and [0, 1] average to [1.5, 0.5], at 18 degrees from the query; the mean of their directions is at 45, and
    the other identity at 27."""
    gallery = features([(1, 0.5), (3, 0), (0, 1)], [2, 1, 1])
    assert evaluate(features([(1, 0)], [1]), gallery, "centroid_all").first_ranks.tolist() == [1]


def test_euclidean_is_raw():
    gallery = features([(2, 0), (1, 0.4)], [1, 2])
    query = features([(1, 0)], [1])
    assert evaluate(query, gallery, metric="cosine").first_ranks.tolist() == [1]
    assert evaluate(query, gallery, metric="euclidean").first_ranks.tolist() == [2]
    assert top_k(query, gallery, 2, metric="euclidean")[1].numpy() == pytest.approx(np.array([[-0.4, -1.0]]), abs=1e-6)


# --- slices, precision, devices


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("cuts", [[0, 70], [0, 1, 70], [0, 33, 33, 70]])
def test_merged_slices_equal_the_complete_split_to_the_last_digit(protocol, cuts):
    """Products are exact here; that a query's own are the same in every slice is tested below."""
    query, gallery = exact_split(70, 300, 40, 3, seed=7), exact_split(400, 300, 40, 3, seed=8)
    with block_sizes(QUERY_BLOCK=64, PRODUCT_ROWS=32):
        complete = evaluate(query, gallery, protocol)
        parts = []
        for begin, end in zip(cuts, [*cuts[1:], 70], strict=True):
            rows = slice(begin, end)
            parts.append(evaluate(query.take(rows), gallery, protocol, partial=True))
    merged = merge(parts)
    assert merged.to_json() == complete.to_json()
    assert np.array_equal(merged.ap, complete.ap) and np.array_equal(merged.valid, complete.valid)
    assert np.array_equal(merged.own, complete.own)


def test_a_slice_that_forgot_the_other_queries_is_refused_where_they_matter():
    query, gallery = random_split(9, 4, 5, 3, seed=7), random_split(40, 4, 5, 3, seed=8)
    part = Features(query.embeddings[:3], query.pids[:3], query.camids[:3])
    with pytest.raises(ValueError, match=r"every query; cut the slice with Features\.take"):
        evaluate(part, gallery, "ctl_published", partial=True)


def test_a_query_scores_the_same_alone_and_in_company():
    query, gallery = random_split(60, 512, 40, 3, seed=11), random_split(400, 512, 40, 3, seed=12)
    alone = Features(query.embeddings[9:10], query.pids[9:10], query.camids[9:10])
    assert torch.equal(top_k(alone, gallery, 400)[1], top_k(query, gallery, 400)[1][9:10])


def test_the_matches_of_other_queries_never_move_the_last_digit():
    rng = np.random.default_rng(13)
    for few in range(20, 60):
        places = rng.integers(-50, 51, (402, 2))  # integers: products are exact
        gallery = features(places[2:], rng.permutation([1] * few + [2] * 100 + [3] * (300 - few)))
        query = features(places[:2], [1, 2])
        alone = evaluate(Features(query.embeddings[:1], query.pids[:1], query.camids[:1]), gallery)
        assert alone.ap[0] == evaluate(query, gallery).ap[0]


def test_a_slice_without_valid_queries_is_no_error_until_all_are():
    nothing = evaluate(features([(1, 0)], [9]), features([(1, 0)], [1]), partial=True)
    assert nothing.num_valid_queries == 0 and math.isnan(nothing.mAP)
    something = evaluate(features([(1, 0)], [1]), features([(1, 0)], [1]), partial=True)
    assert merge([nothing, something]).mAP == 1
    with pytest.raises(ValueError, match="none of the 2 queries"):
        merge([nothing, nothing])


def test_merge_refuses_results_of_different_galleries():
    one = evaluate(features([(1, 0)], [1]), features([(1, 0)], [1]))
    two = evaluate(features([(1, 0)], [1]), features([(1, 0)] * 2, [1, 2]))
    with pytest.raises(ValueError, match="one gallery and one max_rank"):
        merge([one, two])


def test_products_are_exact_whatever_training_switched_on():
    query, gallery = random_split(40, 512, 12, 3, seed=9), random_split(200, 512, 12, 3, seed=10)
    expected = top_k(query, gallery, 200)[1]
    backend = torch.backends.mkldnn.matmul
    before = backend.fp32_precision
    try:
        backend.fp32_precision = "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = top_k(query, gallery, 200)[1]
        assert backend.fp32_precision == "bf16"
    finally:
        backend.fp32_precision = before
    assert torch.equal(scores, expected)


@needs_cuda
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_cuda_agrees_with_a_loop(protocol, metric):
    query, gallery = exact_split(20, 8, 9, 4, seed=1), exact_split(90, 8, 12, 4, seed=2)
    rankings = rank_by_hand(query, gallery, protocol, metric)
    assert float32_agrees(rankings, k=5)
    on_device = [Features(x.embeddings.cuda(), x.pids, x.camids, x.distractors) for x in (query, gallery)]
    assert_agree(evaluate(*on_device, protocol, metric), figures_by_hand(rankings, 50))
    assert torch.equal(top_k(*on_device, 5, protocol, metric)[0], top_k(query, gallery, 5, protocol, metric)[0])


# --- what a result says of itself


def test_results_go_into_json():
    result = ranked([0.1, 0.2], [2, 1], [1, 1], max_rank=3)
    assert json.loads(json.dumps(result.to_json())) == {
        "mAP": 0.5,
        "mAP_trapezoid": 0.25,
        "mINP": 0.5,
        "cmc": [0, 1, 1],
        "mAP_interval": [0.5, 0.5],  # of one query, every resample is the same
        "rank1_interval": [0, 0],
        "mINP_interval": [0.5, 0.5],
        "num_valid_queries": 1,
        "num_queries": 1,
        "gallery_size": 2,
        "gallery_bytes": 2 * 2 * 4,
        "comparisons": 2,
        "dimension": 2,
    }


def test_sizes_count_entries_and_own_centroids():
    """Identity 1 under cameras 0, 1, 1 and identity 2 under 0; queries of 1 from both cameras, one of them twice."""
    query = features(np.eye(3), [1, 1, 1], [0, 1, 1])
    gallery = features(np.ones((4, 3)), [1, 1, 1, 2], [0, 1, 1, 0])
    sizes = {p: evaluate(query, gallery, p) for p in PROTOCOLS}
    assert {p: (r.gallery_size, len(r.own), r.comparisons) for p, r in sizes.items()} == {
        "image": (4, 0, 12),
        "centroid": (2, 2, 6),
        "centroid_all": (2, 0, 6),
        "ctl_published": (2, 0, 6),  # 1 without camera 0 and without camera 1; identity 2 has no query
    }
    assert sizes["centroid"].own.tolist() == [[1, 0], [1, 1]]
    assert [r.gallery_bytes for r in sizes.values()] == [4 * 12, 4 * 12, 2 * 12, 2 * 12]


def test_an_own_centroid_in_two_slices_is_counted_once():
    query = features(np.eye(3), [1, 1, 1], [1, 1, 1])
    gallery = features(np.ones((3, 3)), [1, 1, 2], [0, 1, 0])
    parts = [evaluate(query.take(slice(i, i + 1)), gallery, "centroid", partial=True) for i in range(3)]
    assert merge(parts).own.tolist() == [[1, 1]]


def test_intervals_are_the_bootstraps_of_each_figure():
    query, gallery = random_split(60, 4, 12, 3, seed=5), random_split(200, 4, 15, 3, seed=6)
    result = evaluate(query, gallery)
    values = {"mAP": result.ap, "rank1": result.first_ranks == 1, "mINP": result.inp}
    for name, column in values.items():
        assert list(result.intervals[name]) == bootstrap.intervals(column[:, None])[0].tolist()
    for name, figure in (("mAP", result.mAP), ("rank1", result.cmc[0]), ("mINP", result.mINP)):
        low, high = result.intervals[name]
        assert low < figure < high
    nothing = evaluate(features([(1, 0)], [9]), features([(1, 0)], [1]), partial=True)
    assert all(math.isnan(end) for ends in nothing.intervals.values() for end in ends)


def test_results_come_back_from_a_file(tmp_path):
    query, gallery = random_split(40, 4, 12, 3, seed=5), random_split(200, 4, 15, 3, seed=6)
    results = {protocol: evaluate(query, gallery, protocol, max_rank=30) for protocol in PROTOCOLS}
    retrieval.save_results(tmp_path / "results.npz", results)
    loaded = retrieval.load_results(tmp_path / "results.npz")
    assert list(loaded) == list(PROTOCOLS)
    for protocol, result in results.items():
        assert loaded[protocol].to_json() == result.to_json()
        for name in ("valid", "ap", "ap_trapezoid", "inp", "first_ranks", "own", "cmc"):
            ours, theirs = getattr(loaded[protocol], name), getattr(result, name)
            assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


@pytest.mark.parametrize("content", ["text", "array", "other arrays", "objects"])
def test_a_file_without_results_is_named(tmp_path, content):
    path = tmp_path / "x.npz"
    with path.open("wb") as file:
        if content == "text":
            file.write(b"mAP 0.9")
        elif content == "array":
            np.save(file, np.zeros(3))
        else:
            np.savez(file, x=np.zeros(3) if content == "other arrays" else np.array([{}]))
    with pytest.raises(ValueError, match=r"x\.npz does not hold results: .*evaluate the run again"):
        retrieval.load_results(path)


def test_missing_identities_are_counted():
    query = features(np.eye(8), [1, 2, 2, 3, 4, 5, -1, 0], distractors=[False] * 7 + [True])
    gallery = features(np.eye(6), [1, 3, -1, 4, 5, 9], distractors=[False, False, False, True, True, False])
    assert retrieval.missing_identities(query, gallery) == 3  # 2 is absent, 4 and 5 are pids of distractors only
    assert retrieval.missing_identities(query, query) == 0


def test_every_protocol_says_what_it_compares_with():
    assert all(row.name == name and row.text and row.compares_with for name, row in PROTOCOLS.items())
    assert [name for name, row in PROTOCOLS.items() if row.can_rerank] == ["image", "centroid_all"]


def test_the_configuration_knows_the_protocols_of_the_table():
    """The configuration names them again, because it must not import torch."""
    assert EvaluateConfig().protocols == list(PROTOCOLS)
    annotation = get_type_hints(EvaluateConfig)["protocols"]
    assert get_args(get_args(annotation)[0]) == tuple(PROTOCOLS)


# --- bad input


def nan_row(row):
    embeddings = np.ones((9, 2), np.float32)
    embeddings[row, 1] = np.nan
    return features(embeddings, range(9))


@pytest.mark.parametrize(
    ("query", "gallery", "arguments", "message"),
    [
        (
            features(np.ones((2, 3)), [1, 2]),
            features(np.ones((2, 2)), [1, 2]),
            {},
            "query embeddings have 3 dimensions",
        ),
        (features(np.ones((9, 2)), range(9)), nan_row(7), {}, "gallery: the embedding in row 7 is not finite"),
        (nan_row(4), features(np.ones((9, 2)), range(9)), {}, r"query: the embedding in row 4 .*\(1 of 9 rows are\)"),
        (features(np.ones((0, 2)), []), nan_row(7), {}, "the query is empty"),
        (features(np.ones((1, 2)), [1]), features(np.ones((0, 2)), []), {}, "the gallery is empty"),
        (features(np.ones((1, 2)), [1]), features(np.ones((1, 2)), [1]), {"protocol": "x"}, "unknown protocol 'x'"),
        (features(np.ones((1, 2)), [1]), features(np.ones((1, 2)), [1]), {"metric": "l1"}, "known: cosine, euclidean"),
        (features(np.ones((1, 2)), [1]), features(np.ones((1, 2)), [1]), {"max_rank": 0}, "max_rank is 0"),
        (
            features(np.ones((1, 2)), [1]),
            features(np.ones((1, 2)), [2]),
            {},
            "none of the 1 queries has a possible match",
        ),
        (features(np.ones((1, 2)), [1]), features(np.ones((2, 2)), [-1] * 2), {}, "among the 0 gallery entries"),
    ],
)
def test_bad_input_is_named(query, gallery, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(query, gallery, **arguments)


def test_top_k_needs_a_k():
    with pytest.raises(ValueError, match="k is 0"):
        top_k(features([(1, 0)], [1]), features([(1, 0)], [1]), 0)
