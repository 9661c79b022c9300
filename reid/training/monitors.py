"""Monitors of a training run: speed, values that are not finite, damaged data, and an inactive hinge."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from reid.config import LossConfig
from reid.data.shard_reader import Dropped
from reid.distributed import gather_objects, rank, sum_over_ranks, world_size
from reid.losses.objective import Losses

Item = TypeVar("Item")


def mean_over_ranks(shares: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the global values of the shares that losses return. Costs one all-reduce and one copy to the host."""
    stacked = sum_over_ranks(torch.stack([value.double() for value in shares.values()])) / world_size()
    return dict(zip(shares, stacked.tolist(), strict=True))


class Meter:
    """Measures images per second of all ranks, the fraction of time spent waiting for data, and memory."""

    def __init__(self, num_processes: int, device: torch.device | None = None) -> None:
        self.num_processes = num_processes
        self.device = device or torch.device("cpu")
        self.restart()

    def restart(self) -> None:
        """Start again, without the time of an evaluation or a checkpoint."""
        self.images, self.steps, self.waited, self.since = 0, 0, 0.0, time.perf_counter()

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
        """Count one step."""
        self.images += images
        self.steps += 1

    def read(self) -> dict[str, float]:
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        values = {
            "images_per_s": self.images * self.num_processes / elapsed,
            "steps_per_s": self.steps / elapsed,
            "data_wait_share": self.waited / elapsed,
            "memory_gib": self._memory() / 2**30,
        }
        self.restart()
        return values

    def _memory(self) -> int:
        """Return peak bytes: allocated on the GPU, or resident in this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class FiniteWatch:
    """Finds the first step that was not finite, and its images, without waiting for the device at each step.

    `record` keeps on the device the sum of each feature of a step, which is finite if the feature is. `check` is called
    on every rank at log steps, with equal values, and stops all ranks together if one is not finite.

    Args:
        names: the identity of each row of the train split.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.steps: list[tuple[int, Tensor, Tensor, Tensor]] = []
        self.last_finite_step = -1  # the last step that was checked to be finite

    def record(self, step: int, ids: Tensor, losses: Losses) -> None:
        """Record a step. ids (B, 2): row of the identity and index of its image."""
        self.steps.append((step, ids, losses.features.sum(dim=1), losses.total.detach()))

    def check(self, values: Mapping[str, float], hint: str) -> None:
        """Raise ValueError on every rank if a value is not finite, with the terms, the first bad images and `hint`."""
        bad = [name for name, value in values.items() if not torch.isfinite(torch.tensor(value))]
        if bad:
            found = [first for first in gather_objects(self._first_non_finite()) if first is not None]
            step = min((step for step, _ in found), default=None)
            images = "; ".join(text for at, text in found if at == step and text) or "all features are finite"
            where = f"first at step {step + 1}: {images}" if step is not None else images
            terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            good = (
                f"last good step {self.last_finite_step + 1}"
                if self.last_finite_step >= 0
                else "no step before it was checked"
            )
            raise ValueError(f"not finite: {', '.join(bad)}; {where}; {hint}; {good}; all terms: {terms}")
        self.last_finite_step = max((step for step, *_ in self.steps), default=self.last_finite_step)
        self.steps.clear()

    def _first_non_finite(self) -> tuple[int, str] | None:
        """Return this rank's first step with a bad feature or loss, and the images of the bad features."""
        for step, ids, sums, loss in self.steps:
            is_finite = sums.isfinite().cpu()
            if bool(is_finite.all()) and not bool(loss.isfinite()):
                return step, ""
            if not bool(is_finite.all()):
                bad = ids[~is_finite].tolist()
                shown = ", ".join(f"identity {self.names[row]} image {image}" for row, image in bad[:3])
                return step, f"rank {rank()}, {len(bad)} of {len(ids)} features ({shown}{', ...' if bad[3:] else ''})"
        return None


class DamageWatch:
    """Counts the identities that are left out because their data is damaged.

    Args:
        rows: dropped earlier in this epoch, before a resume.
    """

    def __init__(self, rows: Sequence[int] = ()) -> None:
        self.dropped = [Dropped(tuple(rows), "found before this run was resumed")] if rows else []

    def record(self, dropped: Sequence[Dropped]) -> None:
        self.dropped += dropped

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows that this rank has dropped in this epoch, ascending."""
        return tuple(sorted({row for dropped in self.dropped for row in dropped.rows}))

    def end_epoch(self) -> tuple[int, str | None]:
        """Return how many identities all ranks left out in this epoch, and a warning. Collective."""
        everywhere = [dropped for part in gather_objects(self.dropped) for dropped in part]
        self.dropped = []
        if not everywhere:
            return 0, None
        count = len({row for dropped in everywhere for row in dropped.rows})
        reasons = list(dict.fromkeys(dropped.reason for dropped in everywhere))
        shown = "".join(f"\n  {reason}" for reason in reasons[:5]) + ("\n  ..." if reasons[5:] else "")
        return count, f"warning: {count} identities were left out of this epoch, their data is damaged:{shown}"


class MarginGuide:
    """Describes, once, the distances of the anchors of MCTL or CTL in an epoch, to help to choose a margin.

    Args:
        loss: with the margin in use.
        epoch: the last of the warm-up; or the first, if there is no warm-up.
    """

    def __init__(self, loss: LossConfig, epoch: int) -> None:
        self.loss, self.epoch = loss, epoch
        self.distances: list[Tensor] = []

    def record(self, epoch: int, losses: Losses) -> None:
        """Record this rank's anchors of a log step."""
        if epoch == self.epoch and "centroids" in losses.anchors:
            anchors = losses.anchors["centroids"]
            found = torch.stack([anchors.d_ap, anchors.d_an]).detach().cpu()
            self.distances.append(found[:, anchors.push_weight.cpu() > 0])

    def end_epoch(self, epoch: int) -> str | None:
        """Return the description at the end of the epoch, otherwise None. Collective."""
        if epoch != self.epoch or not self.distances:
            return None
        everywhere = gather_objects(torch.cat(self.distances, dim=1))
        d_ap, d_an = torch.cat(everywhere, dim=1).double()
        if not len(d_ap):
            return None
        gap = d_an if self.loss.mctl else d_an - d_ap  # the hinge is active where this is less than the margin
        active = (gap < self.loss.margin).double().mean().item()
        shown = (
            f"{name} {' / '.join(f'{q:.3g}' for q in values.quantile(values.new_tensor([0.1, 0.5, 0.9])).tolist())}"
            for name, values in (("d_ap", d_ap), ("d_an", d_an))
        )
        return (
            f"distances of anchors after the warm-up (loss.space = {self.loss.space}; 10% / 50% / 90%): "
            f"{', '.join(shown)}; loss.margin = {self.loss.margin:g} makes the hinge active for {active:.0%} of the "
            f"anchors; {gap.median().item():.3g} would be for half"
        )


class HingeWatch:
    """Warns if the hinge of the centroid loss was inactive for every anchor at all log steps of an epoch.

    It warns after 1, 2, 4, 8, ... such epochs in a row.

    Args:
        first_epoch: the first that is judged: features of the warm-up have another scale than trained ones.
    """

    def __init__(self, first_epoch: int = 0) -> None:
        self.first_epoch = first_epoch
        self.active: float | None = None
        self.idle_epochs = 0  # since the last epoch with an active hinge

    def record(self, values: Mapping[str, float]) -> None:
        """Record the values of a log step, of all ranks."""
        if "hinge_active" in values:
            self.active = max(values["hinge_active"], self.active or 0.0)

    def end_epoch(self, margin: float, epoch: int = 0) -> str | None:
        """Return the warning, or None."""
        active, self.active = self.active, None
        if active is None or epoch < self.first_epoch:
            return None
        self.idle_epochs = self.idle_epochs + 1 if active == 0 else 0
        if self.idle_epochs == 0 or self.idle_epochs & (self.idle_epochs - 1):  # not a power of two
            return None
        return (
            f"warning: no anchor was within the margin of another centroid during the last {self.idle_epochs} epoch(s) "
            f"(loss.margin = {margin}): only the pull towards the positive centroid trains; raise loss.margin, or set "
            "loss.space = neck"
        )
