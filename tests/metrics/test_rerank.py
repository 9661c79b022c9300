"""Sparse re-ranking, against the dense algorithm in plain loops and an independent implementation's distances."""

from functools import cache

import numpy as np
import pytest
import torch

from reid.metrics import ranking, rerank
from reid.metrics.features import Features
from reid.metrics.protocols import build_gallery
from reid.metrics.rerank import Reranked
from reid.metrics.retrieval import evaluate, evaluate_search
from tests.support.blocks import block_sizes
from tests.support.gaps import are_apart
from tests.support.memory import allocations
from tests.support.oracles import DATA


def split(size, dim, identities, seed, spread=1.0):
    """Normal features around the centre of each identity, every third camera. They are multiples of 1/16, so that
    squared distances are exact in float32 and neighbours the same in any arithmetic."""
    centres = np.random.default_rng(99).normal(size=(identities, dim))
    rng = np.random.default_rng(seed)
    pids = rng.integers(0, identities, size)
    embeddings = np.round(16 * (centres[pids] + spread * rng.normal(size=(size, dim)))) / 16
    return Features(embeddings, pids, rng.integers(0, 3, size))


def integer_split(size, identities, seed):
    """Small integers: exact distances, mostly ties and copies."""
    rng = np.random.default_rng(seed)
    return Features(rng.integers(-1, 2, (size, 3)), rng.integers(0, identities, size), rng.integers(0, 3, size))


# --- the slow obvious version: dense matrices in float64, one node after another


def rerank_by_hand(query, gallery, k1=20, k2=6, lambda_=0.3):
    """(Q, G) final distances of raw features (Q, D) and (G, D); float32 must find the same neighbours."""
    nodes = np.concatenate([query, gallery]).astype(np.float64)
    distances = np.square(nodes[:, None] - nodes).sum(2)
    distances /= np.maximum(distances.max(1, keepdims=True), 1e-300)
    nearest = np.argsort(distances, axis=1, kind="stable")
    ordered = np.sort(distances, axis=1)
    for k in (k1 + 1, round(k1 / 2) + 1, k2):
        last_and_next = ordered[:, k - 1 : k + 1]
        assert all(are_apart(pair) for pair in last_and_next)

    @cache
    def reciprocal(i, k):
        return {j for j in nearest[i, : k + 1] if i in nearest[j, : k + 1]}

    weights = np.zeros_like(distances)
    for i in range(len(nodes)):
        members = base = reciprocal(i, k1)
        for j in base:
            other = reciprocal(j, round(k1 / 2))
            if len(other & base) > 2 / 3 * len(other):
                members = members | other
        columns = sorted(members)
        weights[i, columns] = np.exp(-distances[i, columns])
        weights[i] /= max(weights[i].sum(), 1e-300)
    weights = np.stack([weights[nearest[i, :k2]].mean(0) for i in range(len(nodes))]) if k2 > 1 else weights

    shared = np.stack([np.minimum(weights[i], weights[len(query) :]).sum(1) for i in range(len(query))])
    jaccard = 1 - shared / (2 - shared)
    return (1 - lambda_) * jaccard + lambda_ * distances[: len(query), len(query) :]


def ap_by_hand(distances, query, gallery):
    """AP of each valid query by the standard rules; ties in gallery order. float32 must rank matches as float64."""
    aps = []
    for q in range(len(query)):
        same = (gallery.pids == query.pids[q]).numpy()
        kept = ~(same & (gallery.camids == query.camids[q]).numpy())
        assert are_apart(distances[q, kept], same[kept])
        hits = same[kept][np.argsort(distances[q, kept], kind="stable")]
        places = np.flatnonzero(hits) + 1
        if len(places):
            aps.append(np.mean(np.arange(1, len(places) + 1) / places))
    return aps


def evaluate_reranked(query, gallery, **knobs):
    return evaluate_search(Reranked(query, gallery, **knobs))


def distances_of(search):
    """(Q, E) by the search's own products."""
    with torch.no_grad():
        rows = [
            -search.scores(rows, slice(0, len(search.gallery)))
            for start in range(0, len(search.query), ranking.QUERY_BLOCK)
            for rows in search.products(start)
        ]
    return torch.cat(rows).numpy()


def small_blocks():
    sizes = dict(QUERY_BLOCK=16, PRODUCT_ROWS=8, GALLERY_BLOCK=37, MATCH_BLOCK=16, TIE_BLOCK=50)
    return block_sizes(**sizes), block_sizes(ITEMS=200, FLOATS=100)


# --- distances


def sketches():
    data = np.load(DATA / "eval_small_sketch.npz")
    return (
        Features(*(data[f"{name}{column}"] for column in ("", "_pids", "_camids"))) for name in ("query", "gallery")
    )


def test_agrees_with_an_independent_implementation_on_a_real_model():
    """Features of 50 sketches and 100 photographs (see test_retrieval.py), here as float16, which moves distances
    by up to 3e-5; the distances were computed from float32 features, where ours agree to 3e-7."""
    query, gallery = sketches()
    expected = np.load(DATA / "rerank_sketch.npz")["distances"]
    np.testing.assert_allclose(distances_of(Reranked(query, gallery, metric="euclidean")), expected, atol=4e-5)
    result = evaluate_reranked(query, gallery, metric="euclidean")
    assert round(result.mAP, 6) == 0.175532
    np.testing.assert_allclose(result.ap, ap_by_hand(expected, query, gallery), atol=1e-12)


@pytest.mark.parametrize(
    ("k1", "k2", "lambda_"),
    [(20, 6, 0.3), (20, 1, 0.3), (5, 3, 0.0), (7, 2, 1.0), (1, 1, 0.5), (1, 9, 0.3), (60, 6, 0.3), (99, 80, 0.3)],
)
def test_agrees_with_the_dense_algorithm(k1, k2, lambda_):
    """The last two of k1 reach nearly all and more than all of the 70 nodes."""
    query, gallery = split(20, 8, 6, seed=1), split(50, 8, 6, seed=2)
    expected = rerank_by_hand(query.embeddings, gallery.embeddings, k1, k2, lambda_)
    found = distances_of(Reranked(query, gallery, "image", "euclidean", k1, k2, lambda_))
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("seed", range(6))
def test_ties_and_copies_agree_with_the_dense_algorithm(seed):
    """Up to 27 different features among 90 nodes; equal distances go by node number, queries first."""
    query, gallery = integer_split(20, 4, seed), integer_split(70, 4, seed + 100)
    for k1, k2 in ((20, 6), (3, 2), (8, 20)):
        expected = rerank_by_hand(query.embeddings, gallery.embeddings, k1, k2)
        found = distances_of(Reranked(query, gallery, "image", "euclidean", k1, k2))
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_cosine_is_euclidean_between_directions():
    query, gallery = split(20, 8, 6, seed=3), split(80, 8, 6, seed=4)
    directions = [torch.nn.functional.normalize(x.embeddings.double()).numpy() for x in (query, gallery)]
    found = distances_of(Reranked(query, gallery, metric="cosine", k1=10))
    np.testing.assert_allclose(found, rerank_by_hand(*directions, k1=10), atol=2e-6)


def test_centroids_are_re_ranked_as_listed():
    query, gallery = split(20, 8, 15, seed=5), split(90, 8, 15, seed=6)
    centroids = build_gallery(query, gallery, "centroid_all").embeddings
    found = distances_of(Reranked(query, gallery, "centroid_all", "euclidean", k1=4, k2=2))
    np.testing.assert_allclose(found, rerank_by_hand(query.embeddings, centroids, k1=4, k2=2), atol=2e-6)


@pytest.mark.parametrize("make", [split, integer_split])
def test_block_sizes_change_nothing(make):
    arguments = [8, 9] if make is split else [9]
    query, gallery = make(30, *arguments, seed=7), make(100, *arguments, seed=8)
    expected = rerank_by_hand(query.embeddings, gallery.embeddings)
    complete = evaluate_reranked(query, gallery, metric="euclidean")
    with small_blocks()[0], small_blocks()[1]:
        found = distances_of(Reranked(query, gallery, metric="euclidean"))
        result = evaluate_reranked(query, gallery, metric="euclidean")
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(result.ap, complete.ap, atol=1e-12)


def test_equal_features_keep_the_gallery_order():
    query, gallery = (
        Features(np.ones((3, 4)), [1, 2, 3], [0] * 3),
        Features(np.ones((40, 4)), [3, 2, 1, 0] * 10, [1] * 40),
    )
    assert ranking.best_of_search(Reranked(query, gallery), 40)[0].tolist() == [list(range(40))] * 3
    assert evaluate_reranked(query, gallery).first_ranks.tolist() == [3, 2, 1]


# --- rankings


def test_the_rules_of_evaluation_hold():
    query, gallery = split(40, 6, 10, seed=21), split(200, 6, 10, seed=22)
    expected = rerank_by_hand(query.embeddings, gallery.embeddings)
    result = evaluate_reranked(query, gallery, metric="euclidean")
    np.testing.assert_allclose(result.ap, ap_by_hand(expected, query, gallery), atol=1e-12)
    assert result.mAP > evaluate(query, gallery, metric="euclidean").mAP  # what it is for, on clustered features


def test_junk_is_no_neighbour_and_distractors_match_no_query():
    query, gallery = split(20, 6, 5, seed=11), split(120, 6, 5, seed=12)
    junk, distractor = np.arange(120) % 5 == 0, np.arange(120) % 7 == 0
    gallery.pids[junk] = -1
    marked = Features(gallery.embeddings, gallery.pids, gallery.camids, distractor)
    left = gallery.embeddings[~junk], gallery.pids[~junk].clone(), gallery.camids[~junk]
    left[1][distractor[~junk]] = 77
    expected = rerank_by_hand(query.embeddings, left[0])
    result = evaluate_reranked(query, marked, metric="euclidean")
    np.testing.assert_allclose(result.ap, ap_by_hand(expected, query, Features(*left)), atol=1e-12)


def test_top_k_lists_rows_and_distances():
    query, gallery = split(20, 6, 5, seed=13), split(120, 6, 5, seed=14)
    gallery.pids[::5] = -1
    kept = np.flatnonzero(gallery.pids != -1)
    distances = rerank_by_hand(query.embeddings, gallery.embeddings[kept])
    removed = (query.pids[:, None] == gallery.pids[kept]) & (query.camids[:, None] == gallery.camids[kept])
    distances[removed.numpy()] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :9]
    indices, scores = ranking.best_of_search(Reranked(query, gallery, metric="euclidean"), 9)
    np.testing.assert_array_equal(indices, kept[order])
    np.testing.assert_allclose(-scores, np.take_along_axis(distances, order, axis=1), atol=2e-6)


def test_lambda_1_is_the_ranking_without_re_ranking():
    """Of normalized features, whose squared distances are 2 - 2 cosine: the two are rounded at different places."""
    query, gallery = split(40, 6, 10, seed=15), split(200, 6, 10, seed=16)
    plain, result = evaluate(query, gallery), evaluate_reranked(query, gallery, lambda_=1.0)
    directions = [torch.nn.functional.normalize(x.embeddings.double()).numpy() for x in (query, gallery)]
    np.testing.assert_allclose(plain.ap, ap_by_hand(-directions[0] @ directions[1].T, query, gallery), atol=1e-12)
    np.testing.assert_allclose(result.ap, plain.ap, atol=1e-12)


# --- memory


def test_neither_all_nodes_nor_queries_by_gallery_make_a_matrix():
    query, gallery = split(400, 8, 80, seed=17), split(900, 8, 80, seed=18)
    sizes = dict(QUERY_BLOCK=256, PRODUCT_ROWS=128, GALLERY_BLOCK=450, MATCH_BLOCK=256)
    with block_sizes(**sizes), block_sizes(ITEMS=1 << 15, FLOATS=1 << 15):
        largest = max(allocations(lambda: evaluate_reranked(query, gallery, k1=6, k2=2)))
    assert 0 < largest < 400 * 900 * 4 / 2


def test_lists_are_split_by_their_items():
    with block_sizes(ITEMS=10):
        parts = rerank.split_items(torch.tensor([3, 3, 3, 25, 0, 1, 9, 9]))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(8))
    assert len(parts) == 4 and max(sum([3, 3, 3, 25, 0, 1, 9, 9][part]) for part in parts) <= 10 + 25
    assert rerank.split_items(torch.tensor([], dtype=torch.int64)) == []


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "centroid"}, "protocol 'centroid' cannot be re-ranked; give image or centroid_all"),
        ({"k1": 0}, "k1 is 0 and k2 is 6"),
        ({"k2": 0}, "k1 is 20 and k2 is 0"),
        ({"lambda_": 1.5}, "lambda_ is 1.5"),
        ({"metric": "l1"}, "known: cosine, euclidean"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate_reranked(split(4, 3, 2, seed=19), split(9, 3, 2, seed=20), **arguments)


def test_a_junk_query_must_be_finite_as_it_is_a_neighbour():
    query, gallery = split(4, 3, 2, seed=19), split(9, 3, 2, seed=20)
    query.pids[1], query.embeddings[1] = -1, torch.nan
    with pytest.raises(ValueError, match="junk queries as neighbours, and one is not finite"):
        evaluate_reranked(query, gallery)


def test_queries_without_a_match_are_an_error():
    query, gallery = Features(np.eye(3), [1, 2, 3], [0] * 3), Features(np.eye(3), [4, 5, 6], [1] * 3)
    with pytest.raises(ValueError, match="none of the 3 queries"):
        evaluate_reranked(query, gallery)
