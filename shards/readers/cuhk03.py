"""CUHK03-NP (Li et al., CVPR 2014; new protocol of Zhong et al., CVPR 2017): detected or hand-labelled boxes."""

from pathlib import Path

from shards.readers.market_layout import FOLDERS, read_layout
from shards.records import Counts, RawDataset, WrongLayoutError, check_folder, unwrap

NAME = "cuhk03"
BOXES = ("detected", "labeled")
EXAMPLE = "0001_c1_1.png"
NOTICE = (
    "CUHK03 may be used for academic research only and may not be redistributed; its pictures show students whose "
    "privacy must be kept. This holds for shards made from it. Cite Li et al., DeepReID, CVPR 2014, and for the new "
    "protocol Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017."
)
PUBLISHED = {
    "detected": {"train": Counts(7_365, 767), "query": Counts(1_400, 700), "gallery": Counts(5_332, 700)},
    "labeled": {"train": Counts(7_368, 767), "query": Counts(1_400, 700), "gallery": Counts(5_328, 700)},
}


def read(root: Path, boxes: str = "detected") -> RawDataset:
    """Read `root/<boxes>/{bounding_box_train,query,bounding_box_test}`, boxes "detected" or "labeled".

    The two are separate datasets, named cuhk03-detected and cuhk03-labeled.
    """
    if boxes not in BOXES:
        raise ValueError(f"--boxes {boxes}: use {' or '.join(BOXES)}")
    root = unwrap(root)
    matlab = [root] if root.suffix == ".mat" else sorted([*root.glob("*.mat"), *root.glob("*/*.mat")])
    if matlab and not (root / boxes).is_dir():
        raise WrongLayoutError(
            f"{matlab[0]}: CUHK03 as MATLAB data is not read; take the images of the new protocol (cuhk03-np, with "
            f"{' and '.join(BOXES)}): reid shards build cuhk03 --root cuhk03-np --out <folder>"
        )
    for folder in (root, root / boxes):
        check_folder(folder, f"give --root the folder that holds {', '.join(BOXES)}")
    folders = {split: f"{boxes}/{folder}" for split, folder in FOLDERS.items()}
    name = f"{NAME}-{boxes}"
    return read_layout(name, root, notice=NOTICE, example=EXAMPLE, published=PUBLISHED[boxes], folders=folders)
