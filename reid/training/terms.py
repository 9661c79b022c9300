"""Losses and distances of a step for each of several datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from reid.losses.objective import Losses, Objective

WEIGHT = "/weight"  # of a value, until it is divided by it


class DatasetTerms:
    """Measures cross-entropy and mean distances of the images of each dataset; nothing if there is one dataset.

    As in `Objective.diagnose`, values are shares, which `mean_over_ranks` makes global. The images of a dataset in a
    step lie on any ranks, so a value comes with its weight, and `finish` divides.

    Args:
        labels: of the datasets.
        dataset_of_class: (classes,) place of the dataset of each trained identity.
    """

    def __init__(self, labels: Sequence[str], dataset_of_class: np.ndarray, device: torch.device) -> None:
        self.labels = labels if len(labels) > 1 else ()
        self.dataset_of_class = torch.from_numpy(dataset_of_class).to(device)

    @torch.no_grad()
    def measure(self, objective: Objective, losses: Losses) -> dict[str, Tensor]:
        """Return `<dataset>/<name>` and its weight for this rank's rows, without a wait for the device."""
        found: dict[str, Tensor] = {}
        if not self.labels:
            return found
        layout = losses.layout
        dataset = self.dataset_of_class[layout.labels[layout.identity]]
        is_of = (dataset == torch.arange(len(self.labels), device=dataset.device)[:, None]).float()  # (datasets, B)
        for name, (values, weights) in objective.by_image(losses).items():
            columns = torch.stack([values * weights, weights], dim=1).float()
            rows = is_of.repeat(1, len(columns) // len(dataset))  # in rounds an image is two anchors
            for label, (total, weight) in zip(self.labels, (rows @ columns).unbind(), strict=True):
                found |= {f"{label}/{name}": total, f"{label}/{name}{WEIGHT}": weight}
        return found

    def finish(self, values: Mapping[str, float]) -> dict[str, float]:
        """Divide the values of all ranks by their weights. A dataset without such images in the step has no value."""
        weights = {name.removesuffix(WEIGHT): value for name, value in values.items() if name.endswith(WEIGHT)}
        return {
            name: value / weights.get(name, 1.0)
            for name, value in values.items()
            if not name.endswith(WEIGHT) and weights.get(name) != 0
        }
