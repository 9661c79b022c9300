"""The same global batch gives the same training on 1, 2 and 4 processes, step after step."""

from __future__ import annotations

import pytest
import torch

from tests.support.drawn import Drawn
from tests.support.pool import Pool
from tests.support.world_size import train

ENCODER = "timm/test_resnet"  # stem, residual blocks and BatchNorm of a ResNet, with 0.4 million parameters


# In float64 the whole recipe. In float32 the rounding of two worlds differs, and training multiplies it until a hard
# pair is chosen differently, after how many steps depends on the processor: frozen statistics, and few steps.
@pytest.mark.parametrize(
    ("dtype", "norm", "lr", "steps", "tolerance"),
    [(torch.float64, "batch", 3.5e-4, 20, 1e-10), (torch.float32, "frozen", 5e-5, 5, 1e-4)],
    ids=["float64", "float32"],
)
def test_the_loss_curve_does_not_depend_on_the_number_of_processes(
    pool: Pool, drawn: Drawn, dtype: torch.dtype, norm: str, lr: float, steps: int, tolerance: float
) -> None:
    wanted, wanted_ids = pool.run(1, train, drawn.root, dtype, norm, lr, steps, ENCODER)[0]
    if dtype == torch.float64:
        assert wanted[-1] < 0.9 * wanted[0]  # it learns
    for world_size in (2, 4):
        curve, ids = pool.run(world_size, train, drawn.root, dtype, norm, lr, steps, ENCODER)[0]
        assert ids == wanted_ids
        assert curve == pytest.approx(wanted, rel=tolerance)
