"""The layout that Market-1501 began and others took over: flat folders, identity and camera in each file's name."""

import re
from collections.abc import Mapping
from pathlib import Path

from shards.records import JUNK_PID, RawDataset, Record, describe_folder, list_folder, sort_records

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
# 0002_c1s1_000451_03.jpg, 0005_c2_f0046985.jpg, 0001_c001_00016450_0.jpg: cameras have one to several digits.
PATTERN = re.compile(r"(?P<pid>-1|\d{1,9})_c(?P<camid>\d{1,9})(s\d+)?_.+\.(jpe?g|png)", re.IGNORECASE)


def read_layout(
    name: str,
    root: Path,
    *,
    notice: str,
    example: str,
    folders: Mapping[str, str] = FOLDERS,
    distractor_pid: int | None = None,
) -> RawDataset:
    """Read the folders (split -> folder below `root`); a name that does not match is a stray and is ignored.

    Junk (-1) and distractors belong to the gallery; elsewhere they are left out with a warning. `example` is a file
    name as the dataset has it. ValueError for a missing folder or one where no name matches.
    """
    records: list[Record] = []
    ignored: list[Path] = []
    for split, folder in folders.items():
        found, strays = _read_folder(root, folder, split, folders, example)
        records += found
        ignored += strays
    nobody = (JUNK_PID, distractor_pid)
    kept = [record for record in records if record.split == "gallery" or record.pid not in nobody]
    warnings = []
    if len(kept) < len(records):
        pids = " or ".join(str(pid) for pid in nobody if pid is not None)
        warnings.append(f"{len(records) - len(kept)} images with pid {pids} outside {folders['gallery']} were left out")
    return RawDataset(name, root, sort_records(kept), distractor_pid, notice, tuple(ignored), tuple(warnings))


def _read_folder(
    root: Path, folder: str, split: str, folders: Mapping[str, str], example: str
) -> tuple[list[Record], list[Path]]:
    wanted = f"give --root the folder that holds {', '.join(folders.values())}"
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; {wanted}")
    path = root / folder
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; {root} holds {describe_folder(root)}; {wanted}")
    records, strays = [], []
    for file in list_folder(path):
        match = PATTERN.fullmatch(file.name)
        if match:
            records.append(Record(file, int(match["pid"]), int(match["camid"]), split, match["pid"]))
        else:
            strays.append(file)
    if not records:
        raise ValueError(f"{path}: no image is named like {example}; found {describe_folder(path)}; check --root")
    return records, strays
