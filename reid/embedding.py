"""Where identities lie in feature space: centroids in two dimensions, by PCA and t-SNE, the same every time."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F

from reid.metrics.features import Features
from reid.metrics.protocols import build_gallery

MAX_IDENTITIES = 500  # more points hide each other, and the exact t-SNE takes time with their square
MIN_TSNE = 10
FLAT = 1e-12  # a smaller variance is rounding


@dataclass(frozen=True)
class Embedding:
    """I identities drawn out of `total`: pids (I,); mean_ap (I,), NaN where an identity has no valid query; pca (I, 2).

    explained (2,): the shares of the variance that PCA's two axes hold. tsne (I, 2), or None for the reason `no_tsne`.
    """

    pids: np.ndarray
    mean_ap: np.ndarray
    pca: np.ndarray
    explained: np.ndarray
    tsne: np.ndarray | None
    no_tsne: str
    total: int


def embed_centroids(query: Features, gallery: Features, ap: np.ndarray, valid: np.ndarray) -> Embedding | str:
    """The gallery's identities in two dimensions, or why there is no such picture.

    Points are normalised means of all images of an identity, distractors and junk left out. ap (V,) belongs to the V
    queries where valid (Q,) is true. Above MAX_IDENTITIES a fixed random sample is drawn.
    """
    from sklearn.decomposition import PCA

    listed = build_gallery(query, gallery, "centroid_all")
    rows = (~listed.distractors).nonzero().squeeze(1)
    total = len(rows)
    if total < 3:
        return f"the gallery has {total} identities; a picture of them needs at least 3"
    if total > MAX_IDENTITIES:
        kept = np.random.default_rng(0).choice(total, MAX_IDENTITIES, replace=False)
        rows = rows[np.sort(kept)]
    points = F.normalize(listed.embeddings[rows]).double().cpu().numpy()
    if points.shape[1] < 2 or points.var(axis=0).sum() < FLAT:
        return "the centroids do not differ in two dimensions"
    pids = listed.pids[rows].cpu().numpy()
    pca = PCA(n_components=2, svd_solver="full").fit(points)
    no_tsne = "" if len(rows) >= MIN_TSNE else f"t-SNE is left out: {len(rows)} identities, it needs {MIN_TSNE}"
    return Embedding(
        pids,
        _mean_by(pids, query.pids.cpu().numpy()[valid], ap),
        pca.transform(points),
        pca.explained_variance_ratio_,
        None if no_tsne else _tsne(points),
        no_tsne,
        total,
    )


def _tsne(points: np.ndarray) -> np.ndarray:
    """(N, 2). The exact method adds in one order; Barnes-Hut's threads do not."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(points) - 1) / 3)
    tsne = TSNE(2, init="pca", method="exact", perplexity=perplexity, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # identities at one place divide 0 by 0 on the way
        placed: np.ndarray = tsne.fit_transform(points)
    return placed


def _mean_by(pids: np.ndarray, of: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(I,) the mean of the `values` (V,) that belong to each of `pids` (I,), by their pids `of` (V,); NaN for none."""
    unique, place = np.unique(pids, return_inverse=True)
    at = np.searchsorted(unique, of)
    known = (at < len(unique)) & (unique[np.minimum(at, len(unique) - 1)] == of)
    sums, counts = (np.bincount(at[known], weights=weights, minlength=len(unique)) for weights in (values[known], None))
    means = np.full(len(unique), np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means[place]
