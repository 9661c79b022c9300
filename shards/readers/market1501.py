"""Market-1501 (Zheng et al., ICCV 2015): junk is -1, distractors are 0. Drawn pedestrians have the same layout."""

from pathlib import Path

from shards.readers.market_layout import read_layout
from shards.records import Counts, RawDataset

NAME = "market1501"
EXAMPLE = "0002_c1s1_000451_03.jpg"
NOTICE = (
    "Market-1501 may be used for academic research only and may not be redistributed; "
    "this holds for shards made from it. Cite Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015."
)
# The gallery with its 2,798 distractors and 3,819 junk images.
PUBLISHED = {"train": Counts(12_936, 751), "query": Counts(3_368, 750), "gallery": Counts(19_732, 750)}
# `reid shards synth` draws people in this layout and writes this file; Market-1501's terms do not apply to them.
DRAWN_MARKER = "pedestrians.json"
DRAWN_NOTICE = "Drawn pedestrians: made by a program, no person is depicted, no terms."


def read(root: Path) -> RawDataset:
    """Read `root/{bounding_box_train,query,bounding_box_test}`, of Market-1501 or of drawn pedestrians."""
    if (root / DRAWN_MARKER).is_file():
        return read_layout("pedestrians", root, notice=DRAWN_NOTICE, example=EXAMPLE, published={}, distractor_pid=0)
    return read_layout(NAME, root, notice=NOTICE, example=EXAMPLE, published=PUBLISHED, distractor_pid=0)
