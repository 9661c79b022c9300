"""reid/training/validation.py: which images of held-out identities are queries."""

import torch

from reid.metrics import Features
from reid.training.validation import split_queries


def test_the_first_image_of_each_camera_but_the_last_is_a_query() -> None:
    pids = [5, 5, 5, 5, 7, 7, 7, 9, 9]
    camids = [2, 1, 1, 3, 4, 4, 6, -1, -1]  # identity 9 has no cameras: its first image is the query
    split = Features(torch.arange(9.0)[:, None], pids, camids)
    query, gallery = split_queries(split)
    assert query.embeddings.flatten().tolist() == [0, 1, 4, 7]
    assert gallery.embeddings.flatten().tolist() == [2, 3, 5, 6, 8]
    for pid, camid in zip(query.pids.tolist(), query.camids.tolist(), strict=True):
        matches = gallery.camids[gallery.pids == pid]
        assert bool(((matches != camid) | (matches == -1)).any())
