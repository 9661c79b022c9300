"""Which entries each protocol lists, against loops and against the CTL authors' camera-aware centroids."""

import itertools
from unittest import mock

import numpy as np
import pytest
import torch

from reid.metrics import protocols as gallery_module
from reid.metrics.features import Features
from reid.metrics.protocols import EMPTIED, LISTED, PROTOCOLS, build_gallery
from tests.support.memory import allocations
from tests.support.oracles import DATA


def split(pids, camids, distractors=None, dim=5, seed=0):
    embeddings = np.random.default_rng(seed).normal(size=(len(pids), dim)).astype(np.float32)
    return Features(embeddings, np.array(pids), np.array(camids), distractors)


def mean(gallery, rows):
    return gallery.embeddings[rows].double().mean(0).float()


QUERY = split([3, 3, 7, 9, 7, -1], [0, 1, 2, 2, -1, 0], seed=1)
GALLERY = split(
    pids=[7, 3, 0, -1, 3, 3, 5, 0, 7, 3],
    camids=[2, 0, 1, 0, 1, 1, 4, 1, 2, -1],
    distractors=[False, False, True, False, False, False, False, True, False, False],
)


def test_image_lists_every_image_but_junk():
    listed = build_gallery(QUERY, GALLERY, "image")
    assert listed.first.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert listed.pids.tolist() == [7, 3, 0, 3, 3, 5, 0, 7, 3]
    assert listed.camids.tolist() == [2, 0, 1, 1, 1, 4, 1, 2, -1]
    assert torch.equal(listed.embeddings, GALLERY.embeddings[listed.first])
    assert listed.own_of.tolist() == [LISTED] * 6


@pytest.mark.parametrize("protocol", ["centroid", "centroid_all"])
def test_centroids_stand_where_their_first_image_stood_and_distractors_stand_alone(protocol):
    listed = build_gallery(QUERY, GALLERY, protocol)
    assert listed.pids.tolist() == [7, 3, 0, 5, 0]  # junk gone; identity 5 has no query and stays
    assert listed.first.tolist() == [0, 1, 2, 6, 7]
    assert listed.distractors.tolist() == [False, False, True, False, True]
    assert listed.camids.tolist() == [-1] * 5
    rows = [[0, 8], [1, 4, 5, 9], [2], [6], [7]]
    assert torch.equal(listed.embeddings, torch.stack([mean(GALLERY, r) for r in rows]))


def test_centroid_leaves_out_the_querys_camera():
    listed = build_gallery(QUERY, GALLERY, "centroid")
    three_without_0, three_without_1, seven = listed.own_of[:3].tolist()
    assert torch.equal(listed.own[three_without_0], mean(GALLERY, [4, 5, 9]))
    assert torch.equal(listed.own[three_without_1], mean(GALLERY, [1, 9]))  # camera -1 is no camera: row 9 stays
    assert seven == EMPTIED  # all images of 7 come from camera 2
    assert listed.own_of[3:].tolist() == [LISTED] * 3  # absent identity; unknown camera; junk query


def test_centroid_all_has_no_camera_rule():
    assert build_gallery(QUERY, GALLERY, "centroid_all").own_of.tolist() == [LISTED] * 6


def test_a_camera_without_images_of_the_identity_needs_no_centroid_of_its_own():
    query = split([3, 3], [2, 0])
    listed = build_gallery(query, GALLERY, "centroid")
    assert listed.own_of[0] == LISTED and listed.own_of[1] >= 0


def test_an_unknown_camera_takes_nothing_away():
    assert build_gallery(split([3], [-1]), GALLERY, "centroid").own_of.tolist() == [LISTED]  # row 9 has none either


def test_queries_of_one_identity_and_camera_share_a_centroid():
    query = split([3, 3, 3], [0, 0, 1])
    listed = build_gallery(query, GALLERY, "centroid")
    assert listed.own_of[0] == listed.own_of[1] != listed.own_of[2]


def test_pid_0_is_an_identity_without_a_mask():
    plain = Features(GALLERY.embeddings, GALLERY.pids, GALLERY.camids)
    listed = build_gallery(QUERY, plain, "centroid")
    assert listed.pids.tolist() == [7, 3, 0, 5]
    assert torch.equal(listed.embeddings[2], mean(plain, [2, 7]))


def test_taking_a_camera_away_leaves_no_rounding_behind():
    """A camera with huge features: in float32 the identity's sum minus the camera's would be off by units."""
    embeddings = torch.tensor([[1e8, 3e7], [1.25, -0.1], [0.1, 0.3]])
    gallery = Features(embeddings, torch.tensor([1, 1, 1]), torch.tensor([0, 1, 1]))
    listed = build_gallery(split([1], [0], dim=2), gallery, "centroid")
    torch.testing.assert_close(listed.own[listed.own_of[0]], embeddings[1:].mean(0), rtol=1e-6, atol=0)


def test_distractors_are_copied_once():
    gallery = split(np.arange(9000) % 3000, [-1] * 9000, np.arange(9000) >= 300, dim=64)
    built = []
    with mock.patch.object(gallery_module, "ROWS_PER_SUM", 500):
        sizes = allocations(lambda: built.append(build_gallery(QUERY, gallery, "centroid_all")))
    (listed,) = built
    assert torch.equal(listed.embeddings, gallery.embeddings)
    assert sum(size for size in sizes if size > listed.embeddings.nbytes / 2) < 1.1 * listed.embeddings.nbytes


# --- ctl_published


def held(listed, gallery, entry):
    """Which images of its identity an entry is the mean of, found among all subsets."""
    rows = [r for r in range(len(gallery)) if gallery.pids[r] == listed.pids[entry]]
    for size in range(len(rows), 0, -1):
        for subset in itertools.combinations(rows, size):
            if torch.allclose(mean(gallery, list(subset)), listed.embeddings[entry], atol=1e-6):
                return list(subset)
    raise AssertionError("the mean of no images of its identity")


def test_ctl_published_reads_cameras_at_the_wrong_place():
    """Five gallery images, cameras 0 1 0 1 2, are taken for the queries' cameras 2 0 1 and then their own first 0 1."""
    query = split([3, 3, 7], [2, 0, 1], seed=1)
    gallery = split([3, 3, 3, 7, 5], [0, 1, 0, 1, 2])
    listed = build_gallery(query, gallery, "ctl_published")
    assert listed.pids.tolist() == [3, 3, 7]  # 5 has no query
    # Rows 0 1 2 are taken for cameras 2 0 1: leaving out 0 takes row 1, leaving out 2 takes row 0. Row 3 is taken for
    # camera 0, so the query of 7 by camera 1 has nothing to leave out, and keeps the image by its own camera.
    assert [held(listed, gallery, entry) for entry in range(3)] == [[0, 2], [1, 2], [3]]
    assert listed.sole_of.tolist() == [1, 0, -1] and listed.own_of.tolist() == [LISTED] * 3
    pairs = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([2, 2, 0, 0, 1]), torch.tensor([0, 1, 0, 1, 2])
    assert listed.removes(*pairs).tolist() == [True, False, False, True, False]


def test_ctl_published_shares_the_complete_mean_among_cameras_that_leave_nothing_out():
    """Camera 0 sees the mean that leaves out camera 0 only; cameras 8 and 9 see that one and the complete mean."""
    query = split([3, 3, 3, 3], [0, 8, 9, 0], seed=1)
    gallery = split([3, 3], [5, 5])  # taken for cameras 0 and 8
    query.camids[1] = 7
    listed = build_gallery(query, gallery, "ctl_published")  # taken for cameras 0 and 7
    assert [held(listed, gallery, entry) for entry in range(len(listed))] == [[1], [0], [0, 1]]
    assert listed.sole_of.tolist() == [0, 1, -1, 0]


def test_ctl_published_removes_all_where_nothing_is_left():
    query, gallery = split([3, 3], [0, 1], seed=1), split([3], [5])  # its image is taken for camera 0
    listed = build_gallery(query, gallery, "ctl_published")
    assert listed.own_of.tolist() == [EMPTIED, LISTED] and listed.pids.tolist() == [3]
    assert listed.removes(torch.tensor([0, 1]), query.camids, torch.tensor([0, 0])).tolist() == [True, False]


def test_ctl_published_counts_no_junk_and_lists_no_distractors():
    query = split([-1, 3, 3], [4, 0, 1], seed=1)
    gallery = split([3, -1, 3, 0, 3], [5, 5, 5, 5, 5], [False, False, False, True, False])
    listed = build_gallery(query, gallery, "ctl_published")
    # The rows but junk, 0 2 3 4, are taken for cameras 0 1 of the queries but junk, then 5 5.
    assert listed.pids.tolist() == [3, 3]
    assert [held(listed, gallery, entry) for entry in range(2)] == [[2, 4], [0, 4]]


def test_a_distractor_among_the_queries_lists_no_identity():
    query, gallery = split([7, 3], [0, 1], [False, True], seed=1), split([3, 7], [5, 5])
    assert build_gallery(query, gallery, "ctl_published").pids.tolist() == [7]
    query.distractors = None
    assert build_gallery(query, gallery, "ctl_published").pids.tolist() == [3, 7]


def test_ctl_published_without_cameras_is_centroid_all_of_the_identities_asked_for():
    query, gallery = split([3, 7, 3], [-1] * 3, seed=1), split([3, 5, 7, 3, 0], [-1] * 5)
    listed, complete = (build_gallery(query, gallery, protocol) for protocol in ("ctl_published", "centroid_all"))
    assert listed.pids.tolist() == [3, 7] and listed.sole_of.tolist() == [-1] * 3
    assert torch.equal(listed.embeddings, complete.embeddings[[0, 2]])


def test_ctl_published_of_a_slice_lists_what_all_queries_list():
    complete = build_gallery(QUERY, GALLERY, "ctl_published")
    part = build_gallery(QUERY.take(slice(2, 5)), GALLERY, "ctl_published")
    assert torch.equal(part.embeddings, complete.embeddings) and torch.equal(part.pids, complete.pids)
    assert torch.equal(part.sole_of, complete.sole_of[2:5]) and torch.equal(part.own_of, complete.own_of[2:5])


def test_ctl_published_lists_what_the_ctl_authors_code_lists():
    data, published = (np.load(DATA / f"eval_small_{name}.npz") for name in ("ctl", "ctl_published"))
    cut = int(data["num_query"])
    query, gallery = (
        Features(*(data[name][rows] for name in ("embeddings", "pids", "camids")))
        for rows in (slice(cut), slice(cut, None))
    )
    listed = build_gallery(query, gallery, "ctl_published")
    assert listed.pids.tolist() == published["labels"].tolist()
    # Theirs stand in another order within an identity: pair them by the nearest, and look at which a query sees.
    distances = torch.cdist(listed.embeddings, torch.as_tensor(published["embeddings"]))
    theirs = distances.masked_fill(listed.pids[:, None] != torch.as_tensor(published["labels"]), torch.inf).argmin(1)
    assert sorted(theirs.tolist()) == list(range(136))
    np.testing.assert_allclose(listed.embeddings, published["embeddings"][theirs], atol=5e-7)
    pairs = (query.pids[:, None] == listed.pids).nonzero()
    removed = listed.removes(pairs[:, 0], query.camids[pairs[:, 0]], pairs[:, 1])
    cameras = torch.as_tensor(published["cameras"])[theirs]
    assert torch.equal(removed, (cameras[pairs[:, 1]] == query.camids[pairs[:, 0], None]).any(1))


def test_rows_taken_remember_the_complete_split():
    part = QUERY.take(torch.tensor([4, 0]))
    assert part.pids.tolist() == [7, 3] and part.camids.tolist() == [-1, 0] and part.distractors is None
    assert part.taken_from is QUERY and part.take(slice(1)).taken_from is QUERY and QUERY.taken_from is None
    assert GALLERY.take(slice(2, 4)).distractors.tolist() == [True, False]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_gallery_of_junk_lists_nothing(protocol):
    assert len(build_gallery(QUERY, split([-1, -1], [0, 1]), protocol)) == 0


def test_sums_in_parts_equal_sums_at_once(monkeypatch):
    complete = build_gallery(QUERY, GALLERY, "centroid")
    monkeypatch.setattr("reid.metrics.protocols.ROWS_PER_SUM", 2)
    parts = build_gallery(QUERY, GALLERY, "centroid")
    assert torch.equal(complete.embeddings, parts.embeddings) and torch.equal(complete.own, parts.own)


def test_centroids_agree_with_the_ctl_authors_code():
    """Their code with the camera look-up fixed: one centroid per (query identity, query camera), and without cameras
    one per identity. `eval_small_ctl.npz` holds what it made of random features (756 images, 6 cameras)."""
    data = np.load(DATA / "eval_small_ctl.npz")
    cut = int(data["num_query"])
    query = Features(data["embeddings"][:cut], data["pids"][:cut], data["camids"][:cut])
    gallery = Features(data["embeddings"][cut:], data["pids"][cut:], data["camids"][cut:])

    listed = build_gallery(query, gallery, "centroid_all")
    order = listed.pids.argsort()
    assert listed.pids[order].tolist() == data["centroid_all_labels"].tolist()
    np.testing.assert_allclose(listed.embeddings[order], data["centroid_all_embeddings"], atol=5e-7)

    listed = build_gallery(query, gallery, "centroid")
    compared = 0
    for i, (pid, camid) in enumerate(zip(query.pids.tolist(), query.camids.tolist(), strict=True)):
        theirs = (data["centroid_fixed_labels"] == pid) & (data["centroid_fixed_cameras"] != camid).all(1)
        if listed.own_of[i] == EMPTIED:
            assert not theirs.any()
            continue
        ours = listed.own[listed.own_of[i]] if listed.own_of[i] >= 0 else listed.embeddings[listed.pids == pid][0]
        np.testing.assert_allclose(ours, data["centroid_fixed_embeddings"][theirs][0], atol=5e-7)
        compared += 1
    assert compared == 135


def test_features_take_lists_and_halves():
    features = Features(torch.zeros(2, 3, dtype=torch.bfloat16), [1, 2], np.zeros(2, np.uint8), [0, 1])
    assert features.embeddings.dtype == torch.float32 and features.pids.dtype == torch.int64
    assert features.is_distractor().tolist() == [False, True] and len(features) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), [1], [1]), r"embeddings have shape \(3,\)"),
        ((torch.zeros(3, 2), [1, 2], [1, 2, 3]), r"pids have shape \(2,\); 3 embeddings need \(3,\)"),
        ((torch.zeros(3, 2), [1, 2, 3], [1]), r"camids have shape \(1,\)"),
        ((torch.zeros(3, 2), [1, 2, 3], [1, 2, 3], [True]), r"distractors have shape \(1,\)"),
        ((torch.zeros(2, 2), [1.0, 2.5], [1, 2]), "pids are float64; give integers"),
    ],
)
def test_wrong_shapes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Features(*arguments)


def test_an_unknown_protocol_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown protocol 'images'; known: image, centroid, centroid_all"):
        build_gallery(QUERY, GALLERY, "images")
