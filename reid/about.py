"""What a report's figures are of, kept beside them as about.json: two reports compare only on the same data."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from reid.metrics.features import JUNK, Features

NAME = "about.json"
DISTRACTOR = -2  # whatever pid a dataset gives them


@dataclass(frozen=True)
class About:
    """source: the checkpoint or feature files. data_fingerprint: of the shards' manifest, "" for feature files.

    labels_fingerprint: of identities and cameras in their order, so that another system's features of the same images
    are known as such. num_queries, num_gallery: images. Junk is left out of all three.
    """

    dataset: str
    source: str
    data_fingerprint: str
    labels_fingerprint: str
    num_queries: int
    num_gallery: int

    def save(self, folder: Path) -> None:
        (folder / NAME).write_text(json.dumps(asdict(self), indent=2) + "\n")


def describe(dataset: str, source: str, data_fingerprint: str, query: Features, gallery: Features) -> About:
    columns = [_labels(split) for split in (query, gallery)]
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(column, dtype="<i8").tobytes() for column in columns))
    sizes = [column.shape[1] for column in columns]
    digest.update(f"{sizes}".encode())
    return About(dataset, source, data_fingerprint, digest.hexdigest(), *sizes)


def _labels(split: Features) -> np.ndarray:
    """(2, N) identities and cameras of all images but junk."""
    pids = split.pids.masked_fill(split.is_distractor(), DISTRACTOR)[split.pids != JUNK]
    return np.stack([pids.cpu().numpy(), split.camids[split.pids != JUNK].cpu().numpy()])


def load_about(folder: Path) -> About:
    """ValueError where `folder` holds no report of this version."""
    path = folder / NAME
    if not path.is_file():
        raise ValueError(f"{folder} holds no report ({NAME}); evaluate first, or give the folder of a run or a report")
    try:
        document = json.loads(path.read_text())
        return About(**{f.name: document[f.name] for f in fields(About)})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); evaluate again to write it") from error


def difference(one: About, other: About) -> str:
    """What shows that two reports are of different data; empty where they are of the same."""
    if (one.num_queries, one.num_gallery) != (other.num_queries, other.num_gallery):
        return (
            f"{one.num_queries} queries and {one.num_gallery} gallery images against {other.num_queries} and "
            f"{other.num_gallery}"
        )
    for name in ("data_fingerprint", "labels_fingerprint"):
        ours, theirs = getattr(one, name), getattr(other, name)
        if ours and theirs and ours != theirs:
            return f"{name.replace('_', ' ')} {ours[:12]} against {theirs[:12]}"
    return ""
