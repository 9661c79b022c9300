"""Images to search, listed from a folder with a sub-folder per identity, from a CSV, or from shards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from reid.data.eval_loader import read_images
from reid.data.images import Pixels
from reid.data.manifest import JUNK_PID, MANIFEST_NAME, Split, load_manifest
from reid.data.shard_reader import Dropped, Identity, read_sound_identities
from reid.data.storage import full_path, is_remote
from reid.embedder import Embedder
from reid.search.index import Entry, Source
from reid.table import read_table, relative_path

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
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


def list_folder(root: str, table: str = "") -> list[SourceImage]:
    """List the images under `root` in the order of their paths; the first sub-folder of a path is the identity.

    table: a CSV with the column path (relative to `root`), and identity, camera and time if known. Then exactly the
    images in it are listed, in its order.

    Raises ValueError if there are no images, or for a wrong line of the CSV.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise ValueError(f"{root}: no such folder; give --images a folder of pictures, or of shards")
    source = Source(str(folder.resolve()))
    entries = list(_read_table(Path(table), source)) if table else list(_walk(folder, source))
    if not entries:
        where = f"{table}: no line below the header" if table else f"{root}: no image in this folder"
        raise ValueError(f"{where}; images end with {', '.join(sorted(SUFFIXES))}")
    return [SourceImage(entry, str(folder / entry.path), partial(Path, folder, entry.path)) for entry in entries]


def _walk(folder: Path, source: Source) -> Iterator[Entry]:
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in parts) and path.is_file():
            yield Entry("/".join(parts), identity=parts[0] if len(parts) > 1 else "", source=source)


def _read_table(table: Path, source: Source) -> Iterator[Entry]:
    lines: dict[str, int] = {}
    for line, fields in read_table(table, COLUMNS[:1], COLUMNS[1:]):
        path = relative_path(fields["path"], Path(source.root), f"{table}, line {line}").as_posix()
        first = lines.setdefault(path, line)
        if first != line:
            raise ValueError(f"{table}, lines {first} and {line}: {path} twice; keep one")
        yield Entry(path, fields["identity"], fields["camera"], fields["time"], source=source)


def list_shards(root: str, split: str) -> Iterator[SourceImage]:
    """List the images of a split without junk, by the names of the manifest; distractors have no identity.

    Train identities are called train/<name>, because some datasets number them from 0 again. Damage becomes images that
    cannot be loaded. Raises ValueError if the split is unknown or empty.
    """
    manifest = load_manifest(root)
    part = manifest.split(split)
    if (part.pids == JUNK_PID).all():
        raise ValueError(f"{root}: the split {split} is empty")
    return _list_split(root, split, part, manifest.distractor_pid)


def _list_split(root: str, split: str, part: Split, distractor_pid: int | None) -> Iterator[SourceImage]:
    first = np.cumsum(part.images) - part.images
    source = Source(root if is_remote(root) else str(Path(root).resolve()), split)
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


def read_pictures(entries: Sequence[Entry], pixels: Pixels) -> list[np.ndarray | None]:
    """The images (H, W, 3) uint8 of the entries; None for one that is gone or cannot be read."""
    pictures: list[np.ndarray | None] = [None] * len(entries)
    by_source: dict[Source, list[int]] = {}
    for i, entry in enumerate(entries):
        if entry.source.split:
            by_source.setdefault(entry.source, []).append(i)
            continue
        with contextlib.suppress(OSError, ValueError):
            data = Path(entry.source.root, entry.path).read_bytes()
            pictures[i] = pixels.decode(data, "").permute(1, 2, 0).numpy()
    for source, rows in by_source.items():
        with contextlib.suppress(OSError, ValueError):  # of shards all or none: they may have been built again
            manifest = load_manifest(source.root)
            images = read_images(source.root, manifest, source.split, [entries[i].place for i in rows], pixels)
            for i, image in zip(rows, images, strict=True):
                pictures[i] = image
    return pictures
