"""How well one camera's queries find images by another camera: the image protocol, camera by camera."""

from dataclasses import dataclass

import numpy as np

from reid.metrics import retrieval
from reid.metrics.features import JUNK, UNKNOWN, Features

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
