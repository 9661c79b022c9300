"""Distances and unit vectors whose gradients are written out, against autograd of the plain formulas."""

from __future__ import annotations

import pytest
import torch

from reid.losses.distances import distances_of_pairs, euclidean, unit_vectors


def test_unit_vectors_have_the_gradient_of_the_formula() -> None:
    rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(unit_vectors(rows), torch.nn.functional.normalize(rows))
    assert torch.autograd.gradcheck(unit_vectors, rows)
    zeros = torch.zeros(2, 4, requires_grad=True)
    unit_vectors(zeros).sum().backward()
    assert zeros.grad is not None and not unit_vectors(zeros).any() and zeros.grad.isfinite().all()


@pytest.mark.parametrize(("spaces", "chosen_rows"), [(1, 3), (2, 4)])
def test_distances_of_pairs_have_the_gradient_of_the_formula(spaces: int, chosen_rows: int) -> None:
    generator = torch.Generator().manual_seed(spaces)
    rows = torch.randn(9, 4, generator=generator, dtype=torch.float64).requires_grad_()
    chosen = torch.randint(0, 9, (chosen_rows, 3), generator=generator)
    anchors = rows[: 3 * spaces].unflatten(0, (spaces, 3)).repeat_interleave(chosen_rows // spaces, dim=0)
    expected, found = euclidean(anchors, rows[chosen]), distances_of_pairs(rows, chosen, spaces)
    torch.testing.assert_close(found, expected)
    weight = torch.rand(chosen_rows, 3, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((weight * d).sum(), rows, retain_graph=True)[0] for d in (expected, found)]
    torch.testing.assert_close(*gradients)


def test_a_distance_of_0_has_gradient_0() -> None:
    rows = torch.ones(3, 2, requires_grad=True)
    distances_of_pairs(rows, torch.tensor([[1, 2]])).sum().backward()
    assert rows.grad is not None and not rows.grad.any()
