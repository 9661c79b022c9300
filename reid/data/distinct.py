"""Take groups of images for step after step, so that no step has two groups of one identity."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from heapq import heappop, heappush

import numpy as np

WINDOW = 512  # steps checked at once for a repeated identity


def take_distinct(draw_owners: Callable[[int], np.ndarray], per_step: int, steps: int) -> np.ndarray:
    """Return (steps, per_step) indices into the groups of all passes, one pass after the other.

    A step takes groups in order; a group whose identity it already has waits for the next step. If no group waits and
    no step repeats an identity, which is the usual case, a window of steps is taken at once.
    """
    queue = _Queue(draw_owners)
    chosen = np.empty((steps, per_step), dtype=np.int64)
    step = 0
    while step < steps:
        ahead = min(WINDOW, steps - step)
        clean = 0
        if not queue.first_waiting:
            clean = _count_distinct(queue.peek(ahead * per_step).reshape(ahead, per_step))
            chosen[step : step + clean] = queue.skip(clean * per_step).reshape(clean, per_step)
        if clean < ahead:
            chosen[step + clean] = queue.take_distinct(per_step)
            clean += 1
        step += clean
    return chosen


def _count_distinct(owners: np.ndarray) -> int:
    """Return how many of the steps (T, p), counted from the first, hold distinct owners."""
    ordered = np.sort(owners, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    return int(repeated.argmax()) if repeated.any() else len(owners)


class _Queue:
    """The groups of a stream by index, pass after pass, and those that wait; owners[i] is the owner of group i."""

    def __init__(self, draw_owners: Callable[[int], np.ndarray]) -> None:
        self.draw_owners, self.passes = draw_owners, 0
        self.owners = np.empty(0, dtype=np.int64)
        self.at = 0
        self.waiting: defaultdict[int, deque[int]] = defaultdict(deque)  # owner -> its groups that wait, in order
        self.first_waiting: list[tuple[int, int]] = []  # a heap: for each owner with such groups the first, and owner

    def peek(self, number: int) -> np.ndarray:
        """Return the owners of the next groups; passes are drawn as needed."""
        while len(self.owners) < self.at + number:
            self.owners = np.concatenate([self.owners, self.draw_owners(self.passes)])
            self.passes += 1
        return self.owners[self.at : self.at + number]

    def skip(self, number: int) -> np.ndarray:
        self.at += number
        return np.arange(self.at - number, self.at)

    def take_distinct(self, number: int) -> list[int]:
        """Return the next groups of distinct owners in order, those that wait before all others.

        Groups wait by owner: an owner with more groups than all others together makes most of them wait for most of
        the epoch, and searching them all at each step would be slow.
        """
        taken: dict[int, int] = {}  # owner -> group
        while self.first_waiting and len(taken) < number:
            _, owner = heappop(self.first_waiting)
            taken[owner] = self.waiting[owner].popleft()
        while len(taken) < number:
            owner, group = int(self.peek(1)[0]), self.at
            self.at += 1
            if taken.setdefault(owner, group) != group:
                self.waiting[owner].append(group)
        for owner in taken:
            if self.waiting[owner]:
                heappush(self.first_waiting, (self.waiting[owner][0], owner))
        return list(taken.values())
