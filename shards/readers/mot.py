"""MOTChallenge (MOT15 to MOT20, DanceTrack and others): sequences with `gt/gt.txt` and `img1/`; a camera each."""

import re
from pathlib import Path

from shards.readers.tracking import Footage, Selection, drop_ignored, make_dataset, number_frames, read_rows
from shards.records import RawDataset, WrongLayoutError, check_folder, describe_folder, list_folder

NAME = "mot"
NOTICE = (
    "Footage in the layout of MOTChallenge: its terms of use hold for these shards, too; MOTChallenge's: research only."
)
BOXES, PICTURES = Path("gt/gt.txt"), "img1"
_DETECTOR = re.compile(r"(.*MOT17-\d+)-(DPM|FRCNN|SDP)")  # MOT17 has each sequence three times


def read(
    root: Path,
    ids: str | None = None,
    merge: Path | None = None,
    every: int = 1,
    min_height: float = 0.0,
    min_visibility: float = 0.0,
) -> RawDataset:
    """Read `root/**/<sequence>/{gt/gt.txt,img1/}`, at most two folders deep; `root` may be one sequence.

    The arguments are those of `make_dataset` and `Selection`. Of the ground truth, only people are read, without those
    that are marked as ignored; of MOT17's copies for each detector, only the first.
    """
    selection = Selection(every, min_height, min_visibility)
    wanted = f"give --root a sequence with {BOXES} and {PICTURES}/, or the folder that holds sequences"
    check_folder(root, wanted)
    inner = [path for path in list_folder(root) if path.is_dir()]
    inner += [path for folder in inner for path in list_folder(folder) if path.is_dir()]
    folders = sorted(path for path in (root, *inner) if (path / BOXES).is_file())
    unlabelled = [path for path in (root, *inner) if (path / PICTURES).is_dir() and path not in folders]
    if not folders:
        raise WrongLayoutError(f"{root}: no {BOXES} found; it holds {describe_folder(root)}; {wanted}")
    names = {path: path.relative_to(root).as_posix() if path != root else root.resolve().name for path in folders}
    first: dict[str, Path] = {}
    for path, name in names.items():
        match = _DETECTOR.fullmatch(name)
        first.setdefault(match[1] if match else name, path)
    warnings = [f"{len(folders) - len(first)} copies of sequences for other detectors were left out"]
    footage, dropped = [], 0
    for path in first.values():
        check_folder(path / PICTURES, wanted)
        rows = read_rows(path / BOXES)
        people = drop_ignored(rows)
        dropped += len(rows) - len(people)
        footage.append(Footage(names[path], number_frames(path / PICTURES), people))
    warnings = warnings if len(first) < len(folders) else []
    warnings += [f"{dropped} boxes of the ground truth are no people or are marked as ignored"] if dropped else []
    if unlabelled:
        warnings.append(f"{len(unlabelled)} sequences have no {BOXES} and were left out, e.g. {unlabelled[0]}")
    return make_dataset(NAME, root, NOTICE, footage, selection, ids, merge, warnings)
