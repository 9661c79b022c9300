"""reid/training/step.py: a step on a CUDA device and among eight ranks, without either (tests/support/fake_device.py).

On fake tensors, what makes the host wait raises an error or is recorded.
"""

from __future__ import annotations

import pytest
import torch

from reid.config import AugmentConfig, Config, LossConfig, OptimConfig
from tests.support.fake_device import Record, make_step, record_step
from tests.support.gpu_only import needs_cuda

OBJECTIVE = ("objective, forward", "objective, backward", "centers")
SMALL = {"height": 64, "width": 32}


def config_of(**sections) -> Config:
    config = Config(**sections)
    config.data.height, config.data.width = 64, 32
    return config


def count_launches(parts: dict[str, Record], *names: str) -> int:
    return sum(parts[name].launches.total() for name in names)


@pytest.mark.parametrize(
    ("loss", "share"),
    [
        (LossConfig(), 1),
        (LossConfig(triplet_scope="global", quadruplet=1.0), 1),
        (LossConfig(ctl=1.0, reading="rounds", circle=1.0), 1),
        (LossConfig(space="raw"), 1),
        (LossConfig(space="unit", triplet_space="neck", quadruplet=1.0), 4),
    ],
    ids=["default", "global", "rounds", "raw", "spaces, 32 virtual ranks"],
)
def test_the_host_never_waits_for_the_device(loss: LossConfig, share: int) -> None:
    parts = record_step(config_of(loss=loss, optim=OptimConfig(ema=0.999)), "cuda", ranks=8, share=share)
    assert [part for part, record in parts.items() if record.waits] == []
    assert parts["batch to device"].launches == {"_to_copy": 2}  # the images, and all the rest
    assert parts["average"].launches == {"_foreach_lerp_": 1, "_foreach_copy_": 1}


@pytest.mark.parametrize("share", [1, 4])
def test_one_gather_and_one_scatter_of_one_row_per_identity(share: int) -> None:
    parts = record_step(config_of(), "cpu", ranks=8, share=share)
    sent = {part: record.collectives for part, record in parts.items() if record.collectives}
    sums = 16 * 2 * 512 * 4  # bytes: raw for the centers, after the neck for MCTL
    assert sent == {
        "objective, forward": [("allgather_base", sums)], "objective, backward": [("reduce_scatter_base", 8 * sums)],
    }  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 8])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_default_objective_launches_few_operations(ranks: int, precision: str) -> None:
    parts = record_step(config_of(), "cpu", ranks, precision=precision)
    assert count_launches(parts, *OBJECTIVE) <= 110
    assert count_launches(parts, "augmentation") <= 20


def test_nested_lengths_share_one_gather_and_one_transfer() -> None:
    config = config_of()
    config.model.nested = [64, 128]
    parts = record_step(config, "cpu", ranks=8)
    sums = 16 * (2 * 512 + 64 + 128) * 4  # bytes
    assert [record.collectives for part, record in parts.items() if record.collectives] == [
        [("allgather_base", sums)], [("reduce_scatter_base", 8 * sums)],
    ]  # fmt: skip
    assert [part for part, record in record_step(config, "cuda", ranks=8).items() if record.waits] == []


def test_augmentation_launches_few_operations_with_rotation() -> None:
    augment = AugmentConfig(rotate_degrees=10.0, scale=0.1)
    assert count_launches(record_step(config_of(augment=augment), "cpu"), "augmentation") <= 20


@pytest.mark.parametrize(
    ("knobs", "most"),
    [({"grey": 0.1}, 20), ({"blur": 0.5}, 20), ({"jitter": 0.5}, 52), ({"policy": "trivial"}, 52)],
)
def test_changes_of_colours_launch_few_operations_and_do_not_wait(knobs: dict, most: int) -> None:
    parts = record_step(config_of(augment=AugmentConfig(**knobs)), "cuda")
    assert count_launches(parts, "augmentation") <= most
    assert [part for part, record in parts.items() if record.waits] == []
    assert parts["batch to device"].launches == {"_to_copy": 2}


@needs_cuda
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_host_never_waits_for_a_real_device(precision: str) -> None:
    step, batch = make_step(config_of(), "cuda", precision=precision)
    step.take(0, 0, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.take(0, 1, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
