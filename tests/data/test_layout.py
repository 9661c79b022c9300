"""reid/data/layout.py against loops over the global batch, and its copy to a device."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reid.data.layout import Layout, build_layout
from reid.data.transfer import move
from tests.support.gpu_only import needs_cuda
from tests.support.loading import make_loader


@st.composite
def global_batches(draw: st.DrawFn) -> list[np.ndarray]:
    """The labels of 1 to 4 virtual ranks, in any order; a label may lie on several of them."""
    ranks = draw(st.integers(1, 4))
    return [np.array(draw(st.lists(st.integers(0, 6), min_size=1, max_size=8)), dtype=np.int64) for _ in range(ranks)]


@given(virtual=global_batches(), extra=st.integers(0, 2), share=st.integers(1, 4))
def test_every_field_is_what_its_documentation_says(virtual: list[np.ndarray], extra: int, share: int) -> None:
    share = share if len(virtual) % share == 0 else 1
    labels = [np.concatenate(virtual[first : first + share]) for first in range(0, len(virtual), share)]
    everyone = np.concatenate(labels).tolist()
    longest = max(map(len, labels))
    slots = max(len(set(own.tolist())) for own in labels) + extra
    for rank, own in enumerate(labels):
        layout = build_layout(virtual, rank, slots=slots, dtype=torch.float64, share=share)
        parts = virtual[rank * share : (rank + 1) * share]
        assert layout.sizes == tuple(map(len, parts))
        if share > 1:
            assert layout.virtual_rank.tolist() == [number for number, part in enumerate(parts) for _ in part]
        else:
            assert layout.virtual_rank is None
        identities = layout.labels.tolist()
        assert (layout.slots, layout.longest) == (slots, longest)
        assert sorted(identities) == sorted(set(everyone))
        assert layout.counts.tolist() == [everyone.count(label) for label in identities]
        assert [identities[i] for i in layout.identity] == own.tolist()
        assert [identities[i] for i in layout.row_identity] == everyone
        assert layout.row_round.tolist() == [everyone[:i].count(label) for i, label in enumerate(everyone)]
        assert layout.start == sum(map(len, labels[:rank]))
        assert layout.image_weight == pytest.approx(len(labels) / len(everyone))
        counts = np.array([everyone.count(label) for label in own])
        np.testing.assert_allclose(layout.leave_out, [n / (n - 1) if n > 1 else 0 for n in counts])
        anchors = sum(everyone.count(label) > 1 for label in everyone)
        np.testing.assert_allclose(layout.anchor_weight, (counts > 1) * len(labels) / max(anchors, 1))
        np.testing.assert_allclose(layout.push_weight, layout.anchor_weight * (len(identities) > 1))
        local = [(rows == label).sum() > 1 and (rows != label).any() for rows in virtual for label in rows]
        mine = local[layout.start : layout.start + len(own)]
        np.testing.assert_allclose(layout.triplet_weight, np.array(mine) * len(labels) / max(sum(local), 1))
        assert_sums(labels, layout, rank)


def assert_sums(labels: list[np.ndarray], layout: Layout, rank: int) -> None:
    """Values, summed by slots, gathered and merged, are sums by identity; padded rows are taken out."""
    values = [torch.arange(len(own), dtype=torch.float64) + 10 * r for r, own in enumerate(labels)]
    of_slots = []
    for r, value in enumerate(values):
        slot = build_layout(labels, r, slots=layout.slots).slot
        of_slots.append(torch.zeros(layout.slots, dtype=torch.float64).index_add(0, slot, value))
    gathered = torch.cat(of_slots)
    if layout.merge is not None:
        gathered = torch.zeros(len(layout.labels), dtype=torch.float64).index_add(0, layout.merge, gathered)
    everyone = torch.from_numpy(np.concatenate(labels))
    assert gathered.tolist() == [torch.cat(values)[everyone == label].sum() for label in layout.labels]
    padded = torch.cat([torch.nn.functional.pad(value, (0, layout.longest - len(value))) for value in values])
    kept = padded if layout.keep is None else padded[layout.keep]
    assert torch.equal(kept, torch.cat(values))


def test_rounds_are_averaged_over_their_anchors() -> None:
    """Two identities of 3 and 2 rows: two rounds with two queries and two centroids, one with one of each."""
    layout = build_layout([np.array([0, 1, 0]), np.array([1, 0, 7])], rank=1, dtype=torch.float64)
    assert layout.row_round.tolist() == [0, 0, 1, 1, 2, 0]
    assert layout.round_weight.tolist() == pytest.approx([2 / (4 * 3), 2 / (2 * 3), 0.0])


@pytest.mark.parametrize(("world_size", "ranks", "workers"), [(1, 1, 0), (2, 2, 0), (4, 4, 0), (1, 2, 3), (2, 4, 0)])
def test_the_loader_knows_the_layout_of_all_ranks(drawn, world_size: int, ranks: int, workers: int) -> None:
    loaders = [make_loader(drawn.root, drawn.manifest, r, world_size, workers) for r in range(world_size)]
    for loader in loaders:
        loader.ranks = ranks
    share, streams = ranks // world_size, 4 // ranks
    for step in zip(*(list(loader.batches(2, (0, 2))) for loader in loaders), strict=True):
        labels = [part.numpy() for _, _, batch in step for part in batch.labels.split(batch.sizes)]  # of the streams
        labels = [np.concatenate(labels[first : first + streams]) for first in range(0, 4, streams)]
        for rank, (_, _, batch) in enumerate(step):
            wanted = build_layout(labels, rank, slots=8 // world_size, share=share)
            for field in fields(Layout):
                found, expected = getattr(batch.layout, field.name), getattr(wanted, field.name)
                assert torch.equal(found, expected) if isinstance(expected, Tensor) else found == expected, field.name


def test_tensors_of_any_kind_arrive_in_one_copy() -> None:
    """On the meta device there are no values, but shapes, types and the number of storages."""
    batch = torch.arange(3), (torch.ones(2, 3, dtype=torch.bool), build_layout([np.array([4, 4, 5])]), "text", None)
    moved = move(batch, torch.device("meta"))
    layout = moved[1][1]
    assert moved[0].dtype == torch.int64 and moved[1][0].shape == (2, 3) and moved[1][2:] == ("text", None)
    assert layout.image_weight.shape == () and layout.counts.dtype == torch.float32 and layout.slots == 2
    assert moved[0].untyped_storage()._cdata == layout.counts.untyped_storage()._cdata


@needs_cuda
@pytest.mark.parametrize("pin", [False, True])
def test_a_copy_to_cuda_keeps_every_value(pin: bool) -> None:
    layout = build_layout([np.array([4, 4, 5]), np.array([4, 6])])
    for field in fields(Layout):
        found, expected = (getattr(x, field.name) for x in (move(layout, torch.device("cuda"), pin), layout))
        if isinstance(expected, Tensor):
            assert found.is_cuda and torch.equal(found.cpu(), expected)
