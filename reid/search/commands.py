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

import numpy as np
from torch import Tensor
from tqdm import tqdm

from reid.data.images import Pixels
from reid.embedder import Embedder
from reid.search.index import Entry, Index, Meta
from reid.search.nearest import Hit, search
from reid.search.results import Answer, build_page, to_csv, to_json, to_text
from reid.search.sources import Found, is_shards, list_folder, list_shards, read_pictures
from reid.search.writer import Appender, append, create, remove

SHOWN_HEIGHT = 256  # people look at more pixels than a small encoder does


def _load(path: str, options: argparse.Namespace) -> Embedder:
    return Embedder.load(path, options.device, options.dtype, options.batch_size)


def _load_for(index: Index, options: argparse.Namespace) -> Embedder:
    """The model that the index was made with. ValueError on another one, and where it cannot be found."""
    path = options.checkpoint or index.meta.checkpoint
    if not Path(path).exists():
        raise ValueError(f"{index.folder}: its model's checkpoint {path} is not there; say where it is: --checkpoint")
    embedder = _load(path, options)
    index.check_model(embedder.fingerprint, embedder.source)
    return embedder


def _index(options: argparse.Namespace) -> None:
    found = _find(options)
    embedder = _load(options.checkpoint, options)
    checkpoint = str(embedder.source.resolve())
    with create(options.out, Meta(embedder.fingerprint, embedder.dim, embedder.size, checkpoint)) as appender:
        said = _append(appender, embedder, found, options)
    _say(options.out, said)


def _add(options: argparse.Namespace) -> None:
    found = _find(options)
    embedder = _load_for(Index(options.index), options)
    with append(options.index) as appender:
        said = _append(appender, embedder, found, options)
    _say(options.index, said)


def _find(options: argparse.Namespace) -> Iterable[Found]:
    """The images that are asked for. ValueError where there are none, before any model is loaded."""
    if not is_shards(options.images):
        if options.split:
            raise ValueError(f"--split goes with shards, and {options.images} is no folder of shards")
        return list_folder(options.images, options.csv)
    if options.csv:
        raise ValueError(f"--csv goes with a folder of pictures; {options.images} holds shards, which know all that")
    splits = [list_shards(options.images, split) for split in options.split or ["gallery"]]
    first = [next(split, None) for split in splits]
    if None in first:
        raise ValueError(f"{options.images}: the split {(options.split or ['gallery'])[first.index(None)]} is empty")
    return chain.from_iterable(
        chain([found], split) for found, split in zip(first, splits, strict=True) if found is not None
    )


def _append(appender: Appender, embedder: Embedder, found: Iterable[Found], options: argparse.Namespace) -> str:
    """Embed and add everything that is new; names what cannot be read, and returns what happened."""
    started = time.perf_counter()
    known = {entry.key for entry in appender.index.entries()}
    listed: list[Entry] = []
    passed: list[Entry] = []
    damaged: list[str] = []

    def new() -> Iterator[Callable[[], Tensor]]:
        for one in tqdm(found, unit=" images", disable=None):
            if one.entry.path and one.entry.key in known:
                passed.append(one.entry)
                continue
            identity = one.entry.identity and options.prefix + one.entry.identity
            listed.append(replace(one.entry, identity=identity))
            yield partial(_read, embedder, one)

    def skip(place: int, reason: str) -> None:
        damaged.append(reason)
        print(f"skipped: {reason}", file=sys.stderr)

    for places, features in embedder.stream(new(), None if options.on_damage == "stop" else skip):
        appender.add(features, [listed[place] for place in places])
    added = len(listed) - len(damaged)
    if listed and not added and not passed:
        raise ValueError(f"none of {len(listed)} images can be read; the first: {damaged[0]}")
    told = f"{added} images added"
    told += f", {len(passed)} were there" if passed else ""
    told += f", {len(damaged)} unreadable and skipped" if damaged else ""
    return f"{told} in {time.perf_counter() - started:.1f} s"


def _read(embedder: Embedder, found: Found) -> Tensor:
    return embedder.read(found.image(), found.where)


def _say(folder: str, what: str) -> None:
    index = Index(folder)
    print(f"{folder}: {what}; now {len(index)} images of {len(index.meta.identities)} identities")


def _query(options: argparse.Namespace) -> None:
    index = Index(options.index)
    embedder = _load_for(index, options)
    if not len(index):
        raise ValueError(f"{options.index} holds no images; `add` some")
    started = time.perf_counter()
    features = embedder.embed(options.photos)
    embedded = time.perf_counter()
    hits = search(index, features, options.top, options.gallery, options.camera)
    done = time.perf_counter()
    answers = [
        [_answer(index, photo, rank, hit) for rank, hit in enumerate(found, start=1)]
        for photo, found in zip(options.photos, hits, strict=True)
    ]
    for photo, found in zip(options.photos, answers, strict=True):
        print(to_text(photo, found))
    said = {
        "index": f"{options.index}: {len(index):,} images of {len(index.meta.identities):,} identities",
        "gallery": options.gallery + (f", camera {options.camera} left out" if options.camera else ""),
        "model": f"{embedder.source}, fingerprint {embedder.fingerprint[:12]}",
        "time": f"{embedded - started:.2f} s for {len(features)} photos, {done - embedded:.2f} s for the search",
    }
    print(f"{said['time']}", file=sys.stderr)
    _write(options, index, hits, answers, said, embedder.pixels)


def _answer(index: Index, photo: str, rank: int, hit: Hit) -> Answer:
    entry = index.entry(hit.row)
    alone = hit.images == 1
    return Answer(
        photo, rank, hit.score, entry.identity, entry.camera if alone else "", entry.time if alone else "", hit.images,
        entry.path, entry.source.root,
    )  # fmt: skip


def _write(
    options: argparse.Namespace,
    index: Index,
    hits: Sequence[Sequence[Hit]],
    answers: Sequence[Sequence[Answer]],
    said: dict[str, str],
    seen: Pixels,
) -> None:
    """The files that are asked for."""
    if options.csv:
        Path(options.csv).write_text(to_csv(answers), encoding="utf-8", newline="")
    if options.json:
        Path(options.json).write_text(json.dumps(to_json(options.photos, answers), indent=2) + "\n", encoding="utf-8")
    if not options.out:
        return
    larger = max(1, round(SHOWN_HEIGHT / seen.height))
    pixels = replace(seen, height=larger * seen.height, width=larger * seen.width)
    pictures = iter(read_pictures([index.entry(hit.row) for found in hits for hit in found], pixels))
    shown = [[(answer, next(pictures)) for answer in found] for found in answers]
    asked = [(photo, _picture(photo, pixels)) for photo in options.photos]
    title = Path(options.index).resolve().name
    Path(options.out).write_text(build_page(title, said, asked, shown), encoding="utf-8", errors="replace")
    print(f"page: {options.out}")


def _picture(photo: str, pixels: Pixels) -> np.ndarray:
    return pixels.decode(Path(photo).read_bytes(), photo).permute(1, 2, 0).numpy()


def _remove(options: argparse.Namespace) -> None:
    identities, paths = set(options.identity), set(options.path)
    if not identities and not paths:
        raise ValueError("say what to remove: --identity NAME ... or --path PATH ...")
    removed = remove(options.index, lambda entry: entry.identity in identities or entry.path in paths)
    if not removed:
        raise ValueError(
            f"{options.index} holds nothing of {', '.join(sorted(identities | paths))}; nothing was removed"
        )
    _say(options.index, f"{removed} images removed")


def _info(options: argparse.Namespace) -> None:
    index = Index(options.index)
    meta = index.meta
    rows = {
        "images": f"{len(index):,}",
        "identities": f"{len(meta.identities):,}, and {int((index.pids < 0).sum()):,} images of nobody known",
        "cameras": f"{len(meta.cameras)}: {', '.join(meta.cameras[:20])}" if meta.cameras else "none known",
        "features": f"{meta.dim} numbers, of images of {meta.size[0]} x {meta.size[1]} pixels",
        "model": f"{meta.checkpoint}, fingerprint {meta.fingerprint[:12]}",
        **{f"source {i}": " ".join([source.root, source.split]).strip() for i, source in enumerate(meta.sources, 1)},
    }
    print("\n".join(f"{name:>10}  {value}" for name, value in rows.items()))


COMMANDS = {"index": _index, "add": _add, "query": _query, "remove": _remove, "info": _info}
