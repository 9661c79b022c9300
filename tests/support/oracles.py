"""Numbers of independent implementations of the losses, and the batch that they were computed on."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"
# Computed once by the CTL authors' code (float32) and, for MCTL, by float64 loops: 4 x 4 rows; 2, 3, 4, 2, 4, 4 rows.
ORACLES = {name: dict(np.load(DATA / f"losses_{name}.npz")) for name in ("full_groups", "short_groups")}


def real_rows(oracle: dict[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    real = oracle["is_real"]
    features = torch.tensor(oracle["features"][real], dtype=torch.float64, requires_grad=True)
    return features, torch.tensor(oracle["labels"][real])
