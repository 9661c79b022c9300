"""A feature that is not finite on one rank stops every rank, with the same words."""

import torch
import torch.distributed as dist

from reid.training.monitors import FiniteWatch, mean_over_ranks
from tests.support.batches import losses_of
from tests.support.pool import Pool


def meet_a_nan() -> str:
    rank = dist.get_rank()
    watch = FiniteWatch([f"person {row}" for row in range(6)])
    features = torch.ones(2, 4)
    if rank == 1:
        features[1, 0] = float("nan")
    watch.record(6, torch.zeros(2, 2, dtype=torch.int64), losses_of(torch.ones(2, 4), torch.tensor(1.0)))
    watch.check({"loss": 1.0}, "lower it")
    watch.record(7, torch.tensor([[rank, 3], [rank + 2, 4]]), losses_of(features, features.sum()))
    try:
        watch.check(mean_over_ranks({"loss": features.sum()}), "lower it")
    except ValueError as error:
        return str(error)
    return "went on"


def test_every_rank_stops_and_names_the_image(pool: Pool) -> None:
    said = pool.run(3, meet_a_nan)
    assert (
        said
        == [
            "not finite: loss; first at step 8: rank 1, 1 of 2 features (identity person 3 image 4); lower it; "
            "last good step 7; all terms: loss nan"
        ]
        * 3
    )
