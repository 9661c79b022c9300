"""reid/reports/analysis.py: centroids in two dimensions, equal in each run, and the reasons why there are none."""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA

from reid.metrics.features import Features
from reid.reports import analysis
from reid.reports.analysis import Embedding, embed_centroids


def draw(identities, images=3, seed=0):
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(identities) * 2 + 1, images)
    return Features(torch.from_numpy(rng.normal(size=(len(pids), 6))), pids, np.tile(np.arange(images), identities))


def embed(identities, **more):
    gallery = draw(identities, **more)
    query = gallery.take(slice(None, None, 3))
    valid = np.arange(len(query)) % 4 != 0
    return embed_centroids(query, gallery, np.linspace(0, 1, valid.sum()), valid), gallery, valid


def test_points_are_the_pca_of_normalised_means():
    found, gallery, _ = embed(12)
    means = torch.stack([gallery.embeddings[gallery.pids == pid].mean(dim=0) for pid in found.pids.tolist()])
    points = F.normalize(means).double().numpy()
    expected = PCA(2).fit(points)
    assert np.allclose(np.abs(found.pca), np.abs(expected.transform(points)), atol=1e-5)
    assert np.allclose(found.explained, expected.explained_variance_ratio_, atol=1e-6)
    assert found.total == 12 and found.tsne.shape == (12, 2) and np.isfinite(found.tsne).all()


def test_colors_are_the_mean_ap_of_an_identitys_queries():
    gallery = draw(11)
    query = Features(torch.ones(6, 6), [3, 5, 3, 7, 4, 99], [9] * 6)  # the gallery has neither 4 nor 99
    valid = np.array([True, True, True, False, True, True])
    found = embed_centroids(query, gallery, np.array([0.2, 0.5, 0.6, 0.9, 0.9]), valid)
    by_pid = dict(zip(found.pids.tolist(), found.mean_ap.tolist(), strict=True))
    assert np.isclose(by_pid[3], 0.4) and by_pid[5] == 0.5
    assert all(np.isnan(value) for pid, value in by_pid.items() if pid not in (3, 5))  # 7 has no valid query


def test_two_runs_are_equal():
    one, other = embed(40)[0], embed(40)[0]
    assert np.array_equal(one.tsne, other.tsne) and np.array_equal(one.pca, other.pca)


def test_many_identities_are_sampled(monkeypatch):
    monkeypatch.setattr(analysis, "MAX_IDENTITIES", 20)
    found, _, _ = embed(60)
    assert found.total == 60 and len(set(found.pids.tolist())) == 20 and (np.diff(found.pids) > 0).all()
    assert np.array_equal(found.pids, embed(60)[0].pids)


def test_few_or_equal_identities():
    few, _, _ = embed(9)
    assert few.tsne is None and few.pca.shape == (9, 2)
    assert embed(10)[0].tsne is not None
    assert "needs at least 3" in embed(2)[0]
    same = Features(torch.ones(30, 4), np.repeat(np.arange(15), 2), np.tile([0, 1], 15))
    assert (
        embed_centroids(same, same, np.ones(30), np.ones(30, bool)) == "the centroids do not differ in two dimensions"
    )


def test_distractors_and_junk_are_left_out():
    gallery = draw(12)
    gallery.distractors = gallery.pids == 1
    gallery.pids[gallery.pids == 3] = -1
    found = embed_centroids(gallery, gallery, np.ones(36), np.ones(36, bool))
    assert isinstance(found, Embedding) and set(found.pids.tolist()) == set(range(5, 25, 2))
