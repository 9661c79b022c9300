"""`reid.open_loader` on several ranks."""

from __future__ import annotations

import pytest

import reid
from tests.support.drawn import HEIGHT, WIDTH, Drawn
from tests.support.pool import Pool


def read_pids(root: str) -> list[list[int]]:
    loader = reid.open_loader(root, "cpu", identities=4, images=2, height=HEIGHT, width=WIDTH, workers=0)
    return [pids.tolist() for _, pids, _ in loader]


def test_ranks_share_the_batch(drawn: Drawn, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pool.run(2, read_pids, str(drawn.root))
    assert [[*a, *b] for a, b in zip(first, second, strict=True)] == read_pids(str(drawn.root))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="make the Accelerator"):
        read_pids(str(drawn.root))
