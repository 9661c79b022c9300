"""Blocks, ties and memory of a ranking: whatever the block sizes, the answer is that of one dense matrix."""

from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.metrics import scores, top_k
from reid.metrics import scores as counting
from reid.metrics import scores as similarity
from reid.metrics.features import JUNK, Features
from reid.metrics.protocols import PROTOCOLS
from reid.metrics.rerank import Reranked
from reid.metrics.retrieval import evaluate, evaluate_search, merge
from reid.metrics.scores import NEVER
from tests.support.blocks import block_sizes
from tests.support.gaps import are_apart
from tests.support.memory import allocations


def blocks(**sizes):
    small = dict(QUERY_BLOCK=7, PRODUCT_ROWS=3, GALLERY_BLOCK=5, MATCH_BLOCK=2, TIE_BLOCK=4, TILE=2, COUNTED=10)
    return block_sizes(**{**small, **sizes})


def random_split(size, dim, identities, seed, copies=0):
    """Normal features, of which `copies` rows repeat others."""
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(size, dim)).astype(np.float32)
    embeddings[rng.permutation(size)[:copies]] = embeddings[rng.integers(0, size, copies)]
    return Features(embeddings, rng.integers(0, identities, size), rng.integers(0, 3, size))


def exact_split(size, dim, identities, seed, copies=0):
    """As `random_split`, of multiples of 1/16: products are exact in float32, in blocks of any size."""
    split = random_split(size, dim, identities, seed, copies)
    split.embeddings.mul_(16).round_().div_(16)
    return split


def integer_split(size, identities, seed):
    """Whole numbers and norms of 1, 2 and 4: exact in any arithmetic, and so mostly ties."""
    rng = np.random.default_rng(seed)
    vectors = np.array([(1, 0, 0, 0), (0, -2, 0, 0), (0, 0, 4, 0), (1, 1, 1, 1), (2, -2, 2, 2), (0, 0, 0, 0)])
    embeddings = vectors[rng.integers(0, len(vectors), size)].astype(np.float32)
    return Features(embeddings, rng.integers(0, identities, size), rng.integers(0, 3, size))


# --- counting


def count_by_hand(scores, matches, entries):
    counts = np.zeros(matches.shape, int)
    for r, p in np.ndindex(*matches.shape):
        for e, score in enumerate(scores[r]):
            counts[r, p] += score > matches[r, p] or (score == matches[r, p] and e < entries[r, p])
    return counts


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 40), st.integers(0, 90), st.booleans())
def test_counts_agree_with_a_loop(seed, rows, width, matches, many_ties):
    rng = np.random.default_rng(seed)
    values = np.round(rng.normal(size=(rows, width + matches)), 0 if many_ties else 9).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = NEVER
    scores, sought = values[:, :width], -np.sort(-values[:, width:], axis=1)
    entries = rng.integers(-5, width + 5, size=sought.shape)  # also outside this slice of the gallery
    expected = count_by_hand(scores, sought, entries)
    expected[sought == NEVER] = 0
    arguments = [torch.from_numpy(np.ascontiguousarray(x)) for x in (scores, sought, entries)]
    for count in (counting._count_by_sorting, counting._count_by_bucket):
        with block_sizes(COUNTED=2 * width):
            found = count(*arguments).numpy()
        found[sought == NEVER] = 0
        np.testing.assert_array_equal(found, expected, err_msg=count.__name__)


# --- top_k


def scores_by_hand(query, gallery, metric):
    """(Q, G) of float64, without the digits that depend on the order of a sum: equal features have equal scores."""
    rows, columns = query.embeddings.double(), gallery.embeddings.double()
    if metric == "cosine":
        scores = F.normalize(rows) @ F.normalize(columns).T
    else:
        scores = -torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")
    return scores.numpy().round(9)


def top_k_by_hand(query, gallery, k, metric):
    """Every score of one dense matrix, sorted by (score, gallery order). float32 must sort the best k alike."""
    scores = scores_by_hand(query, gallery, metric)
    same = query.pids[:, None] == gallery.pids
    scores[(same & (query.camids[:, None] == gallery.camids)).numpy()] = NEVER
    order = np.argsort(-scores, axis=1, kind="stable")
    found = np.take_along_axis(scores, order, axis=1)
    assert all(are_apart(row[row > NEVER]) for row in found[:, : k + 1])
    order, found = order[:, :k], found[:, :k]
    missing = ((0, 0), (0, k - order.shape[1]))
    return np.pad(np.where(found == NEVER, -1, order), missing, constant_values=-1), np.pad(
        found, missing, constant_values=NEVER
    )


@pytest.mark.parametrize("k", [1, 4, 19, 60])
@pytest.mark.parametrize("metric", similarity.METRICS)
@pytest.mark.parametrize("sizes", [{}, {"GALLERY_BLOCK": 100}, {"GALLERY_BLOCK": 20, "PRODUCT_ROWS": 256}])
def test_top_k_with_ties_agrees_with_a_sort(k, metric, sizes):
    query, gallery = integer_split(20, 5, seed=1), integer_split(50, 5, seed=2)
    indices, scores = top_k_by_hand(query, gallery, k, metric)
    with blocks(**sizes):
        found_indices, found_scores = top_k(query, gallery, k, metric=metric)
    np.testing.assert_array_equal(found_indices, indices)
    np.testing.assert_allclose(found_scores, scores, atol=1e-5)


def test_top_k_of_random_features_agrees_with_a_sort():
    query, gallery = exact_split(40, 16, 9, seed=3), exact_split(300, 16, 9, seed=4)
    expected, _ = top_k_by_hand(query, gallery, 20, "cosine")
    for sizes in ({"GALLERY_BLOCK": 1000}, {"GALLERY_BLOCK": 70, "PRODUCT_ROWS": 16, "QUERY_BLOCK": 32}):
        with blocks(**sizes):
            indices, _ = top_k(query, gallery, 20)
        np.testing.assert_array_equal(indices, expected)


def test_a_collapsed_model_lists_the_gallery_in_order():
    query, gallery = (Features(np.ones((size, 4)), np.arange(size) + size, [0] * size) for size in (5, 300))
    assert top_k(query, gallery, 50)[0].tolist() == [list(range(50))] * 5


# --- blocks


@pytest.mark.parametrize("metric", similarity.METRICS)
@pytest.mark.parametrize("protocol", ["image", "centroid", "centroid_all"])
@pytest.mark.parametrize("make", [exact_split, integer_split])
def test_block_sizes_change_nothing(protocol, metric, make):
    arguments = [8] if make is exact_split else []
    query, gallery = make(30, *arguments, 6, seed=5), make(90, *arguments, 6, seed=6)
    complete = evaluate(query, gallery, protocol, metric)
    for sizes in ({}, {"PRODUCT_ROWS": 256}, {"GALLERY_BLOCK": 1000}, {"QUERY_BLOCK": 100, "MATCH_BLOCK": 16}):
        with blocks(**sizes):
            part = evaluate(query, gallery, protocol, metric)
        assert np.array_equal(part.ap, complete.ap) and np.array_equal(part.first_ranks, complete.first_ranks)


def test_copies_in_another_slice_tie_in_gallery_order():
    """A match's score comes from another product than its rivals'. Relies on equal features giving equal scores in any
    column of any product, to the last bit; features that differ score too far apart for rounding to exchange them."""
    query, gallery = random_split(40, 300, 100, seed=15), random_split(700, 300, 100, seed=16, copies=400)
    for row, pid in zip(scores_by_hand(query, gallery, "cosine"), query.pids, strict=True):
        assert are_apart(row, (gallery.pids == pid).numpy())
    complete = evaluate(query, gallery)
    with blocks(QUERY_BLOCK=24, PRODUCT_ROWS=16, GALLERY_BLOCK=200, MATCH_BLOCK=256, TILE=128):
        assert np.array_equal(evaluate(query, gallery).ap, complete.ap)


@pytest.mark.parametrize("cuts", [[0, 1, 70], [0, 33, 33, 70]])
def test_merged_slices_equal_the_complete_split_where_the_gallery_is_sliced(cuts):
    query, gallery = exact_split(70, 300, 40, seed=9), exact_split(500, 300, 40, seed=10, copies=50)
    with blocks(QUERY_BLOCK=48, PRODUCT_ROWS=16, GALLERY_BLOCK=200, MATCH_BLOCK=128):
        complete = evaluate(query, gallery)
        parts = [
            evaluate(Features(query.embeddings[i:j], query.pids[i:j], query.camids[i:j]), gallery, partial=True)
            for i, j in zip(cuts, [*cuts[1:], 70], strict=True)
        ]
    merged = merge(parts)
    assert np.array_equal(merged.ap, complete.ap) and merged.to_json() == complete.to_json()


@pytest.mark.parametrize(("size", "lengths"), [(0, [0]), (5, [5]), (6, [3, 3]), (11, [3, 4, 4])])
def test_no_slice_is_a_remnant(size, lengths):
    with blocks():
        parts = scores.cut(size)
    assert [part.stop - part.start for part in parts] == lengths
    assert parts[0].start == 0 and parts[-1].stop == size


# --- galleries on disk


def test_a_gallery_on_disk_ranks_as_one_in_memory(tmp_path):
    query, gallery = random_split(30, 32, 12, seed=11), random_split(400, 32, 12, seed=12)
    np.save(tmp_path / "gallery.npy", gallery.embeddings.numpy())
    on_disk = Features(np.load(tmp_path / "gallery.npy", mmap_mode="c"), gallery.pids, gallery.camids)
    for metric in similarity.METRICS:
        with blocks(QUERY_BLOCK=16, PRODUCT_ROWS=8, GALLERY_BLOCK=150, MATCH_BLOCK=128):
            assert np.array_equal(
                evaluate(query, on_disk, metric=metric).ap, evaluate(query, gallery, metric=metric).ap
            )
            found = [top_k(query, features, 9, metric=metric) for features in (on_disk, gallery)]
        assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(("metric", "junk"), list(zip(similarity.METRICS, (0, 100), strict=True)))
def test_nothing_as_large_as_the_gallery_is_made(metric, junk):
    query, gallery = random_split(32, 256, 40, seed=13), random_split(2000, 256, 400, seed=14)
    gallery.pids[::20][:junk] = JUNK
    sizes = dict(QUERY_BLOCK=32, PRODUCT_ROWS=32, GALLERY_BLOCK=500, MATCH_BLOCK=64)
    with blocks(**sizes), block_sizes(NORM_ROWS=160):
        largest = max(
            *allocations(lambda: evaluate(query, gallery, metric=metric)),
            *allocations(lambda: top_k(query, gallery, 10, metric=metric)),
        )
    assert 0 < largest < gallery.embeddings.nbytes / 8


def test_slices_of_a_gallery_with_junk_are_those_of_its_rows():
    with blocks(GALLERY_BLOCK=4):
        assert scores.cut(12, torch.tensor([0, 2, 3, 8, 11])) == [slice(0, 3), slice(3, 5)]
        assert scores.cut(12, torch.tensor([], dtype=torch.int64)) == [slice(0, 0)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("sizes", [{}, {"GALLERY_BLOCK": 1000}])
def test_junk_may_hold_anything(protocol, sizes):
    query, gallery = random_split(20, 8, 6, seed=17), random_split(60, 8, 6, seed=18)
    for split in (query, gallery):
        split.pids[[0, 4, 5, 6, 7, 19]] = JUNK

    def rank():
        with blocks(**sizes):
            return evaluate(query, gallery, protocol).to_json(), top_k(query, gallery, 60, protocol)[0][8:19].tolist()

    expected = rank()
    query.embeddings[0], gallery.embeddings[4:8], gallery.embeddings[19] = torch.nan, torch.nan, 1e30
    assert rank() == expected


@pytest.mark.parametrize("part", [slice(0, 3), slice(6, 9), slice(4, 4)])
def test_every_slice_names_the_same_row(part):
    """Of all queries, whichever slice a process has: one that finds no fault would wait for those that did."""
    query, gallery = random_split(9, 4, 3, seed=19), random_split(9, 4, 3, seed=20)
    gallery.embeddings[5] = torch.inf
    with pytest.raises(ValueError, match=r"gallery: the embedding in row 1 .* \(1 of 5 rows are\)"):
        evaluate(query, gallery.take(slice(4, 9)))
    query.embeddings[7] = torch.nan
    with pytest.raises(ValueError, match=r"query: the embedding in row 7 .* \(1 of 9 rows are\)"):
        evaluate(query.take(part), gallery, partial=True)


def test_a_pass_reads_each_slice_once():
    """Ten queries in passes of four, products of two, three slices: 3 passes x 3 slices, not 5 products x 3 slices."""
    query, gallery = random_split(10, 8, 4, seed=15), random_split(15, 8, 4, seed=16)
    read = []
    scores = similarity.Vectors.scores

    def recording(vectors, queries, entries):
        if isinstance(entries, slice):
            read.append(entries.start)
        return scores(vectors, queries, entries)

    for rank in (evaluate, lambda *features: top_k(*features, 3)):
        read.clear()
        with blocks(QUERY_BLOCK=4, PRODUCT_ROWS=2), mock.patch.object(similarity.Vectors, "scores", recording):
            rank(query, gallery)
        assert [start for i, start in enumerate(read) if read[i - 1] != start] == [0, 5, 10] * 3
        assert len(read) == 15


def test_a_zero_feature_scores_zero():
    query, gallery = Features(np.eye(2), [1, 2], [0, 0]), Features([(0.0, 0.0), (3.0, 4.0)], [5, 6], [1, 1])
    indices, scores = top_k(query, gallery, 2)
    assert indices.tolist() == [[1, 0], [1, 0]]
    np.testing.assert_allclose(scores, [[0.6, 0], [0.8, 0]], atol=1e-7)


# --- scale


def scaled(split, factor):
    return Features(split.embeddings * factor, split.pids, split.camids)


@pytest.mark.parametrize("metric", similarity.METRICS)
def test_a_power_of_two_on_all_features_changes_nothing(metric):
    query, gallery = exact_split(30, 8, 9, seed=21), exact_split(120, 8, 9, seed=22)
    centroids = [row for row in PROTOCOLS if row != "image"] if metric == "cosine" else []

    def rank(factor):
        splits = scaled(query, factor), scaled(gallery, factor)
        indices, values = top_k(*splits, 9, metric=metric)
        aps = [evaluate(*splits, protocol, metric).ap for protocol in ("image", *centroids)]
        reranked = evaluate_search(Reranked(*splits, metric=metric)).ap
        return indices, values if metric == "cosine" else values / factor, *aps, reranked

    expected = rank(1.0)
    for exponent in (-20, -33, -70, -120, 40):
        for found, same in zip(rank(2.0**exponent), expected, strict=True):
            np.testing.assert_array_equal(found, same, err_msg=f"2**{exponent}")


def test_under_cosine_each_row_may_have_its_own_scale():
    query, gallery = exact_split(30, 8, 9, seed=23), exact_split(120, 8, 9, seed=24)
    rng = np.random.default_rng(25)
    rows = [torch.from_numpy(2.0 ** rng.integers(-120, 40, (len(split), 1))).float() for split in (query, gallery)]
    other = scaled(query, rows[0]), scaled(gallery, rows[1])
    for found, expected in zip(top_k(*other, 9), top_k(query, gallery, 9), strict=True):
        assert torch.equal(found, expected)
    assert np.array_equal(evaluate(*other).ap, evaluate(query, gallery).ap)


def test_euclidean_ranks_clusters_of_very_different_scales():
    query, gallery = exact_split(40, 8, 10, seed=26), exact_split(200, 8, 10, seed=27)
    scale = 2.0 ** torch.linspace(-110, 10, 10)[:, None]  # of an identity
    query, gallery = (scaled(split, scale[split.pids]) for split in (query, gallery))
    indices, _ = top_k(query, gallery, 1, metric="euclidean")
    for row, found in enumerate(indices[:, 0].tolist()):
        kept = (gallery.pids != query.pids[row]) | (gallery.camids != query.camids[row])
        distances = (query.embeddings[row].double() - gallery.embeddings.double()).square().sum(1)
        assert found == int(distances.where(kept, torch.inf).argmin())
    query.embeddings[0] = 2.0**30
    with pytest.raises(ValueError, match=r"norms of features reach from .* compare by cosine"):
        evaluate(query, gallery, metric="euclidean")


def test_with_one_dimension_all_features_of_one_sign_are_ties():
    rng = np.random.default_rng(28)
    values = rng.normal(size=(60, 1)) * 10.0 ** rng.integers(-30, 10, (60, 1))
    indices, found = top_k(Features(rng.normal(size=(5, 1)) + 9, [99] * 5, [0] * 5), random_pids(values), 60)
    expected = np.argsort(-np.sign(values[:, 0]), kind="stable")
    np.testing.assert_array_equal(indices, np.tile(expected, (5, 1)))
    np.testing.assert_array_equal(found, np.tile(np.sign(values[expected, 0]), (5, 1)))


def random_pids(values):
    return Features(values, range(len(values)), [1] * len(values))


@pytest.mark.parametrize("metric", similarity.METRICS)
def test_features_that_float32_cannot_hold_are_refused(metric):
    split = exact_split(9, 4, 3, seed=29)
    for factor in (1e-44, 1e20):
        bad = scaled(split, 1)
        bad.embeddings[5] = factor
        with pytest.raises(ValueError, match=r"gallery: the embedding in row 5 is too (small|large) for float32"):
            evaluate(split, bad, metric=metric)
    tiny = np.where(np.arange(9)[:, None] == 5, 1e-60, split.embeddings.double())
    with pytest.raises(ValueError, match="embeddings: row 5 is too small for float32"):
        Features(tiny, split.pids, split.camids)
    with pytest.raises(ValueError, match="query embeddings have no dimension"):
        evaluate(Features(np.ones((9, 0)), split.pids, split.camids), split, metric=metric)
    split.pids[5] = JUNK
    Features(tiny, split.pids, split.camids)
