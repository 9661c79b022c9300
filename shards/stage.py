"""A copy of shards on node-local disk: every byte is checked against the manifest, which is written last."""

import contextlib
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from reid.data.manifest import MANIFEST_NAME, Manifest, Shard, load_manifest, save_manifest
from reid.files import hash_file, hold, make_folder
from shards.write import check_free_space, explain_full_disk

COPIES = 4  # shards at once, which hides a network file system's latency; hashing runs in parallel threads
_PART = ".part"
_PARTIAL_MANIFEST = re.compile(rf"\.{re.escape(MANIFEST_NAME)}(\.\d+)?{_PART}")  # of a killed process
_FIX = "make room or give another folder, then call it again: complete shards are kept"


@dataclass(frozen=True)
class Staged:
    """The work of a call: shards copied, shards found complete from an earlier call, bytes copied."""

    copied: int
    found: int
    bytes: int


def stage(source: str | Path, target: str | Path) -> Staged:
    """Copy a folder of shards, each checked by its sha256, the manifest last.

    Any number of processes of a node may call it at once: one copies, the others wait and then find everything there.
    After an interrupted call, complete shards are kept. A target with the same manifest is checked by names and sizes.
    Writes to stderr before it waits for another process.

    Args:
        source: folder of shards.
        target: a folder that is missing, is empty, or holds shards of the same dataset, which are replaced.

    Raises:
        ValueError: the source has no manifest or damaged shards, the target holds other files, or the disk is full.
    """
    folder, out = Path(source).resolve(), Path(target).resolve()
    manifest = load_manifest(folder)
    if folder == out or folder in out.parents or out in folder.parents:
        raise ValueError(f"{out}: lies in {folder} or holds it; give a folder on the node's own disk")
    make_folder(out.parent, "target")
    lock = out.with_name(f".{out.name}.lock")
    with hold(lock, lambda holder: print(f"waiting for {holder}, which fills {out}", file=sys.stderr, flush=True)):
        if _is_staged(manifest, out):
            return Staged(0, len(manifest.shards), 0)
        _prepare(out, manifest)
        with explain_full_disk(out, _FIX), ThreadPoolExecutor(COPIES) as pool:
            complete = pool.map(lambda shard: _is_complete(out / shard.name, shard), manifest.shards)
            missing = [shard for shard, there in zip(manifest.shards, complete, strict=True) if not there]
            needed = sum(shard.bytes for shard in missing)
            check_free_space(out, needed, _FIX)
            copied = pool.map(lambda shard: _copy(folder / shard.name, out / shard.name, shard), missing)
            with tqdm(total=needed, desc="staging", unit="B", unit_scale=True, disable=None) as bar:
                for shard, _ in zip(missing, copied, strict=True):
                    bar.update(shard.bytes)
            save_manifest(manifest, out)
        return Staged(len(missing), len(manifest.shards) - len(missing), needed)


def _is_staged(manifest: Manifest, out: Path) -> bool:
    with contextlib.suppress(ValueError):
        same = load_manifest(out).fingerprint == manifest.fingerprint
        return same and all(_size(out / shard.name) == shard.bytes for shard in manifest.shards)
    return False


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _prepare(out: Path, manifest: Manifest) -> None:
    """Remove the manifest and everything but shards of this build. Raise ValueError if there are other files."""
    fix = "give an empty folder or one that an earlier call filled"
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, not a folder; {fix}")
    out.mkdir(exist_ok=True)
    names = {path.name for path in out.iterdir()}
    wanted = {shard.name for shard in manifest.shards}
    earlier = set()
    if MANIFEST_NAME in names:  # another build of the same dataset
        found = load_manifest(out)
        if found.dataset != manifest.dataset:
            raise ValueError(f"{out}: holds shards of {found.dataset!r}, not {manifest.dataset!r}; give another folder")
        earlier = {shard.name for shard in found.shards} | {MANIFEST_NAME}
    others = {name for name in names if name.removesuffix(_PART) not in wanted | earlier}
    others = {name for name in others if not _PARTIAL_MANIFEST.fullmatch(name)}
    if others:
        raise ValueError(f"{out}: holds {min(others)!r}, which is no part of these shards; {fix}")
    (out / MANIFEST_NAME).unlink(missing_ok=True)  # first: from here on the folder is incomplete
    for name in names - wanted - {MANIFEST_NAME}:
        (out / name).unlink()


def _is_complete(path: Path, shard: Shard) -> bool:
    return _size(path) == shard.bytes and hash_file(path) == shard.sha256


def _copy(source: Path, target: Path, shard: Shard) -> None:
    part = target.with_name(f"{target.name}{_PART}")
    fix = "repair the source: build it or copy it again"
    if not source.is_file():  # copying a device may never end
        raise ValueError(f"{source}: is missing or no regular file; {fix}")
    shutil.copyfile(source, part)
    if not _is_complete(part, shard):
        part.unlink()
        raise ValueError(f"{source}: sha256 differs from its manifest's; {fix}")
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    part.rename(target)
