"""The commands of `python -m reid.search`: add images to an index, and search it for photos."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from reid.data.images import Pixels
from reid.embedder import Embedder
from reid.search.index import Entry, Hit, Index, Meta
from reid.search.results import Answer, build_page, to_csv, to_json, to_text
from reid.search.sources import SourceImage, is_shards, list_folder, list_shards, read_pictures
from reid.search.writer import Appender, append, create, remove

SHOWN_HEIGHT = 256  # people look at more pixels than a small encoder does


def run(options: argparse.Namespace) -> None:
    """Run one command. Raises ValueError for what the user can fix, such as a full disk or a missing folder."""
    try:
        COMMANDS[options.command](options)
    except OSError as error:
        raise ValueError(str(error)) from error


def _index(options: argparse.Namespace) -> None:
    listed = _list_images(options)
    embedder = Embedder.load(options.checkpoint, options.device, options.dtype, options.batch_size)
    checkpoint = str(embedder.source.resolve())
    with create(options.out, Meta(embedder.fingerprint, embedder.dim, embedder.size, checkpoint)) as appender:
        report = _append(appender, embedder, listed, options)
    _print_state(options.out, report)


def _add(options: argparse.Namespace) -> None:
    listed = _list_images(options)
    embedder = _load_model_of(Index(options.index), options)
    with append(options.index) as appender:
        report = _append(appender, embedder, listed, options)
    _print_state(options.index, report)


def _list_images(options: argparse.Namespace) -> Iterable[SourceImage]:
    """Raises ValueError if there are no images, before a model is loaded."""
    if is_shards(options.images):
        if options.csv:
            raise ValueError(f"--csv is for a folder of pictures; the shards in {options.images} have that information")
        return chain.from_iterable([list_shards(options.images, split) for split in options.split or ["gallery"]])
    if options.split:
        raise ValueError(f"--split is for shards, and {options.images} is not a folder of shards")
    return list_folder(options.images, options.csv)


def _load_model_of(index: Index, options: argparse.Namespace) -> Embedder:
    """Load the model that the index was made with. Raises ValueError if it is another one or cannot be found."""
    path = options.checkpoint or index.meta.checkpoint
    if not Path(path).exists():
        raise ValueError(f"{index.folder}: the checkpoint of its model, {path}, does not exist; give --checkpoint")
    embedder = Embedder.load(path, options.device, options.dtype, options.batch_size)
    index.check_model(embedder.fingerprint, embedder.source)
    return embedder


def _append(appender: Appender, embedder: Embedder, listed: Iterable[SourceImage], options: argparse.Namespace) -> str:
    """Embed and add the images that are new, print those that cannot be read, and return a summary."""
    started = time.perf_counter()
    known = {entry.key for entry in appender.index.entries()}
    new: list[Entry] = []
    present: list[Entry] = []
    damaged: list[str] = []

    def readers() -> Iterator[Callable[[], Tensor]]:
        for image in tqdm(listed, unit=" images", disable=None):
            if image.entry.path and image.entry.key in known:
                present.append(image.entry)
                continue
            identity = image.entry.identity and options.prefix + image.entry.identity
            new.append(replace(image.entry, identity=identity))
            yield partial(_read, embedder, image)

    def skip(place: int, reason: str) -> None:
        damaged.append(reason)
        print(f"skipped: {reason}", file=sys.stderr)

    for places, features in embedder.stream(readers(), None if options.on_damage == "stop" else skip):
        appender.add(features, [new[place] for place in places])
    added = len(new) - len(damaged)
    if new and not added and not present:
        raise ValueError(f"none of {len(new)} images can be read; the first: {damaged[0]}")
    counts = f"{added} images added"
    counts += f", {len(present)} were there" if present else ""
    counts += f", {len(damaged)} unreadable and skipped" if damaged else ""
    return f"{counts} in {time.perf_counter() - started:.1f} s"


def _read(embedder: Embedder, image: SourceImage) -> Tensor:
    return embedder.read(image.load(), image.name)


def _print_state(folder: str, report: str) -> None:
    index = Index(folder)
    print(f"{folder}: {report}; now {len(index)} images of {len(index.meta.identities)} identities")


def _query(options: argparse.Namespace) -> None:
    index = Index(options.index)
    embedder = _load_model_of(index, options)
    if not len(index):
        raise ValueError(f"{options.index} holds no images; `add` some")
    started = time.perf_counter()
    features = embedder.embed(options.photos)
    embedded = time.perf_counter()
    hits = index.search(features, options.top, options.gallery, options.camera)
    seconds = (
        f"{embedded - started:.2f} s for {len(features)} photos, {time.perf_counter() - embedded:.2f} s for the search"
    )
    answers = [
        [_answer(index, photo, rank, hit) for rank, hit in enumerate(found, start=1)]
        for photo, found in zip(options.photos, hits, strict=True)
    ]
    for photo, found in zip(options.photos, answers, strict=True):
        print(to_text(photo, found))
    print(seconds, file=sys.stderr)
    if options.csv:
        Path(options.csv).write_text(to_csv(answers), encoding="utf-8", newline="")
    if options.json:
        Path(options.json).write_text(json.dumps(to_json(options.photos, answers), indent=2) + "\n", encoding="utf-8")
    if options.out:
        facts = {
            "index": f"{options.index}: {len(index):,} images of {len(index.meta.identities):,} identities",
            "gallery": options.gallery + (f", camera {options.camera} left out" if options.camera else ""),
            "model": f"{embedder.source}, fingerprint {embedder.fingerprint[:12]}",
            "time": seconds,
        }
        _write_page(
            options, facts, [[index.entry(hit.row) for hit in found] for found in hits], answers, embedder.pixels
        )


def _answer(index: Index, photo: str, rank: int, hit: Hit) -> Answer:
    entry = index.entry(hit.row)
    camera, taken = (entry.camera, entry.time) if hit.images == 1 else ("", "")
    return Answer(
        photo, rank, hit.score, entry.identity, camera, taken, hit.images, entry.path, entry.source.root
    )  # fmt: skip


def _write_page(
    options: argparse.Namespace,
    facts: dict[str, str],
    entries: Sequence[Sequence[Entry]],
    answers: Sequence[Sequence[Answer]],
    seen: Pixels,
) -> None:
    """Write the answers and the pictures of their entries, with more pixels than the encoder has `seen`."""
    scale = max(1, round(SHOWN_HEIGHT / seen.height))
    pixels = replace(seen, height=scale * seen.height, width=scale * seen.width)
    pictures = iter(read_pictures(list(chain.from_iterable(entries)), pixels))
    shown = [[(answer, next(pictures)) for answer in found] for found in answers]
    queries = [
        (photo, pixels.decode(Path(photo).read_bytes(), photo).permute(1, 2, 0).numpy()) for photo in options.photos
    ]
    page = build_page(Path(options.index).resolve().name, facts, queries, shown)
    Path(options.out).write_text(page, encoding="utf-8", errors="replace")
    print(f"page: {options.out}")


def _remove(options: argparse.Namespace) -> None:
    identities, paths = set(options.identity), set(options.path)
    if not identities and not paths:
        raise ValueError("name what to remove: --identity NAME ... or --path PATH ...")
    removed = remove(options.index, lambda entry: entry.identity in identities or entry.path in paths)
    if not removed:
        names = ", ".join(sorted(identities | paths))
        raise ValueError(f"{options.index} holds nothing of {names}; nothing was removed")
    _print_state(options.index, f"{removed} images removed")


def _info(options: argparse.Namespace) -> None:
    index = Index(options.index)
    meta = index.meta
    rows = {
        "images": f"{len(index):,}",
        "identities": f"{len(meta.identities):,}, and {int((index.pids < 0).sum()):,} images without an identity",
        "cameras": f"{len(meta.cameras)}: {', '.join(meta.cameras[:20])}" if meta.cameras else "none known",
        "features": f"{meta.dim} numbers, of images of {meta.size[0]} x {meta.size[1]} pixels",
        "model": f"{meta.checkpoint}, fingerprint {meta.fingerprint[:12]}",
        **{f"source {i}": " ".join([source.root, source.split]).strip() for i, source in enumerate(meta.sources, 1)},
    }
    print("\n".join(f"{name:>10}  {value}" for name, value in rows.items()))


COMMANDS = {"index": _index, "add": _add, "query": _query, "remove": _remove, "info": _info}
