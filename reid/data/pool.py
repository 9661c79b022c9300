"""The encoded identities that a stream holds in memory: read when a step needs them, kept until their last use."""

from collections.abc import Collection, Iterator

import numpy as np

from reid.data.joined import Joined
from reid.data.plan import StreamSteps
from reid.data.shard_reader import Dropped, Identity, damage_advice


class Pool:
    """Identities of one stream and epoch by (reading, row), read from the shards in storage order.

    Args:
        joined: the datasets that `steps` refers to.
        on_damage: `stop`: raise ValueError at the first damage; `skip`: leave out what is damaged.
        steps: the plan of the stream.
        start: the first step that will be read.
        dropped: rows that are left out from the beginning.
    """

    def __init__(
        self, joined: Joined, on_damage: str, steps: StreamSteps, start: int, dropped: Collection[int]
    ) -> None:
        self.joined, self.on_damage, self.start = joined, on_damage, start
        self.root = joined.root_of(int(steps.shards[0]))  # a stream reads one dataset
        self.rows = len(joined.split.pids)
        self.keys = steps.readings.astype(np.int64) * self.rows + steps.identities  # (T, p)
        step_of = np.repeat(np.arange(len(self.keys)), self.keys.shape[1])
        self.last_use = dict(zip(self.keys.ravel().tolist(), step_of.tolist(), strict=True))
        self.source = self._read(steps, start)
        self.held: dict[int, Identity] = {}
        self.lost = set(dropped)
        self.unreported: list[Dropped] = []
        self.reasons: set[str] = set()

    def _read(self, steps: StreamSteps, start: int) -> Iterator[tuple[int, Identity | Dropped]]:
        """Yield (reading, what was found) for the shards that the steps from `start` on use."""
        for reading in range(int(steps.readings.max()) + 1):
            rows = steps.identities[start:][steps.readings[start:] == reading]
            used = set(self.joined.split.shard[rows].tolist())
            shards = [shard for shard in steps.shards.tolist() if shard in used]
            # In the middle of an epoch, the images that come before those of the first step would delay it.
            for found in self.joined.read(shards, set(rows.tolist()), start > 0):
                yield reading, found

    def get(self, reading: int, row: int) -> Identity | None:
        """Return the identity of a row, None if it was dropped."""
        key = reading * self.rows + row
        while key not in self.held and row not in self.lost:
            at, found = next(self.source)
            if isinstance(found, Dropped):
                self.drop(found)
            elif self.last_use.get(found_key := at * self.rows + found.row, -1) >= self.start:
                self.held[found_key] = found
        return None if row in self.lost else self.held[key]

    def drop(self, dropped: Dropped) -> None:
        """Leave out damaged identities until the end of the epoch, or raise ValueError."""
        if self.on_damage == "stop":
            advice = damage_advice(self.root)
            raise ValueError(f"{dropped.reason}; {advice}, `--data.on_damage=skip` continues without")
        known = self.lost.issuperset(dropped.rows) if dropped.rows else dropped.reason in self.reasons
        if not known:  # a later reading of the shards finds the same damage again
            self.unreported.append(dropped)
        self.reasons.add(dropped.reason)
        self.lost.update(dropped.rows)

    def take_unreported(self) -> tuple[Dropped, ...]:
        """Return what was dropped since the last call."""
        dropped, self.unreported = tuple(self.unreported), []
        return dropped

    def release(self, step: int) -> None:
        """Forget the identities whose last use is `step`."""
        self.start = step + 1
        for key in self.keys[step].tolist():
            if self.last_use[key] == step:
                self.held.pop(key, None)
