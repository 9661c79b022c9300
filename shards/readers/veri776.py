"""VeRi-776 (Liu et al., ECCV 2016): vehicles, not people; three-digit cameras, other folder names."""

from pathlib import Path

from shards.readers.market_layout import read_layout
from shards.records import Counts, RawDataset

NAME = "veri776"
FOLDERS = {"train": "image_train", "query": "image_query", "gallery": "image_test"}
EXAMPLE = "0001_c001_00016450_0.jpg"
NOTICE = (
    "VeRi-776 is given by its authors on request, for academic research only, and may not be redistributed; "
    "this holds for shards made from it. "
    "Cite Liu et al., A Deep Learning-Based Approach to Progressive Vehicle Re-identification, ECCV 2016."
)
PUBLISHED = {"train": Counts(37_778, 576), "query": Counts(1_678, 200), "gallery": Counts(11_579, 200)}


def read(root: Path) -> RawDataset:
    """Read `root/{image_train,image_query,image_test}`."""
    return read_layout(NAME, root, notice=NOTICE, example=EXAMPLE, published=PUBLISHED, folders=FOLDERS)
