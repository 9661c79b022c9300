"""PRCC (Yang et al., TPAMI 2021): people who change their clothes; cameras A and B show the same clothes, C others."""

from collections.abc import Iterator
from pathlib import Path

from shards.records import (
    Counts,
    RawDataset,
    Record,
    WrongLayoutError,
    check_folder,
    describe_folder,
    is_image,
    list_folder,
    unwrap,
)

NAME = "prcc"
CAMERAS = {"A": 1, "B": 2, "C": 3}
CLOTHES = {"A": "1", "B": "1", "C": "2"}  # of one person
QUERIES = {"changed": "C", "same": "B"}  # clothes, compared with the gallery's -> camera; A is the gallery
NOTICE = (
    "PRCC may be used for academic research only and may not be redistributed; this holds for shards made from it. "
    "Cite Yang et al., Person Re-identification by Contour Sketch under Moderate Clothing Change, TPAMI 2021."
)
# Of the test cameras only the sum is published: 10,800 images of 71 people.
PUBLISHED = {"train": Counts(17_896, 150)}


def read(root: Path, queries: str = "changed") -> RawDataset:
    """Read `root/rgb/train/<person>/<camera>_*.jpg` and `root/rgb/test/<camera>/<person>/*.jpg`.

    The clothes (1 or 2) are stored with each image. The gallery is camera A with all its images, as about half of the
    publications have it; the others draw one image per person, ten times. rgb/val, with the people of train, is not
    read, as in the publications; a warning counts its images.

    Args:
        queries: "changed" (camera C, other clothes than in the gallery) or "same" (camera B). The two are separate
            datasets, named prcc-changed and prcc-same.
    """
    if queries not in QUERIES:
        raise ValueError(f"--queries {queries}: use {' or '.join(QUERIES)}")
    wanted = "give --root the folder that holds rgb, with train/<person>/A_*.jpg and test/A/<person>/*.jpg"
    root = unwrap(root)
    folders = {"train": "rgb/train", "query": f"rgb/test/{QUERIES[queries]}", "gallery": "rgb/test/A"}
    records: list[Record] = []
    ignored: list[Path] = []
    for split, folder in folders.items():
        check_folder(root / folder, wanted)
        before = len(records)
        for person, path in _walk(root / folder):
            camera = path.name[:2].removesuffix("_") if split == "train" else folder[-1]
            if person.isascii() and person.isdecimal() and is_image(path) and camera in CAMERAS:
                extra = (("clothes", CLOTHES[camera]),)
                records.append(Record(path, int(person), CAMERAS[camera], split, person, extra=extra))
            else:
                ignored.append(path)
        if len(records) == before:
            raise WrongLayoutError(
                f"{root / folder}: no image found; it holds {describe_folder(root / folder)}; {wanted}"
            )
    left_out = sum(is_image(path) for _, path in _walk(root / "rgb/val")) if (root / "rgb/val").is_dir() else 0
    warnings = [f"{left_out} images of rgb/val, with the people of train, were left out"] if left_out else []
    return RawDataset(f"{NAME}-{queries}", root, records, None, NOTICE, ignored, warnings, PUBLISHED)


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield each file of the folders of people, with the name of its folder; other entries with ""."""
    for person in list_folder(folder):
        if person.is_dir():
            yield from ((person.name, path) for path in list_folder(person))
        else:
            yield "", person
