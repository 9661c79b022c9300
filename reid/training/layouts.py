"""The layouts of global batches that the plan cannot know: some identities are left out because they are damaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from reid.data.layout import build_layout
from reid.data.train_loader import Batch
from reid.distributed import is_distributed, rank, world_size

Item = tuple[int, int, Batch]


def agree_on_layouts(
    batches: Iterable[Item], slots: int, images: int, timeout_s: int, share: int = 1
) -> Iterator[Item]:
    """Yield (epoch, step, batch) with the layout that the ranks agree on, ahead of time and on the host.

    While a batch trains, the ranks tell each other the labels of the next one, in a process group on the CPU.

    Args:
        slots: identities of a rank.
        images: images of an identity, at most.
        timeout_s: for a rank that waits for the others.
        share: virtual ranks of a rank.
    """
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s)) if is_distributed() else None
    ahead: _Exchange | None = None
    try:
        for item in batches:
            following = _Exchange(item, slots, images, share, group)
            if ahead is not None:
                yield ahead.finish()
            ahead = following
        if ahead is not None:
            yield ahead.finish()
    finally:
        if ahead is not None:
            ahead.wait()


class _Exchange:
    """The labels of one batch on their way to the other ranks."""

    def __init__(self, item: Item, slots: int, images: int, share: int, group: Any) -> None:
        self.item, self.slots, self.share = item, slots, share
        labels, sizes = item[2].labels, item[2].sizes
        width = slots * images // len(sizes)  # of a stream
        own = torch.cat([F.pad(part, (0, width - len(part)), value=-1) for part in labels.split(sizes)])
        self.everyone, self.work = own, None
        if group is not None:
            self.everyone = own.new_empty(world_size() * len(own))
            self.work = dist.all_gather_into_tensor(self.everyone, own, group=group, async_op=True)

    def wait(self) -> None:
        if self.work is not None:
            self.work.wait()

    def finish(self) -> Item:
        """Return the batch with its layout."""
        self.wait()
        epoch, step, batch = self.item
        labels = [part[part >= 0] for part in self.everyone.view(world_size() * self.share, -1).numpy()]
        return epoch, step, replace(batch, layout=build_layout(labels, rank(), self.slots, share=self.share))
