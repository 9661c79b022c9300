"""What a report shows in addition to the metrics: rank lists, pairs of cameras, and centroids in two dimensions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from reid import metrics
from reid.metrics import retrieval
from reid.metrics.features import JUNK, UNKNOWN, Features
from reid.metrics.norms import normalize
from reid.metrics.protocols import build_gallery
from reid.metrics.retrieval import Result

RANK_LIST_LENGTH = 10
MAX_CAMERAS = 40  # a larger matrix can be neither read nor drawn
MAX_IDENTITIES = 500  # more points hide each other, and the time of the exact t-SNE grows with their square
MIN_TSNE_IDENTITIES = 10
MIN_VARIANCE = 1e-12  # a smaller variance is rounding


@dataclass
class RankedImage:
    """An entry of a rank list.

    image: (H, W, 3) uint8, or None if there is none to show.
    correct: whether it has the query's identity.
    """

    image: np.ndarray | None
    caption: str
    correct: bool

    @property
    def symbol(self) -> str:
        """A sign in addition to the color green or red, which not everyone can tell apart."""
        return "✓" if self.correct else "✗"


@dataclass
class RankList:
    """A query and the nearest entries of its gallery, best first. ap: in [0, 1]. title: `best`, `median` and so on."""

    query: RankedImage
    gallery: list[RankedImage]
    ap: float
    title: str

    @property
    def entries(self) -> list[RankedImage]:
        return [self.query, *self.gallery]

    @property
    def has_images(self) -> bool:
        return any(entry.image is not None for entry in self.entries)


Read = Callable[[str, Sequence[int]], Sequence[np.ndarray | None]]  # split, rows of its features -> their images


def choose_rank_lists(
    query: Features, gallery: Features, result: Result, read_images: Read, metric: str
) -> list[RankList]:
    """Return the rank lists of the queries at the quarters of AP, from best to worst.

    Args:
        result: of the image protocol.
        read_images: gives None for an image that cannot be read.
    """
    order = np.argsort(-result.ap, kind="stable")
    titles: dict[int, str] = {}  # by index into result.ap; with few queries some quarters are the same query
    for quarter, title in enumerate(("best", "upper quarter", "median", "lower quarter", "worst")):
        titles.setdefault(int(order[min(quarter * len(order) // 4, len(order) - 1)]), title)
    rows = np.flatnonzero(result.valid)[list(titles)]
    indices, scores = metrics.top_k(query.take(torch.from_numpy(rows)), gallery, RANK_LIST_LENGTH, "image", metric)
    query_images = read_images("query", rows.tolist())
    lists = []
    for i, (index, title) in enumerate(titles.items()):
        found = [j for j in indices[i].tolist() if j >= 0]
        correct = (gallery.pids[found] == query.pids[rows[i]]) & ~gallery.is_distractor()[found]
        images = read_images("gallery", found)
        entries = [
            RankedImage(image, f"{score:.2f} · {_describe(gallery, j)}", matches)
            for j, score, matches, image in zip(found, scores[i].tolist(), correct.tolist(), images, strict=False)
        ]
        query_image = RankedImage(query_images[i], _describe(query, rows[i]), True)
        lists.append(RankList(query_image, entries, float(result.ap[index]), title))
    return lists


def _describe(features: Features, row: int) -> str:
    """`identity 7 · camera 2`, without a camera that is unknown."""
    who = "distractor" if features.is_distractor()[row] else f"identity {int(features.pids[row])}"
    camid = int(features.camids[row])
    return who if camid == UNKNOWN else f"{who} · camera {camid}"


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
