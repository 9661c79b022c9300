"""Nodes with other code or other data than the rest are told apart before the first step."""

from __future__ import annotations

import socket

import pytest
import torch.distributed as dist

from reid.runs.environment import code_version, describe_environment, git_commit
from reid.training.setup import check_same_everywhere
from tests.support.pool import Pool


def compare(codes: list[str], data: list[str], streams: list[int]) -> list[str] | str:
    rank = dist.get_rank() if dist.is_initialized() else 0
    try:
        return check_same_everywhere(codes[rank], data[rank], streams[rank])
    except ValueError as error:
        return str(error)


def test_the_same_everywhere(pool: Pool) -> None:
    assert pool.run(2, compare, ["1 a", "1 a"], ["d", "d"], [8, 8]) == [[socket.gethostname()]] * 2
    assert check_same_everywhere("1 a", "d", 8) == [socket.gethostname()]


@pytest.mark.parametrize(
    ("codes", "data", "streams", "message"),
    [
        (
            ["1 a", "1 a", "1 b"],
            ["d"] * 3,
            [8] * 3,
            "different code: ranks 0, 1: 1 a, but rank 2 ({host}): 1 b; install or copy",
        ),
        (["1 a"] * 3, ["e", "d", "d"], [8] * 3, "different data: ranks 1, 2: d, but rank 0 ({host}): e; stage or copy"),
        (
            ["1 a"] * 3,
            ["d"] * 3,
            [8, 4, 8],
            "different batch.streams: ranks 0, 2: 8, but rank 1 ({host}): 4; give --runs",
        ),
    ],
)
def test_every_rank_learns_who_differs(
    pool: Pool, codes: list[str], data: list[str], streams: list[int], message: str
) -> None:
    for said in pool.run(3, compare, codes, data, streams):
        assert isinstance(said, str) and message.format(host=socket.gethostname()) in said


def test_the_environment_holds_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    found = describe_environment()
    assert "very-secret" not in str(found) and found["slurm_job"] == "17"
    assert found["code"] == code_version() and found["commit"] == git_commit()
