"""Market-1501 (Zheng et al., ICCV 2015): three flat folders, identity and camera in each file's name."""

import re
from pathlib import Path

from shards.records import JUNK_PID, RawDataset, Record, describe_folder, list_folder, sort_records

NAME = "market1501"
FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
DISTRACTOR_PID = 0
NOTICE = (
    "Market-1501 may be used for academic research only and may not be redistributed; "
    "this holds for shards made from it. Cite Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015."
)
# `python -m shards synth` draws people in this layout and leaves this file: Market-1501's terms are not theirs.
DRAWN_MARKER = "pedestrians.json"
DRAWN_NAME = "pedestrians"
DRAWN_NOTICE = "Drawn pedestrians: made by a program, no person is depicted, no terms."
# 0002_c1s1_000451_03.jpg; cameras of several digits, since other sets copy this layout with more of them.
PATTERN = re.compile(r"(?P<pid>-1|\d{1,9})_c(?P<camid>\d{1,9})(s\d+)?_.+\.(jpe?g|png)", re.IGNORECASE)
EXAMPLE = "0002_c1s1_000451_03.jpg"


def read(root: Path) -> RawDataset:
    """Read `root/{bounding_box_train,query,bounding_box_test}`.

    Junk (-1) and distractors (0) belong to the gallery; elsewhere they are left out with a warning. Drawn pedestrians
    in this layout get a name and a notice of their own. ValueError for a missing folder or one where no name matches.
    """
    records: list[Record] = []
    ignored: list[Path] = []
    for split, folder in FOLDERS.items():
        found, strays = _read_folder(root, folder, split)
        records += found
        ignored += strays
    kept = [record for record in records if record.split == "gallery" or record.pid not in (JUNK_PID, DISTRACTOR_PID)]
    warnings = []
    if len(kept) < len(records):
        left_out = len(records) - len(kept)
        warnings.append(f"{left_out} images with pid -1 or 0 outside {FOLDERS['gallery']} were left out")
    drawn = (root / DRAWN_MARKER).is_file()
    name, notice = (DRAWN_NAME, DRAWN_NOTICE) if drawn else (NAME, NOTICE)
    return RawDataset(name, root, sort_records(kept), DISTRACTOR_PID, notice, tuple(ignored), tuple(warnings))


def _read_folder(root: Path, folder: str, split: str) -> tuple[list[Record], list[Path]]:
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; give --root the folder that holds {', '.join(FOLDERS.values())}")
    path = root / folder
    if not path.is_dir():
        raise ValueError(
            f"{path}: no such folder; {root} holds {describe_folder(root)}; "
            f"give --root the folder that holds {', '.join(FOLDERS.values())}"
        )
    records, strays = [], []
    for file in list_folder(path):
        match = PATTERN.fullmatch(file.name)
        if match:
            records.append(Record(file, int(match["pid"]), int(match["camid"]), split, match["pid"]))
        else:
            strays.append(file)
    if not records:
        raise ValueError(f"{path}: no image is named like {EXAMPLE}; found {describe_folder(path)}; check --root")
    return records, strays
