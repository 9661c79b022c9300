"""Occluded-DukeMTMC (Miao et al., ICCV 2019): DukeMTMC-reID's images in other splits; the queries are occluded."""

from pathlib import Path

from shards.readers import dukemtmc
from shards.readers.market_layout import read_layout
from shards.records import Counts, RawDataset

NAME = "occluded-duke"
NOTICE = (
    f"{dukemtmc.NOTICE} For the splits cite Miao et al., Pose-Guided Feature Alignment for Occluded Person "
    "Re-Identification, ICCV 2019."
)
# As long as the authors' lists train.list and query.list, and as others count their own copies.
PUBLISHED = {"train": Counts(15_618, 702), "query": Counts(2_210, 519), "gallery": Counts(17_661, 1_110)}


def read(root: Path) -> RawDataset:
    """Read `root/{bounding_box_train,query,bounding_box_test}`, as the authors' converter writes it."""
    return read_layout(NAME, root, notice=NOTICE, example=dukemtmc.EXAMPLE, published=PUBLISHED)
