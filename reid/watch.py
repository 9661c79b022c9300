"""What a run watches about itself: its speed, values that are not finite, and a hinge that never acts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from reid.distributed import gather_objects, rank, sum_over_ranks, world_size

Item = TypeVar("Item")


def mean_over_ranks(shares: Mapping[str, Tensor]) -> dict[str, float]:
    """The global values of the shares that losses return: one small all-reduce, one copy to the host."""
    stacked = sum_over_ranks(torch.stack([value.double() for value in shares.values()])) / world_size()
    return dict(zip(shares, stacked.tolist(), strict=True))


class Meter:
    """Images a second of all ranks together, and the share of time spent waiting for data, since the last reading."""

    def __init__(self, num_processes: int) -> None:
        self.num_processes = num_processes
        self._reset()

    def _reset(self) -> None:
        self.images, self.waited, self.since = 0, 0.0, time.perf_counter()

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        iterator = iter(items)
        while True:
            before = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.waited += time.perf_counter() - before
            yield item

    def count(self, images: int) -> None:
        self.images += images

    def read(self) -> dict[str, float]:
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        values = {
            "images_per_s": self.images * self.num_processes / elapsed,
            "data_wait_share": self.waited / elapsed,
        }
        self._reset()
        return values


class FiniteWatch:
    """Finds the first image whose feature was not finite, without waiting for the device at each step.

    `see` keeps, on the device, which features of a step are finite; `check`, called on every rank at log steps with
    values equal on all of them, stops all ranks together when one is not finite. `names`: identity of each row.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.steps: list[tuple[int, Tensor, Tensor]] = []

    def see(self, step: int, ids: Tensor, features: Tensor) -> None:
        """ids (B, 2): row of the identity and index of its image; features (B, D)."""
        self.steps.append((step, ids, features.detach().isfinite().all(dim=1)))

    def check(self, values: Mapping[str, float], mend: str) -> None:
        """Raises ValueError on every rank, naming the terms, the first bad images with their rank, and the mend."""
        bad = [name for name, value in values.items() if not torch.isfinite(torch.tensor(value))]
        if bad:
            found = [first for first in gather_objects(self._first()) if first is not None]
            step = min((step for step, _ in found), default=None)
            images = "; ".join(text for at, text in found if at == step)
            where = f"first at step {step + 1}: {images}" if step is not None else "all features are finite"
            raise ValueError(f"not finite: {', '.join(bad)}; {where}; {mend}")
        self.steps.clear()

    def _first(self) -> tuple[int, str] | None:
        """The first step of this rank with a bad feature, and which images they were."""
        for step, ids, finite in self.steps:
            if not bool(finite.all()):
                bad = ids[~finite.cpu()].tolist()
                shown = ", ".join(f"identity {self.names[row]} image {image}" for row, image in bad[:3])
                return step, f"rank {rank()}, {len(bad)} of {len(ids)} features ({shown}{', ...' if bad[3:] else ''})"
        return None


class HingeWatch:
    """Says once when the hinge of the centroid loss was inactive for every anchor of a whole epoch."""

    def __init__(self) -> None:
        self.active: Tensor | None = None
        self.said = False

    def see(self, terms: Mapping[str, Tensor]) -> None:
        if "hinge_active" in terms and not self.said:
            now = terms["hinge_active"].detach()
            self.active = now if self.active is None else self.active + now

    def end_epoch(self, margin: float) -> str | None:
        """The warning, or None; on every rank, as it sums over ranks."""
        if self.active is None or self.said:
            return None
        idle = float(sum_over_ranks(self.active)) == 0
        self.active = None
        if not idle:
            return None
        self.said = True
        return (
            f"warning: no anchor was within the margin of another centroid in a whole epoch (loss.margin = {margin}): "
            "only the pull towards the own centroid trains; raise loss.margin, or set loss.relative or loss.normalize"
        )
