"""What a run watches about itself: its speed, values that are not finite, and a hinge that never acts."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from reid.data.shard_reader import Dropped
from reid.distributed import gather_objects, rank, sum_over_ranks, world_size

Item = TypeVar("Item")


def mean_over_ranks(shares: Mapping[str, Tensor]) -> dict[str, float]:
    """The global values of the shares that losses return: one small all-reduce, one copy to the host."""
    stacked = sum_over_ranks(torch.stack([value.double() for value in shares.values()])) / world_size()
    return dict(zip(shares, stacked.tolist(), strict=True))


class Meter:
    """Speed of all ranks together, and the share of time spent waiting for data, since the last reading; memory."""

    def __init__(self, num_processes: int, device: torch.device | None = None) -> None:
        self.num_processes = num_processes
        self.device = device or torch.device("cpu")
        self.restart()

    def restart(self) -> None:
        """Forget what was counted: the time of an evaluation or a checkpoint is none of the steps'."""
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
        """One step of so many images."""
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
        """Bytes: on a GPU what was allocated at most, otherwise this process's peak of resident memory."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class FiniteWatch:
    """Finds the first step that was not finite, and its images, without waiting for the device at each step.

    `see` keeps, on the device, which features of a step and whether its loss are finite; `check`, called on every rank
    at log steps with values equal on all of them, stops all ranks together when one is not finite. `names`: identity of
    each row.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.steps: list[tuple[int, Tensor, Tensor, Tensor]] = []
        self.good = -1  # the last step of which all was seen to be finite

    def see(self, step: int, ids: Tensor, features: Tensor, loss: Tensor) -> None:
        """ids (B, 2): row of the identity and index of its image; features (B, D); loss ()."""
        self.steps.append((step, ids, features.detach().isfinite().all(dim=1), loss.detach().isfinite()))

    def check(self, values: Mapping[str, float], mend: str) -> None:
        """Raises ValueError on every rank, naming the terms, the first bad images with their rank, and the mend."""
        bad = [name for name, value in values.items() if not torch.isfinite(torch.tensor(value))]
        if bad:
            found = [first for first in gather_objects(self._first()) if first is not None]
            step = min((step for step, _ in found), default=None)
            images = "; ".join(text for at, text in found if at == step and text) or "all features are finite"
            where = f"first at step {step + 1}: {images}" if step is not None else images
            terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            good = f"last good step {self.good + 1}" if self.good >= 0 else "no step before it was checked"
            raise ValueError(f"not finite: {', '.join(bad)}; {where}; {mend}; {good}; all terms: {terms}")
        self.good = max((step for step, *_ in self.steps), default=self.good)
        self.steps.clear()

    def _first(self) -> tuple[int, str] | None:
        """The first step of this rank with a bad feature or loss, and which images the features were of, if any."""
        for step, ids, finite, loss_finite in self.steps:
            if bool(finite.all()) and not bool(loss_finite):
                return step, ""
            if not bool(finite.all()):
                bad = ids[~finite.cpu()].tolist()
                shown = ", ".join(f"identity {self.names[row]} image {image}" for row, image in bad[:3])
                return step, f"rank {rank()}, {len(bad)} of {len(ids)} features ({shown}{', ...' if bad[3:] else ''})"
        return None


class DamageWatch:
    """Counts the identities that were left out because their data is damaged."""

    def __init__(self, rows: Sequence[int] = ()) -> None:
        """rows: dropped earlier in this epoch, before a resume."""
        self.dropped = [Dropped(tuple(rows), "found before this run was resumed")] if rows else []

    def see(self, dropped: Sequence[Dropped]) -> None:
        self.dropped += dropped

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows that this rank has dropped in this epoch."""
        return tuple(sorted({row for dropped in self.dropped for row in dropped.rows}))

    def end_epoch(self) -> tuple[int, str | None]:
        """Identities left out in this epoch by all ranks together, and a warning; equal on every rank."""
        everywhere = [dropped for part in gather_objects(self.dropped) for dropped in part]
        self.dropped = []
        if not everywhere:
            return 0, None
        count = len({row for dropped in everywhere for row in dropped.rows})
        reasons = list(dict.fromkeys(dropped.reason for dropped in everywhere))
        shown = "".join(f"\n  {reason}" for reason in reasons[:5]) + ("\n  ..." if reasons[5:] else "")
        return count, f"warning: {count} identities were left out of this epoch, their data is damaged:{shown}"


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
