"""Market-1501 (Zheng et al., ICCV 2015): junk is -1, distractors are 0; drawn pedestrians share its layout."""

from dataclasses import replace
from pathlib import Path

from shards.readers.market_layout import read_layout
from shards.records import Counts, RawDataset

NAME = "market1501"
DISTRACTOR_PID = 0
EXAMPLE = "0002_c1s1_000451_03.jpg"
NOTICE = (
    "Market-1501 may be used for academic research only and may not be redistributed; "
    "this holds for shards made from it. Cite Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015."
)
# The gallery with its 2,798 distractors and 3,819 junk images.
PUBLISHED = {"train": Counts(12_936, 751), "query": Counts(3_368, 750), "gallery": Counts(19_732, 750)}
# `python -m shards synth` draws people in this layout and leaves this file: Market-1501's terms are not theirs.
DRAWN_MARKER = "pedestrians.json"
DRAWN_NAME = "pedestrians"
DRAWN_NOTICE = "Drawn pedestrians: made by a program, no person is depicted, no terms."


def read(root: Path) -> RawDataset:
    """Read `root/{bounding_box_train,query,bounding_box_test}`.

    Drawn pedestrians in this layout get a name and a notice of their own. Errors: see `read_layout`.
    """
    drawn = (root / DRAWN_MARKER).is_file()
    name, notice = (DRAWN_NAME, DRAWN_NOTICE) if drawn else (NAME, NOTICE)
    raw = read_layout(name, root, notice=notice, example=EXAMPLE, distractor_pid=DISTRACTOR_PID)
    return raw if drawn else replace(raw, published=PUBLISHED)
