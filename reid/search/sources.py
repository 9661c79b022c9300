"""Images to search, listed from a folder with a sub-folder per identity, from a CSV, or from shards."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from reid.data.eval_loader import read_images
from reid.data.image_file import SUFFIXES, read_image_file
from reid.data.images import Pixels
from reid.data.manifest import JUNK_PID, MANIFEST_NAME, Split, load_manifest
from reid.data.shard_reader import Dropped, Identity, read_sound_identities
from reid.data.storage import full_path, is_remote
from reid.data.table import read_table
from reid.embedder import Embedder
from reid.files import is_inside, warn_of_links
from reid.search.index import Entry
from reid.search.index_files import Source

COLUMNS = ("path", "identity", "camera", "time")


@dataclass(frozen=True)
class SourceImage:
    """An image to search. name: for error messages. load: returns a file or the bytes of one, or raises ValueError."""

    entry: Entry
    name: str
    load: Callable[[], Path | bytes]

    def read(self, embedder: Embedder) -> Tensor:
        return embedder.read(self.load(), self.name)


def is_shards(root: str) -> bool:
    return is_remote(root) or Path(root, MANIFEST_NAME).is_file()


def name_root(root: str) -> str:
    """Return the name that an index has of a folder or URL."""
    return root if is_remote(root) else str(Path(root).resolve())


def list_folder(root: str, table: str = "") -> list[SourceImage]:
    """List the images under `root` in the order of their paths; the first sub-folder of a path is the identity.

    table: a CSV with the column path (relative to `root`), and identity, camera and time if known. Then exactly the
    images in it are listed, in its order.

    Raises ValueError if there are no images, or for a wrong line of the CSV.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise ValueError(f"{root}: no such folder; give --images a folder of pictures, or of shards")
    source = Source(name_root(root))
    if table:
        rows = read_table(Path(table), Path(source.root), COLUMNS[:1], COLUMNS[1:])
        entries = [Entry(row["path"], row["identity"], row["camera"], row["time"], source=source) for _, row in rows]
    else:
        entries = list(_walk(folder, source))
    if not entries:
        where = f"{table}: no line below the header" if table else f"{root}: no image in this folder"
        raise ValueError(f"{where}; images end with {', '.join(sorted(SUFFIXES))}")
    if warning := warn_of_links((folder / entry.path for entry in entries), folder):
        print(f"warning: {warning}", file=sys.stderr)
    return [SourceImage(entry, str(folder / entry.path), partial(Path, folder, entry.path)) for entry in entries]


def _walk(folder: Path, source: Source) -> Iterator[Entry]:
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        # Whatever is no folder: a FIFO or a link to nothing is counted as unreadable.
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in parts) and not path.is_dir():
            yield Entry("/".join(parts), identity=parts[0] if len(parts) > 1 else "", source=source)


def list_shards(root: str, split: str) -> Iterator[SourceImage]:
    """List the images of a split without junk, by the names of the manifest; distractors have no identity.

    Train identities are called train/<name>, because some datasets number them from 0 again. Damage becomes images that
    cannot be loaded. Raises ValueError if the split is unknown or empty.
    """
    manifest = load_manifest(root)
    if split not in manifest.splits or (manifest.split(split).pids == JUNK_PID).all():
        raise ValueError(f"{root}: the {split} split holds no image; give --split one of {', '.join(manifest.splits)}")
    part = manifest.split(split)
    return _list_split(root, split, part, manifest.distractor_pid)


def _list_split(root: str, split: str, part: Split, distractor_pid: int | None) -> Iterator[SourceImage]:
    first = np.cumsum(part.images) - part.images
    source = Source(name_root(root), split)
    for identity in read_sound_identities(root, part, range(len(part.shards))):
        if isinstance(identity, Dropped):
            yield SourceImage(Entry("", source=source), "", partial(_load_member, identity))
            continue
        if identity.pid == JUNK_PID:
            continue
        name = part.names[identity.row] if identity.pid != distractor_pid else ""
        name = f"train/{name}" if name and split == "train" else name
        shard = part.shards[part.shard[identity.row]].name
        for i, camid in enumerate(identity.camids):
            path = f"{shard}/{identity.key}.{identity.files[i]}"
            camera = "" if camid < 0 else str(camid)
            entry = Entry(path, name, camera, place=int(first[identity.row]) + i, source=source)
            yield SourceImage(entry, full_path(root, path), partial(_load_member, identity, i))


def _load_member(identity: Identity | Dropped, i: int = 0) -> bytes:
    if isinstance(identity, Dropped):
        raise ValueError(identity.reason)
    return bytes(identity.image(i))


def read_pictures(entries: Sequence[Entry], pixels: Pixels, roots: Set[str]) -> list[np.ndarray | None]:
    """Return the images (H, W, 3) uint8 of the entries; None for one that is gone or cannot be read.

    roots: the folders and URLs, by `name_root`, that may be read. An index may come from anywhere, so what it names
    itself is neither fetched nor shown, and a path that leads out of its folder is not, either.
    """
    pictures: list[np.ndarray | None] = [None] * len(entries)
    by_source: dict[Source, list[int]] = {}
    for i, entry in enumerate(entries):
        if entry.source.root not in roots:
            continue
        if entry.source.split:
            by_source.setdefault(entry.source, []).append(i)
            continue
        path = Path(entry.source.root, entry.path)
        with contextlib.suppress(ValueError):
            if is_inside(path, entry.source.root):
                pictures[i] = pixels.decode(read_image_file(path), "").permute(1, 2, 0).numpy()
    for source, rows in by_source.items():
        with contextlib.suppress(OSError, ValueError):  # of shards all or none: they may have been built again
            manifest = load_manifest(source.root)
            places = [entries[i].place for i in rows]
            if not all(0 <= place < manifest.split(source.split).num_images for place in places):
                continue
            images = read_images(source.root, manifest, source.split, places, pixels)
            for i, image in zip(rows, images, strict=True):
                pictures[i] = image
    return pictures
