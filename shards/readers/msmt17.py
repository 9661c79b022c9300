"""MSMT17 V1 and V2 (Wei et al., CVPR 2018), and in Market-1501's layout; test identities start at 0 again."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from reid.data.manifest import JUNK_PID
from reid.data.table import relative_path
from reid.files import read_text
from shards.readers.market_layout import FOLDERS, read_layout
from shards.records import (
    UNKNOWN_CAMERA,
    Counts,
    RawDataset,
    Record,
    WrongLayoutError,
    check_folder,
    describe_folder,
    is_image,
    unwrap,
)

NAME = "msmt17"
IN_MARKET_LAYOUT = "msmt17-market"  # name of the dataset
# version -> folder of the train and val lists, folder of the query and gallery lists
VERSIONS = {"v1": ("train", "test"), "v2": ("mask_train_v2", "mask_test_v2")}
LISTS = {"train": ("list_train.txt", "list_val.txt"), "query": ("list_query.txt",), "gallery": ("list_gallery.txt",)}
LINE = "0000/0000_000_01_0303morning_0015_0.jpg 0"
# Train identity 0 and test identity 0 are two people. With a constant offset a pid shows the dataset's own number.
TEST_PID_OFFSET = 10_000
NOTICE = (
    "MSMT17 is given by its authors to those who sign its release agreement: academic research only, no "
    "redistribution, and its pictures are not to be published beyond what the agreement allows; this holds for shards "
    "made from it. Cite Wei et al., Person Transfer GAN to Bridge Domain Gap for Person Re-identification, CVPR 2018."
)
PUBLISHED = {"train": Counts(32_621, 1_041), "query": Counts(11_659, 3_060), "gallery": Counts(82_161, 3_060)}


def read(root: Path, with_val: bool = True) -> RawDataset:
    """Read the images that `root/list_{train,val,query,gallery}.txt` name.

    `root` holds train/ and test/ (V1, named msmt17-v1) or mask_train_v2/ and mask_test_v2/ (V2). The pid is as listed,
    for query and gallery plus 10,000; the camid is the third field of the file name, -1 if that is no number. A listed
    image that does not exist counts as broken in the build.
    with_val=False leaves list_val.txt out. Without lists, `root` may have Market-1501's folders: 0000 is then a person,
    no distractor, and the dataset is named msmt17-market.
    Raises ValueError if a list or folder is missing or a line cannot be read.
    """
    root = unwrap(root)
    if (root / FOLDERS["train"]).is_dir() and not (root / LISTS["train"][0]).exists():
        return _read_market_layout(root, with_val)
    version = _find_version(root)
    records: list[Record] = []
    for split, lists in LISTS.items():
        folder = unwrap(root / VERSIONS[version][split != "train"])
        for name in lists if with_val else lists[:1]:
            records += _read_list(root / name, folder, split)
    image, count = Counter((record.split, record.path) for record in records).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{root}: the lists name the {image[0]} image {image[1]} twice; copy the lists again")
    unknown = sum(record.camid == UNKNOWN_CAMERA for record in records)
    warnings = [f"{unknown} images have no camera in their names"] if unknown else []
    published = PUBLISHED if with_val else {**PUBLISHED, "train": Counts(30_248, 1_041)}
    return RawDataset(f"{NAME}-{version}", root, records, None, NOTICE, warnings=warnings, published=published)


def _read_market_layout(root: Path, with_val: bool) -> RawDataset:
    if not with_val:
        raise ValueError(f"--without-val: {root} has no list_val.txt, which names those of val; leave the flag out")
    raw = read_layout(IN_MARKET_LAYOUT, root, notice=NOTICE, example="0000_c1_0015.jpg", published=PUBLISHED)
    if too_large := [record for record in raw.records if record.pid >= TEST_PID_OFFSET]:
        raise ValueError(f"{too_large[0].path}: identity {too_large[0].pid}; MSMT17 counts below {TEST_PID_OFFSET}")
    records = [
        replace(record, pid=record.pid + TEST_PID_OFFSET * (record.split != "train" and record.pid != JUNK_PID))
        for record in raw.records
    ]
    return replace(raw, records=records)


def _find_version(root: Path) -> str:
    pairs = " or ".join(" and ".join(f"{folder}/" for folder in folders) for folders in VERSIONS.values())
    wanted = f"give --root the folder that holds list_train.txt and {pairs}"
    check_folder(root, wanted)
    there = [version for version, folders in VERSIONS.items() if all((root / folder).is_dir() for folder in folders)]
    if len(there) == 2:
        raise ValueError(f"{root}: holds the folders of V1 and of V2; keep one version below --root")
    if not there:
        raise WrongLayoutError(f"{root}: not MSMT17; it holds {describe_folder(root)}; {wanted}")
    return there[0]


def _read_list(path: Path, folder: Path, split: str) -> list[Record]:
    if not path.exists():
        found = describe_folder(path.parent)
        raise WrongLayoutError(f"{path}: no such file; {path.parent} holds {found}; check --root")
    lines = read_text(path).splitlines()
    records = [_parse(line, f"{path}, line {i}", folder, split) for i, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise ValueError(f"{path}: is empty; copy the list again")
    return records


def _parse(line: str, where: str, folder: Path, split: str) -> Record:
    name, _, number = line.strip().rpartition(" ")
    if not (name and number.isascii() and number.isdecimal() and is_image(Path(name))):
        tab = " (the space is a tab)" if "\t" in line else ""
        raise ValueError(f"{where}: {line!r} does not read like {LINE!r}{tab}; copy the list again")
    path = relative_path(name.strip(), folder, where)
    pid = int(number)
    if pid >= TEST_PID_OFFSET:
        raise ValueError(f"{where}: identity {pid}; MSMT17 counts below {TEST_PID_OFFSET}; copy the list again")
    fields = path.name.split("_")
    known = len(fields) > 3 and fields[2].isascii() and fields[2].isdecimal()
    camid = int(fields[2]) if known else UNKNOWN_CAMERA
    return Record(folder / path, pid + TEST_PID_OFFSET * (split != "train"), camid, split, number)
