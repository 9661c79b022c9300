"""Features and figures of 1, 2 and 3 ranks, with any number of workers: equal to the last digit, each image once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from reid.config import EvaluateConfig
from reid.data.images import Pixels
from reid.data.manifest import load_manifest
from reid.evaluation.evaluator import extract, rank_protocols
from reid.metrics.features import Features
from reid.metrics.retrieval import Result
from tests.support.drawn import HEIGHT, WIDTH, Drawn, draw_dataset
from tests.support.pool import Pool

PROTOCOLS = ["image", "centroid", "centroid_all", "ctl_published"]
RESULTS = [*PROTOCOLS, "image + re-ranking", "centroid_all + re-ranking"]


class Small(nn.Sequential):
    """Convolutions and a BatchNorm in evaluation mode: their last digits depend on the batch an image is in."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 24),
        )  # fmt: skip


def extract_and_rank(root: Path, workers: int) -> tuple[list[torch.Tensor], dict[str, Result]]:
    manifest = load_manifest(root)
    query, gallery = (
        extract(
            Small(), root, manifest, split, Pixels(HEIGHT, WIDTH), batch_size=7, workers=workers,
            device=torch.device("cpu"),
        )
        for split in ("query", "gallery")
    )  # fmt: skip
    options = EvaluateConfig(protocols=PROTOCOLS, rerank=True)
    results = rank_protocols(query, gallery, options).results
    assert list(results) == RESULTS
    return [query.embeddings, query.pids, gallery.embeddings, gallery.pids], results


def rerank_random_features(dim: int) -> dict[str, Result]:
    """Of more nodes than one product has rows, and of the same features many times."""
    rng = np.random.default_rng(0)
    query, gallery = (
        Features(rng.normal(size=(size, dim)).round(1), rng.integers(0, 30, size), rng.integers(0, 3, size))
        for size in (70, 410)
    )
    results = rank_protocols(query, gallery, EvaluateConfig(protocols=["image", "centroid_all"], rerank=True)).results
    return {name: result for name, result in results.items() if "re-ranking" in name}


@pytest.fixture(scope="module")
def alone(pool: Pool, drawn: Drawn) -> tuple[list[torch.Tensor], dict[str, Result]]:
    return pool.run(1, extract_and_rank, drawn.root, 0)[0]


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 0), (3, 0)])
def test_ranks_give_the_figures_of_one_process(
    pool: Pool, drawn: Drawn, alone: tuple[list[torch.Tensor], dict[str, Result]], world_size: int, workers: int
) -> None:
    part = drawn.manifest.split("gallery")
    listed = int(part.images[part.pids != -1].sum())
    for tensors, results in pool.run(world_size, extract_and_rank, drawn.root, workers):
        assert len(tensors[2].unique(dim=0)) == len(tensors[2]) == listed
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(tensors, alone[0], strict=True))
        for protocol in RESULTS:
            ours, theirs = results[protocol], alone[1][protocol]
            assert ours.to_json() == theirs.to_json()
            assert (ours.ap == theirs.ap).all() and (ours.first_ranks == theirs.first_ranks).all()


@pytest.mark.parametrize("dim", [1, 24])
def test_ranks_share_a_re_ranking(pool: Pool, dim: int) -> None:
    alone = pool.run(1, rerank_random_features, dim)[0]
    assert len(alone) == 2
    for world_size in (2, 3):
        for found in pool.run(world_size, rerank_random_features, dim):
            for name, result in found.items():
                assert (result.ap == alone[name].ap).all() and result.to_json() == alone[name].to_json()


def test_a_rank_without_a_shard_takes_part(pool: Pool, tmp_path: Path) -> None:
    few = draw_dataset(tmp_path, num_test=3, num_shards=1)
    assert {len(split.shards) for split in few.manifest.splits.values()} == {1}
    (wanted, figures), *_ = pool.run(1, extract_and_rank, few.root, 0)
    for tensors, results in pool.run(3, extract_and_rank, few.root, 0):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(tensors, wanted, strict=True))
        assert all(results[protocol].to_json() == figures[protocol].to_json() for protocol in RESULTS)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_features_of_none(
    drawn: Drawn, alone: tuple[list[torch.Tensor], dict[str, Result]], workers: int
) -> None:
    tensors, results = extract_and_rank(drawn.root, workers)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(tensors, alone[0], strict=True))
    assert all(results[protocol].to_json() == alone[1][protocol].to_json() for protocol in RESULTS)
