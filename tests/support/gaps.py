"""Whether float32 keeps the order of scores that are compared with a sort in float64."""

import numpy as np

LEAST = 1e-6  # float32 rounds a score of about 1 to 6e-8, and a product of some ten terms to a few times that


def are_apart(scores: np.ndarray, kinds: np.ndarray | None = None, least: float = LEAST) -> bool:
    """Return whether neighbours in the sorted scores are equal or at least `least` apart.

    Args:
        scores: (N,) float64.
        kinds: (N,) any type; scores of one kind may lie as near as they like, as their order does not matter.
    """
    order = np.argsort(scores, kind="stable")
    gaps = np.diff(np.asarray(scores)[order])
    near = (gaps > 0) & (gaps < least)
    if kinds is not None:
        near &= np.diff(np.asarray(kinds)[order].astype(np.int64)) != 0
    return not near.any()
