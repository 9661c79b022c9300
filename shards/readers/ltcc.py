"""LTCC (Qian et al., ACCV 2020): people who change their clothes; the name of a file tells person, clothes, camera."""

import re
from pathlib import Path

from reid.data.image_file import SUFFIXES
from shards.readers.market_layout import read_layout
from shards.records import Counts, RawDataset

NAME = "ltcc"
FOLDERS = {"train": "train", "query": "query", "gallery": "test"}
EXAMPLE = "094_1_c9_015833.png"
_SUFFIX = "|".join(map(re.escape, sorted(SUFFIXES)))
PATTERN = re.compile(rf"(?P<pid>\d{{1,9}})_(?P<clothes>\d{{1,9}})_c(?P<camid>\d{{1,9}})_.+(?:{_SUFFIX})", re.IGNORECASE)
NOTICE = (
    "LTCC is given by its authors on request, for academic research only, and may not be redistributed; this holds for "
    "shards made from it. Cite Qian et al., Long-Term Cloth-Changing Person Re-identification, ACCV 2020."
)
PUBLISHED = {"train": Counts(9_576, 77), "query": Counts(493, 75), "gallery": Counts(7_050, 75)}


def read(root: Path) -> RawDataset:
    """Read `root/{train,query,test}`; the number of the clothes is stored with each image.

    An evaluation on these shards is the dataset's standard setting: the same-camera rule, and no rule about clothes.
    """
    return read_layout(
        NAME, root, notice=NOTICE, example=EXAMPLE, published=PUBLISHED, folders=FOLDERS, pattern=PATTERN
    )
