"""The encoded identities that a stream of the plan holds in memory: read as steps want them, kept until last used."""

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from reid.data.manifest import Split
from reid.data.plan import StreamSteps
from reid.data.shard_reader import Dropped, Identity, OnDamage, damage_advice, read_sound_identities


class Pool:
    """Identities by (reading, row), read from the shards in storage order; `lost` are the rows that damage took."""

    def __init__(
        self,
        root: str | Path,
        split: Split,
        steps: StreamSteps,
        start: int,
        on_damage: OnDamage,
        dropped: Collection[int],
    ) -> None:
        self.root, self.split, self.on_damage = root, split, on_damage
        self.keys = steps.readings.astype(np.int64) * len(split.pids) + steps.identities  # (T, p)
        step_of = np.repeat(np.arange(len(self.keys)), self.keys.shape[1])
        self.last_use = dict(zip(self.keys.ravel().tolist(), step_of.tolist(), strict=True))
        self.source = self._read(steps, start)
        self.start = start
        self.held: dict[int, Identity] = {}
        self.lost = set(dropped)
        self.news: list[Dropped] = []
        self.told: set[str] = set()

    def _read(self, steps: StreamSteps, start: int) -> Iterator[tuple[int, Identity | Dropped]]:
        """(reading, what was found) in the shards that steps from `start` on use."""
        for reading in range(int(steps.readings.max()) + 1):
            rows = steps.identities[start:][steps.readings[start:] == reading]
            used = set(self.split.shard[rows].tolist())
            shards = [shard for shard in steps.shards.tolist() if shard in used]
            for found in read_sound_identities(self.root, self.split, shards):
                yield reading, found

    def get(self, reading: int, row: int) -> Identity | None:
        """The identity of a row, None if it was dropped."""
        key = reading * len(self.split.pids) + row
        while key not in self.held and row not in self.lost:
            at, found = next(self.source)
            if isinstance(found, Dropped):
                self.drop(found)
            elif self.last_use.get(found_key := at * len(self.split.pids) + found.row, -1) >= self.start:
                self.held[found_key] = found
        return None if row in self.lost else self.held[key]

    def drop(self, dropped: Dropped) -> None:
        if self.on_damage == "stop":
            raise ValueError(f"{dropped.reason}; {damage_advice(self.root)}, `--data.on_damage=skip` goes on without")
        known = self.lost.issuperset(dropped.rows) if dropped.rows else dropped.reason in self.told
        if not known:  # or else the next reading meets it again
            self.news.append(dropped)
        self.told.add(dropped.reason)
        self.lost.update(dropped.rows)

    def take_news(self) -> tuple[Dropped, ...]:
        news, self.news = tuple(self.news), []
        return news

    def release(self, step: int) -> None:
        self.start = step + 1
        for key in self.keys[step].tolist():
            if self.last_use[key] == step:
                self.held.pop(key, None)
