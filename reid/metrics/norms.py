"""Norms of features, exact down to the smallest numbers of float32, and the check that a feature has one."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_ROWS = 8192  # features read at a time: 64 MiB at 2,048 dimensions
SQUARED = 1 << 21  # numbers squared at a time on a CPU: 8 MiB, which stay in its caches
SMALL = 2.0**-64  # squared norms below may have lost digits: float32 has all of them from 2**-126
# float32 has 24 bits of a number from 2**-126 on, 8 of this one (as bfloat16), and fewer of a smaller one.
LEAST = 2.0**-142


def squared_norms(embeddings: Tensor, unit: float = 1.0) -> Tensor:
    """Return (N,) squared lengths of (N, D), in units of 1 / `unit`, without another array of that size."""
    squares = embeddings.new_empty(len(embeddings))
    step = NORM_ROWS if embeddings.is_cuda else min(NORM_ROWS, max(1, SQUARED // max(1, embeddings.shape[1])))
    for i in range(0, len(embeddings), step):
        rows = embeddings[i : i + step]
        squares[i : i + step] = (rows if unit == 1 else rows * unit).square().sum(1)
    return squares


def norms(embeddings: Tensor, squares: Tensor) -> Tensor:
    """Return (N,) lengths of (N, D) from their squared norms (N,), exact also where a square leaves float32's range."""
    lengths = squares.sqrt()
    for rows in (squares < SMALL).nonzero().squeeze(1).split(NORM_ROWS):
        part = embeddings[rows].float()
        scale = _inverse_scale(part)
        lengths[rows] = squared_norms(part * scale[:, None]).sqrt() / scale
    return lengths


def check_rows(
    embeddings: Tensor, squares: Tensor, name_of: Callable[[int], str], checked: Tensor | bool = True
) -> None:
    """Raise ValueError if a row cannot be compared: not finite, or too large or small for float32.

    Args:
        embeddings: (N, D).
        squares: (N,) their squared norms.
        name_of: returns the name of row i for the error.
        checked: (N,) bool, False for rows that may hold anything.
    """
    bad = ~squares.isfinite()
    for rows in (squares < SMALL).nonzero().squeeze(1).split(NORM_ROWS):
        largest = torch.linalg.vector_norm(embeddings[rows], torch.inf, dim=1)
        bad[rows] = (largest > 0) & (largest < LEAST)
    found = (bad & checked).nonzero().squeeze(1).tolist()
    if found:
        row = embeddings[found[0]]
        fault = "too small for float32" if float(row.abs().max()) < 1 else "too large for float32"
        raise ValueError(
            f"{name_of(found[0])} is {fault if row.isfinite().all() else 'not finite'} ({len(found)} of {len(bad)} "
            "rows are); look at that image, or for a diverged model"
        )


def normalize(embeddings: Tensor) -> Tensor:
    """Return (N, D) rows of length 1 at any scale of a row; a row of zeros stays."""
    scale = _inverse_scale(embeddings)
    return F.normalize(embeddings if bool((scale == 1).all()) else embeddings * scale[:, None])


def _inverse_scale(embeddings: Tensor) -> Tensor:
    """Return (N,) the power of two that brings the largest number of a small row to [0.5, 1); 1 for other rows."""
    largest = torch.linalg.vector_norm(embeddings, torch.inf, dim=1)
    inverse = (torch.frexp(largest).mantissa / largest).clamp(max=2.0**126)  # more would not be a float32
    return torch.where((largest > 0) & (largest.square() < SMALL), inverse, 1.0)


def common_unit(*lengths: Tensor) -> float:
    """Return the power of two in whose units the squares of all norms (N,), finite, stay in float32's range.

    It is 1 unless a norm is small. Raises ValueError if the norms differ too much: by a factor of about 2**125.
    """
    known = torch.cat([some[some > 0] for some in lengths])
    if not len(known) or float(known.min().square()) >= SMALL:
        return 1.0
    exponent = math.frexp(float(known.max()))[1]
    # The largest norm becomes at most 2**62, and, with the unit twice as `Search` has it, at most 2**126.
    unit = 2.0 ** min(62 - exponent, (126 - exponent) // 2, 126)
    if float(known.min()) * unit < 2.0**-63:
        raise ValueError(
            f"norms of features reach from {float(known.min()):.1e} to {float(known.max()):.1e}: float32 cannot hold "
            "the squares of both, so they have no Euclidean distances; look at these images, or compare by cosine"
        )
    return unit
