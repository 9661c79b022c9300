"""Market-1501's layout, also used by other datasets: flat folders, identity and camera in the name of each file."""

import re
from collections.abc import Mapping
from pathlib import Path

from reid.data.image_file import SUFFIXES
from reid.data.manifest import JUNK_PID
from shards.records import (
    Counts,
    RawDataset,
    Record,
    WrongLayoutError,
    check_folder,
    describe_folder,
    list_folder,
    unwrap,
)

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
# 0002_c1s1_000451_03.jpg, 0005_c2_f0046985.jpg, 0001_c001_00016450_0.jpg: cameras have one to several digits.
PATTERN = re.compile(
    rf"(?P<pid>-1|\d{{1,9}})_c(?P<camid>\d{{1,9}})(?:s\d+)?_.+(?:{'|'.join(map(re.escape, sorted(SUFFIXES)))})",
    re.IGNORECASE,
)


def read_layout(
    name: str,
    root: Path,
    *,
    notice: str,
    example: str,
    published: Mapping[str, Counts],
    folders: Mapping[str, str] = FOLDERS,
    distractor_pid: int | None = None,
    pattern: re.Pattern[str] = PATTERN,
) -> RawDataset:
    """Read the images of three folders. Files whose names do not match the pattern are ignored.

    Junk (-1) and distractors belong to the gallery; in other splits they are left out with a warning.
    `folders` maps splits to folders below `root`; `example` is a file name of the dataset, for errors; groups of
    `pattern` besides pid and camid are stored with the images; the other arguments are fields of the result.
    Raises ValueError if a folder is missing or no name in it matches.
    """
    wanted = f"give --root the folder that holds {', '.join(folders.values())}"
    root = unwrap(root)
    check_folder(root, wanted)
    records: list[Record] = []
    ignored: list[Path] = []
    for split, folder in folders.items():
        check_folder(root / folder, wanted)
        before = len(records)
        for file in list_folder(unwrap(root / folder)):
            if match := pattern.fullmatch(file.name):
                extra = tuple((key, text) for key, text in match.groupdict().items() if key not in ("pid", "camid"))
                record = Record(file, int(match["pid"]), int(match["camid"]), split, match["pid"], extra=extra)
                records.append(record)
            else:
                ignored.append(file)
        if len(records) == before:
            found = describe_folder(root / folder)
            raise WrongLayoutError(f"{root / folder}: no image is named like {example}; found {found}; check --root")
    gallery_only = [JUNK_PID] if distractor_pid is None else [JUNK_PID, distractor_pid]
    kept = [record for record in records if record.split == "gallery" or record.pid not in gallery_only]
    warnings = []
    if len(kept) < len(records):
        pids = " or ".join(map(str, gallery_only))
        warnings.append(f"{len(records) - len(kept)} images with pid {pids} outside {folders['gallery']} were left out")
    return RawDataset(name, root, kept, distractor_pid, notice, ignored, warnings, published)
