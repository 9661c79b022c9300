"""What a report shows in addition to the metrics: pairs of cameras, scores of pairs, centroids in two dimensions."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from reid.metrics import retrieval, verification
from reid.metrics.features import JUNK, UNKNOWN, Features
from reid.metrics.norms import normalize
from reid.metrics.protocols import build_gallery

MAX_CAMERAS = 40  # a larger matrix can be neither read nor drawn
MAX_PAIRS = 1 << 28  # scores that are counted: some seconds on one core
SCORE_BINS = 128  # of the cosine from -1 to 1; divides the steps that scores are counted in
MAX_IDENTITIES = 500  # more points hide each other, and the time of the exact t-SNE grows with their square
MIN_TSNE_IDENTITIES = 10
MIN_VARIANCE = 1e-12  # a smaller variance is rounding


@dataclass(frozen=True)
class CameraPairs:
    """Image mAP of the queries of one camera among the gallery images of another.

    query_cameras: (A,) ascending.
    gallery_cameras: (B,) ascending.
    mean_ap: (A, B), NaN where no query has a match.
    num_queries: (A, B) the queries that have a match.
    """

    query_cameras: np.ndarray
    gallery_cameras: np.ndarray
    mean_ap: np.ndarray
    num_queries: np.ndarray

    def extremes(self) -> list[tuple[int, int]]:
        """Return (row, column) of the lowest and of the highest mAP; an empty list if all are NaN."""
        if np.isnan(self.mean_ap).all():
            return []
        return [divmod(int(find(self.mean_ap)), self.mean_ap.shape[1]) for find in (np.nanargmin, np.nanargmax)]

    def to_json(self) -> dict:
        """NaN becomes null."""
        return {
            "query_cameras": self.query_cameras.tolist(),
            "gallery_cameras": self.gallery_cameras.tolist(),
            "mAP": [[None if np.isnan(value) else float(value) for value in row] for row in self.mean_ap],
            "num_queries": self.num_queries.tolist(),
        }


def measure_camera_pairs(query: Features, gallery: Features, metric: str = "cosine") -> CameraPairs | str:
    """Evaluate against the gallery images of one camera at a time, its distractors included.

    Returns:
        The mAP by pair of cameras, or the reason why there is none.
    """
    rows, columns = (
        split.camids[(split.camids != UNKNOWN) & (split.pids != JUNK)].unique().tolist() for split in (query, gallery)
    )
    if len({*rows, *columns}) < 2 or not rows or not columns:
        return "fewer than two known cameras"
    if max(len(rows), len(columns)) > MAX_CAMERAS:
        return f"{max(len(rows), len(columns))} cameras; a matrix of more than {MAX_CAMERAS} cannot be read"
    mean_ap = np.full((len(rows), len(columns)), np.nan)
    num_queries = np.zeros(mean_ap.shape, dtype=np.int64)
    camids = query.camids.cpu().numpy()
    for j, gallery_camera in enumerate(columns):
        kept = gallery.camids == gallery_camera
        if 2 * int(kept.sum()) < len(gallery):
            part = gallery.take(kept)
        else:  # the others become junk, because a copy of the features would take too much memory
            pids = gallery.pids.masked_fill(~kept, JUNK)
            part = Features(gallery.embeddings, pids, gallery.camids, gallery.distractors)
        result = retrieval.evaluate(query, part, "image", metric, max_rank=1, partial=True)
        for i, query_camera in enumerate(rows):
            ap = result.ap[camids[result.valid] == query_camera]
            num_queries[i, j] = len(ap)
            if len(ap):
                mean_ap[i, j] = ap.mean()
    return CameraPairs(np.asarray(rows), np.asarray(columns), mean_ap, num_queries)


@dataclass(frozen=True)
class ScoreHistogram:
    """How often pairs of a query and a gallery image by different cameras have which cosine.

    genuine, impostor: (SCORE_BINS,) numbers of pairs of one person and of two, by cosine from -1 to 1.
    threshold: at which false positives and false negatives are equally frequent, with `error`, their rate.
    queries, total: of the queries, those whose pairs were counted, and all.
    """

    genuine: np.ndarray
    impostor: np.ndarray
    threshold: float
    error: float
    queries: int
    total: int


def measure_scores(query: Features, gallery: Features) -> ScoreHistogram | str:
    """Count the cosines of pairs, block by block; of more than MAX_PAIRS pairs those of evenly spaced queries.

    Returns:
        The histogram, or the reason why there is none.
    """
    step = -(-len(query) * len(gallery) // MAX_PAIRS)
    part = query.take(torch.arange(0, len(query), step)) if step > 1 else query
    counts = verification.count_scores(part, gallery)
    genuine, impostor = (
        kind.reshape(SCORE_BINS, -1).sum(dim=1).cpu().numpy() for kind in (counts.genuine, counts.impostor)
    )
    if not genuine.sum() or not impostor.sum():
        return f"{genuine.sum():,} pairs of one person and {impostor.sum():,} of two, by different cameras"
    point = verification.equal_error_point(counts)
    error = (point.false_positive_rate + 1 - point.true_positive_rate) / 2
    return ScoreHistogram(genuine, impostor, point.threshold, error, len(part), len(query))


@dataclass(frozen=True)
class Embedding:
    """The centroids of I identities in two dimensions.

    pids: (I,).
    mean_ap: (I,) over the valid queries of the identity, NaN if it has none.
    pca: (I, 2).
    explained: (2,) the shares of the variance along the axes of PCA.
    tsne: (I, 2), or None for fewer than MIN_TSNE_IDENTITIES identities.
    total: the number of identities in the gallery, of which I were drawn at random.
    """

    pids: np.ndarray
    mean_ap: np.ndarray
    pca: np.ndarray
    explained: np.ndarray
    tsne: np.ndarray | None
    total: int


def embed_centroids(query: Features, gallery: Features, ap: np.ndarray, valid: np.ndarray) -> Embedding | str:
    """Compute PCA and t-SNE of the gallery's identities.

    A point is the normalized mean of all images of an identity; distractors and junk are left out. Of more than
    MAX_IDENTITIES identities, a fixed random sample is shown.

    Args:
        ap: (V,) of the valid queries.
        valid: (Q,) bool, V of them true.

    Returns:
        The points, or the reason why there are none.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    listed = build_gallery(query, gallery, "centroid_all")
    rows = (~listed.distractors).nonzero().squeeze(1)
    total = len(rows)
    if total < 3:
        return f"the gallery has {total} identities; a picture of them needs at least 3"
    if total > MAX_IDENTITIES:
        sample = np.random.default_rng(0).choice(total, MAX_IDENTITIES, replace=False)
        rows = rows[np.sort(sample)]
    points = normalize(listed.embeddings[rows]).double().cpu().numpy()
    if points.shape[1] < 2 or points.var(axis=0).sum() < MIN_VARIANCE:
        return "the centroids do not differ in two dimensions"
    pids, query_pids = listed.pids[rows].cpu().numpy(), query.pids.cpu().numpy()[valid]
    mean_ap = np.array([ap[query_pids == pid].mean() if pid in query_pids else np.nan for pid in pids])
    pca = PCA(n_components=2, svd_solver="full").fit(points)
    tsne = None
    if len(rows) >= MIN_TSNE_IDENTITIES:
        # The exact method, because the threads of Barnes-Hut add in any order.
        perplexity = min(30.0, (len(points) - 1) / 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # equal centroids give 0 / 0 in between
            tsne = TSNE(2, init="pca", method="exact", perplexity=perplexity, random_state=0).fit_transform(points)
    return Embedding(pids, mean_ap, pca.transform(points), pca.explained_variance_ratio_, tsne, total)
