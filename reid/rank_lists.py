"""Which queries a report shows, and what each found: the best, the middle ones and the worst of the image protocol."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from reid import metrics
from reid.metrics.features import Features
from reid.metrics.retrieval import Result
from reid.pictures import Ranked, RankList

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
