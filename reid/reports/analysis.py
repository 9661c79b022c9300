"""What a report looks at beside the metrics: rank lists, pairs of cameras, and centroids in two dimensions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from reid import metrics
from reid.metrics import retrieval
from reid.metrics.features import JUNK, UNKNOWN, Features
from reid.metrics.protocols import build_gallery
from reid.metrics.retrieval import Result


@dataclass
class Ranked:
    """One entry of a rank list: image (H, W, 3) uint8 if it is at hand, caption, and whether it matches the query."""

    image: np.ndarray | None
    caption: str
    correct: bool


@dataclass
class RankList:
    """A query and the best entries of its gallery, best first. ap in [0, 1]; title, for example, `best` or `median`."""

    query: Ranked
    gallery: list[Ranked]
    ap: float
    title: str


SHOWN_RANKS = 10

Read = Callable[[str, Sequence[int]], Sequence[np.ndarray | None]]  # split, rows of its features -> their images


def choose_rank_lists(query: Features, gallery: Features, result: Result, read: Read, metric: str) -> list[RankList]:
    """Lists of the queries at the quarters of AP. result: of the image protocol; read: images, None where absent."""
    order = np.argsort(-result.ap, kind="stable")
    at = {"best": 0, "upper quarter": len(order) // 4, "median": len(order) // 2}
    at |= {"lower quarter": 3 * len(order) // 4, "worst": len(order) - 1}
    chosen: dict[int, str] = {}  # few queries fall together
    for title, place in at.items():
        chosen.setdefault(int(order[place]), title)
    rows = np.flatnonzero(result.valid)[list(chosen)]
    indices, scores = metrics.top_k(query.take(torch.from_numpy(rows)), gallery, SHOWN_RANKS, "image", metric)
    asked = read("query", rows.tolist())
    lists = []
    for i, (valid_row, title) in enumerate(chosen.items()):
        pid, camid = int(query.pids[rows[i]]), int(query.camids[rows[i]])
        found = [int(j) for j in indices[i] if j >= 0]
        entries = [
            Ranked(
                image=image,
                caption=f"{score:.2f} · {_who(gallery, j)}{_camera(int(gallery.camids[j]))}",
                correct=int(gallery.pids[j]) == pid and not _is_distractor(gallery, j),
            )
            for j, image, score in zip(found, read("gallery", found), scores[i].tolist(), strict=False)
        ]
        shown = Ranked(asked[i], f"identity {pid}{_camera(camid)}", True)
        lists.append(RankList(shown, entries, float(result.ap[valid_row]), title))
    return lists


def _camera(camid: int) -> str:
    return f" · camera {camid}" if camid >= 0 else ""


def _is_distractor(features: Features, i: int) -> bool:
    return features.distractors is not None and bool(features.distractors[i])


def _who(features: Features, i: int) -> str:
    return "distractor" if _is_distractor(features, i) else f"identity {int(features.pids[i])}"


MAX_CAMERAS = 40  # a larger matrix can be neither read nor drawn


@dataclass(frozen=True)
class CameraPairs:
    """query_cameras (A,) and gallery_cameras (B,), ascending; mean_ap and num_queries (A, B) over the queries by a
    camera that can match among the images by the other; mean_ap is NaN where there are none."""

    query_cameras: np.ndarray
    gallery_cameras: np.ndarray
    mean_ap: np.ndarray
    num_queries: np.ndarray

    def to_json(self) -> dict:
        """NaN becomes null."""
        return {
            "query_cameras": self.query_cameras.tolist(),
            "gallery_cameras": self.gallery_cameras.tolist(),
            "mAP": [[None if np.isnan(value) else float(value) for value in row] for row in self.mean_ap],
            "num_queries": self.num_queries.tolist(),
        }


def measure_camera_pairs(query: Features, gallery: Features, metric: str = "cosine") -> CameraPairs | str:
    """Image mAP with the gallery cut to one camera, distractors by it included; or why there is no such matrix."""
    asking, listed = (
        split.camids[(split.camids != UNKNOWN) & (split.pids != JUNK)].unique().tolist() for split in (query, gallery)
    )
    if len(set(asking) | set(listed)) < 2 or not asking or not listed:
        return "fewer than two known cameras"
    if max(len(asking), len(listed)) > MAX_CAMERAS:
        return f"{max(len(asking), len(listed))} cameras; a matrix of more than {MAX_CAMERAS} cannot be read"
    mean_ap = np.full((len(asking), len(listed)), np.nan)
    num_queries = np.zeros(mean_ap.shape, dtype=np.int64)
    camids = query.camids.cpu().numpy()
    for j, camera in enumerate(listed):
        result = retrieval.evaluate(query, _cut(gallery, camera), "image", metric, max_rank=1, partial=True)
        of = camids[result.valid]
        for i, asked in enumerate(asking):
            num_queries[i, j] = (of == asked).sum()
            if num_queries[i, j]:
                mean_ap[i, j] = result.ap[of == asked].mean()
    return CameraPairs(np.asarray(asking), np.asarray(listed), mean_ap, num_queries)


def _cut(gallery: Features, camera: int) -> Features:
    """The images by one camera; where they are most of the gallery, a copy of them would be as large: others are junk
    instead."""
    of = gallery.camids == camera
    if 2 * int(of.sum()) < len(gallery):
        return gallery.take(of)
    return Features(gallery.embeddings, gallery.pids.masked_fill(~of, JUNK), gallery.camids, gallery.distractors)


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
