"""reid/training/layouts.py: ranks of which some have lost identities agree on the layout of each step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import chain

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from reid.config import AugmentConfig
from reid.data.augmentation import Augmentation
from reid.data.layout import Layout, build_layout
from reid.data.train_loader import Batch
from reid.training.layouts import agree_on_layouts
from tests.support.pool import Pool

SLOTS, IMAGES = 2, 3
STEPS = [  # labels of each rank's two streams; a stream lacks its identity in the second step, another in the third
    [[[0, 0, 0], [1, 1]], [[2, 2], [3, 3, 3]], [[4, 4, 4], [5, 5, 5]]],
    [[[0, 0, 0], [1, 1, 1]], [[2, 2], []], [[5], [4, 4]]],
    [[[], [1]], [[2, 2], [3, 3]], [[4, 4, 4], [5, 5, 5]]],
]


def read_batches(rank: int) -> Iterator[tuple[int, int, Batch]]:
    augmentation = Augmentation(AugmentConfig())
    for step, ranks in enumerate(STEPS):
        labels, sizes = torch.tensor([*chain(*ranks[rank])]), tuple(map(len, ranks[rank]))
        rows = len(labels)
        changes = augmentation.expand(augmentation.draw(np.random.default_rng(0), rows, 4, 2), 4, 2)
        images, ids = torch.zeros(rows, 3, 4, 2, dtype=torch.uint8), torch.zeros(rows, 2, dtype=torch.int64)
        yield 0, step, Batch(images, labels, ids, ids[:, 0], changes, sizes)


def agree(stop_at: int, share: int) -> list[Layout | None]:
    found = []
    for _, step, batch in agree_on_layouts(read_batches(dist.get_rank()), SLOTS, IMAGES, 60, share):
        found.append(batch.layout)
        if step == stop_at:  # as a run that is asked to stop, while the next exchange is under way
            break
    return found


def test_every_rank_knows_what_is_left_of_each_step(pool: Pool) -> None:
    for stop_at, share in ((1, 1), (len(STEPS) - 1, 2)):
        for rank, layouts in enumerate(pool.run(3, agree, stop_at, share)):
            assert len(layouts) == stop_at + 1
            for layout, streams in zip(layouts, STEPS, strict=False):
                labels = [np.array([*chain(*own[i : i + 3 - share])], int) for own in streams for i in range(share)]
                wanted = build_layout(labels, rank, SLOTS, share=share)
                for field in fields(Layout):
                    one, other = getattr(layout, field.name), getattr(wanted, field.name)
                    assert torch.equal(one, other) if isinstance(other, Tensor) else one == other, field.name
