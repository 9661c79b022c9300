"""A copy of shards on node-local disk: every byte checked against the manifest, which is written last."""

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from reid.data.manifest import MANIFEST_NAME, Manifest, Shard, load_manifest, save_manifest
from reid.files import hold

COPIES = 4  # shards at once: hides a network file system's latency; hashing lets threads run side by side
_CHUNK = 4 * 2**20
_PART = ".part"


@dataclass(frozen=True)
class Staged:
    """What a call had to do: shards copied, shards found whole from an earlier call, bytes copied."""

    copied: int
    found: int
    bytes: int


def stage(
    source: str | Path,
    target: str | Path,
    *,
    copies: int = COPIES,
    say: Callable[[str], object] = print,
    progress: bool = False,
) -> Staged:
    """Copy the shards in the folder `source` to the folder `target`, each checked by its sha256, the manifest last.

    Any number of processes of a node may call it at once: one copies, the others wait and then find everything there.
    A call that was stopped is continued by the next: shards that are there whole are kept. Another build of the same
    dataset in `target` is replaced. A target whose manifest is the source's is checked by names and sizes alone.

    ValueError: a source without a manifest or with damaged shards, a target that holds something else, a full disk.
    """
    folder, out = Path(source).resolve(), Path(target).resolve()
    manifest = load_manifest(folder)
    if folder == out or folder in out.parents or out in folder.parents:
        raise ValueError(f"{out}: lies in {folder} or holds it; give a folder on the node's own disk")
    if copies < 1:
        raise ValueError(f"copies {copies}: give at least 1")
    out.parent.mkdir(parents=True, exist_ok=True)
    with hold(out.with_name(f".{out.name}.lock"), lambda holder: say(f"waiting for {holder}, which fills {out}")):
        if _is_staged(manifest, out):
            return Staged(0, len(list_shards(manifest)), 0)
        try:
            return _Copy(manifest, folder, out, progress).run(copies)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ValueError(f"{out}: no space left ({error.strerror}); {_MEND}") from error
            raise


_MEND = "make room or give another folder, then call it again: whole shards are kept"


def list_shards(manifest: Manifest) -> list[Shard]:
    return [shard for split in manifest.splits.values() for shard in split.shards]


def _is_staged(manifest: Manifest, out: Path) -> bool:
    if not (out / MANIFEST_NAME).is_file():
        return False
    try:
        same = load_manifest(out).fingerprint == manifest.fingerprint
    except ValueError:
        return False
    return same and all(_size(out / shard.name) == shard.bytes for shard in list_shards(manifest))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


class _Copy:
    """One pass over the shards of a manifest, by one process that holds the lock."""

    def __init__(self, manifest: Manifest, folder: Path, out: Path, progress: bool) -> None:
        self.manifest, self.folder, self.out = manifest, folder, out
        self.shards = list_shards(manifest)
        self.stop = threading.Event()  # the first error ends the other copies at their next chunk
        total = sum(shard.bytes for shard in self.shards)
        self.bar = tqdm(total=total, desc="staging", unit="B", unit_scale=True, disable=None if progress else True)

    def run(self, copies: int) -> Staged:
        with self.bar:
            self._clear()
            whole = self._each(self._is_whole, self.shards, copies)
            missing = [shard for shard, there in zip(self.shards, whole, strict=True) if not there]
            needed = sum(shard.bytes for shard in missing)
            free = shutil.disk_usage(self.out).free
            if needed > free:
                sizes = f"{needed / 2**20:,.1f} MiB are missing, {free / 2**20:,.1f} MiB are free"
                raise ValueError(f"{self.out}: no space left: {sizes}; {_MEND}")
            self._each(self._copy, missing, copies)
        save_manifest(self.manifest, self.out)
        return Staged(len(missing), len(self.shards) - len(missing), needed)

    def _clear(self) -> None:
        """Make the folder ready: from here on it has no manifest, and nothing but shards of this build."""
        wanted = {shard.name for shard in self.shards}
        there = {path.name for path in self.out.iterdir()} if self.out.is_dir() else set()
        earlier = self._earlier_names(there)
        foreign = sorted(there - wanted - earlier - {f"{name}{_PART}" for name in wanted | earlier})
        if foreign or (self.out.exists() and not self.out.is_dir()):
            what = f"holds {foreign[0]!r}, which is no part of these shards" if foreign else "is a file, not a folder"
            raise ValueError(f"{self.out}: {what}; give an empty folder or one that an earlier call filled")
        self.out.mkdir(exist_ok=True)
        for name in (MANIFEST_NAME, *sorted(there - wanted - {MANIFEST_NAME})):  # the manifest first
            (self.out / name).unlink(missing_ok=True)

    def _earlier_names(self, there: set[str]) -> set[str]:
        """What may be replaced: the files of another build of the same dataset."""
        if MANIFEST_NAME not in there:
            return {f".{MANIFEST_NAME}{_PART}"}
        earlier = load_manifest(self.out)
        if earlier.dataset != self.manifest.dataset:
            raise ValueError(
                f"{self.out}: holds shards of {earlier.dataset!r}, not {self.manifest.dataset!r}; give another folder"
            )
        return {shard.name for shard in list_shards(earlier)} | {MANIFEST_NAME}

    def _each(self, work: Callable[[Shard], bool], shards: Iterable[Shard], copies: int) -> list[bool]:
        with ThreadPoolExecutor(copies) as pool:
            futures = [pool.submit(work, shard) for shard in shards]
            try:
                return [future.result() for future in futures]
            except BaseException:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _is_whole(self, shard: Shard) -> bool:
        """Whether an earlier call left this shard whole: its size, then every byte."""
        path = self.out / shard.name
        if _size(path) != shard.bytes:
            return False
        whole = self._hash(path, None) == shard.sha256
        if not whole:
            self.bar.update(-shard.bytes)
        return whole

    def _copy(self, shard: Shard) -> bool:
        path, part = self.folder / shard.name, self.out / f"{shard.name}{_PART}"
        try:
            found = self._hash(path, part)
        except FileNotFoundError as error:
            raise ValueError(f"{path}: is missing; mend the source: build it or copy it again") from error
        if found != shard.sha256:
            part.unlink()
            raise ValueError(f"{path}: sha256 differs from its manifest's; mend the source: build it or copy it again")
        part.rename(self.out / shard.name)
        return True

    def _hash(self, path: Path, copy: Path | None) -> str:
        """The sha256 of a file, copied to `copy` on the way and there to stay before this returns."""
        digest = hashlib.sha256()
        with open(path, "rb") as reader, open(copy or os.devnull, "wb") as writer:
            while chunk := reader.read(_CHUNK):
                if self.stop.is_set():
                    raise InterruptedError("another shard could not be copied")
                digest.update(chunk)
                if copy is not None:
                    writer.write(chunk)
                self.bar.update(len(chunk))
            if copy is not None:
                writer.flush()
                os.fsync(writer.fileno())
        return digest.hexdigest()
