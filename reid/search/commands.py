"""The commands of `reid search`: add images to an index, search it for photos, and write what was found."""

from __future__ import annotations

import csv
import json
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import chain
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from reid.data.image_file import read_image_file
from reid.data.images import Pixels
from reid.embedder import Embedder
from reid.model.features import FLIP_TEST, WrongDimensionsError
from reid.model.hub import resolve
from reid.program import convert_os_errors
from reid.reports.html import render
from reid.search.index import Entry, Hit, Index
from reid.search.index_files import Meta, Source
from reid.search.sources import SourceImage, is_shards, list_folder, list_shards, name_root, read_pictures
from reid.search.threshold import read_threshold
from reid.search.writer import Appender, append, create, remove

SHOWN_HEIGHT = 256  # people look at more pixels than a small encoder does


@dataclass(frozen=True)
class Answer:
    """One line of a result.

    score: cosine similarity, at most 1.
    camera, time: of an image; "" for a centroid.
    images: 1, or the number of images that a centroid is the mean of.
    path: of the image, or of the first image of a centroid's identity, in the folder `root`.
    """

    query: str
    rank: int
    score: float
    identity: str
    camera: str
    time: str
    images: int
    path: str
    root: str

    @property
    def description(self) -> str:
        """`identity anna · camera door`: what is known of it."""
        camera = f"camera {self.camera}" if self.camera else ""
        images = f"{self.images} images" if self.images > 1 else ""
        return " · ".join(filter(None, (f"identity {self.identity or 'unknown'}", camera, self.time, images)))


def run(options: Namespace) -> None:
    """Run one command. Raises ValueError for what the user can fix, such as a full disk or a missing folder."""
    with convert_os_errors():
        COMMANDS[options.command](options)


def _index(options: Namespace) -> None:
    images = _list_images(options)
    embedder = _load(options.checkpoint, options, options.flip, options.dimensions)
    dtype, source = "float16" if options.half else "float32", str(embedder.source.resolve())
    meta = Meta(embedder.fingerprint, embedder.dim, embedder.size, source, flip=embedder.flip, dtype=dtype)
    _append(create(options.index, meta), embedder, images, options)


def _load(checkpoint: str, options: Namespace, flip: bool, dimensions: int) -> Embedder:
    return Embedder.load(checkpoint, options.device, options.dtype, options.batch_size, flip, dimensions)


def _add(options: Namespace) -> None:
    images = _list_images(options)
    embedder = _load_model_of(Index(options.index), options)
    _append(append(options.index), embedder, images, options)


def _list_images(options: Namespace) -> Iterable[SourceImage]:
    """Raises ValueError if there are no images, before a model is loaded."""
    if is_shards(options.images):
        if options.csv:
            raise ValueError(f"--csv is for a folder of pictures; the shards in {options.images} have that information")
        return chain.from_iterable([list_shards(options.images, split) for split in options.split or ["gallery"]])
    if options.split:
        raise ValueError(f"--split is for shards, and {options.images} is not a folder of shards")
    return list_folder(options.images, options.csv)


def _load_model_of(index: Index, options: Namespace) -> Embedder:
    """Load the model that the index was made with. Raises ValueError if it is another one or cannot be found."""
    path = resolve(options.checkpoint) or index.meta.checkpoint
    if not Path(path).exists():
        raise ValueError(f"{index.folder}: the checkpoint of its model, {path}, does not exist; give --checkpoint")
    of_another = f"{index.folder} holds features of another model (fingerprint {index.meta.fingerprint[:12]}) than "
    fix = "give the checkpoint it was made with"
    try:
        embedder = _load(path, options, index.meta.flip, index.meta.dim)
    except WrongDimensionsError as error:
        raise ValueError(f"{of_another}{path}, of which {index.meta.dim} numbers are no feature; {fix}") from error
    if embedder.fingerprint != index.meta.fingerprint:
        raise ValueError(f"{of_another}{embedder.source} (fingerprint {embedder.fingerprint[:12]}); {fix}")
    return embedder


def _append(
    opening: AbstractContextManager[Appender], embedder: Embedder, images: Iterable[SourceImage], options: Namespace
) -> None:
    """Embed and add the images that are new, and print those that cannot be read and a summary."""
    started = time.perf_counter()
    new: list[Entry] = []
    present: list[Entry] = []
    damaged: list[str] = []

    def readers(known: Set[tuple[Source, str]]) -> Iterator[Callable[[], Tensor]]:
        for image in tqdm(images, unit=" images", disable=None):
            if image.entry.path and (image.entry.source, image.entry.path) in known:
                present.append(image.entry)
                continue
            identity = image.entry.identity and options.prefix + image.entry.identity
            new.append(replace(image.entry, identity=identity))
            yield partial(image.read, embedder)

    def skip(place: int, reason: str) -> None:
        damaged.append(reason)
        print(f"skipped: {_printable(reason)}", file=sys.stderr)

    with opening as appender:
        reading = readers({(entry.source, entry.path) for entry in appender.index.entries()})
        for places, features in embedder.stream(reading, None if options.on_damage == "stop" else skip):
            appender.add(features, [new[place] for place in places])
        if damaged and len(damaged) == len(new) and not present:
            raise ValueError(f"none of {len(new)} images can be read; the first: {damaged[0]}")
    summary = f"{len(new) - len(damaged)} images added"
    summary += f", {len(present)} are in the index already" if present else ""
    summary += f", {len(damaged)} unreadable and skipped" if damaged else ""
    _print_state(options.index, f"{summary} ({time.perf_counter() - started:.1f} s)")


def _print_state(folder: str, report: str) -> None:
    index = Index(folder)
    print(f"{folder}: {report}; now {len(index)} images of {len(index.meta.identities)} identities")


def _query(options: Namespace) -> None:
    index = Index(options.index)
    if not len(index):
        raise ValueError(f"{options.index} holds no images; `add` some")
    sources = sorted({source.root for source in index.meta.sources})
    if unknown := [root for root in options.images if name_root(root) not in sources]:
        raise ValueError(f"--images {unknown[0]}: the index has no images of it, but of {', '.join(sources)}")
    if options.images and not options.out:
        raise ValueError("--images works only with --out PAGE.html, which shows pictures")
    index.kept(options.camera)  # before the model is loaded: an unknown camera is an error
    embedder = _load_model_of(index, options)
    threshold = read_threshold(options.threshold, options.at, embedder, options.gallery)
    started = time.perf_counter()
    features = embedder.embed(options.photos)
    embedded = time.perf_counter()
    hits = index.search(features, options.top, options.gallery, options.camera)
    searched = time.perf_counter()
    times = f"{embedded - started:.2f} s for {len(features)} photos, {searched - embedded:.2f} s for the search"
    answers, documents, reasons = [], [], []
    for photo, found in zip(options.photos, hits, strict=True):
        # No other reasons: an index that is not empty always has a nearest image.
        nothing = f"nothing found: all images are by camera {options.camera}, which --camera leaves out"
        if found and found[0].score < threshold:
            nothing = f"unknown: the best score, {found[0].score:.3f}, is below the threshold, {threshold:.3f}"
        reasons.append(nothing)
        answered = [_answer(index, photo, rank, hit) for rank, hit in enumerate(found, 1) if hit.score >= threshold]
        lines = [f"{answer.rank:>5}  {answer.score:6.3f}  {answer.description}  {answer.path}" for answer in answered]
        print("\n".join(map(_printable, [photo, *(lines or [f"       {nothing}"])])))
        results = [{key: value for key, value in asdict(answer).items() if key != "query"} for answer in answered]
        documents.append({"query": photo, "results": results} | ({} if results else {"reason": nothing}))
        answers.append(answered)
    if options.threshold:
        left_out = sum(hit.score < threshold for found in hits for hit in found)
        print(f"threshold {threshold:.4f}: {left_out} of the nearest images are below it and left out", file=sys.stderr)
    print(times, file=sys.stderr)
    if options.csv:
        with open(options.csv, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.DictWriter(file, [column.name for column in fields(Answer)], lineterminator="\n")
            writer.writeheader()
            for answer in chain.from_iterable(answers):
                writer.writerow({name: _escape_formula(value) for name, value in asdict(answer).items()})
    if options.json:
        Path(options.json).write_text(json.dumps(documents, indent=2) + "\n", encoding="utf-8")
    if options.out:
        facts = {
            "index": f"{options.index}: {len(index):,} images of {len(index.meta.identities):,} identities",
            "gallery": options.gallery + (f", camera {options.camera} left out" if options.camera else ""),
            "model": f"{embedder.source}, fingerprint {embedder.fingerprint[:12]}" + f", {FLIP_TEST}" * embedder.flip,
            **({"threshold": f"{threshold:.4f}"} if options.threshold else {}),
            "time": times,
        }
        entries = [index.entry(hit.row) for found in hits for hit in found if hit.score >= threshold]
        _write_page(options, facts, entries, answers, embedder.pixels, reasons)


def _printable(text: str) -> str:
    """Escape what a terminal cannot show or would obey, in names that may come from anywhere."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _escape_formula(value: object) -> object:
    """Return a cell of a table with ' before text that a spreadsheet would run as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value


def _answer(index: Index, photo: str, rank: int, hit: Hit) -> Answer:
    entry = index.entry(hit.row)
    camera, taken = (entry.camera, entry.time) if hit.images == 1 else ("", "")
    return Answer(photo, rank, hit.score, entry.identity, camera, taken, hit.images, entry.path, entry.source.root)


def _write_page(
    options: Namespace, facts: dict[str, str], entries: list[Entry], answers: Sequence[Sequence[Answer]], seen: Pixels,
    reasons: Sequence[str],
) -> None:  # fmt: skip
    """Write the answers and the pictures of their entries, with more pixels than the encoder has `seen`.

    reasons: for each photo why it has no answers, if it has none.
    """
    scale = max(1, round(SHOWN_HEIGHT / seen.height))
    pixels = replace(seen, height=scale * seen.height, width=scale * seen.width)
    roots = {name_root(root) for root in options.images}
    pictures = iter(read_pictures(entries, pixels, roots))
    shown = [[(answer, next(pictures)) for answer in found] for found in answers]
    queries = [(name, pixels.decode(read_image_file(name), name).permute(1, 2, 0).numpy()) for name in options.photos]
    lists = list(zip(queries, shown, reasons, strict=True))
    title = Path(options.index).resolve().name
    page = render("search.html", title=title, search_facts=facts, lists=lists)
    Path(options.out).write_text(page, encoding="utf-8", errors="replace")
    print(f"page: {options.out}")
    lost = sum(picture is None and answer.root in roots for found in shown for answer, picture in found)
    if lost:
        print(f"{lost} pictures are absent, unreadable or outside of their folder")
    if left_out := sorted({entry.source.root for entry in entries} - roots):
        named = " ".join(shlex.quote(_printable(root)) for root in left_out)
        print(f"pictures left out; if you trust the index, show them with --images {named}")


def _remove(options: Namespace) -> None:
    identities, paths = set(options.identity), set(options.path)
    if not identities and not paths:
        raise ValueError("name what to remove: --identity NAME ... or --path PATH ...")
    removed = remove(options.index, lambda entry: entry.identity in identities or entry.path in paths)
    if not removed:
        names = ", ".join(sorted(identities | paths))
        raise ValueError(f"{options.index} holds nothing of {names}; nothing was removed")
    _print_state(options.index, f"{removed} images removed")


def _info(options: Namespace) -> None:
    index = Index(options.index)
    meta = index.meta
    rows = {
        "images": f"{len(index):,}",
        "identities": f"{len(meta.identities):,}, and {int((index.pids < 0).sum()):,} images without an identity",
        "cameras": f"{len(meta.cameras)}: {', '.join(meta.cameras[:20])}" if meta.cameras else "none known",
        "features": f"{meta.dim} numbers, {meta.dtype}, of images of {meta.size[0]} x {meta.size[1]} pixels",
        "model": f"{meta.checkpoint}, fingerprint {meta.fingerprint[:12]}" + f", {FLIP_TEST}" * meta.flip,
        **{f"source {i}": " ".join([source.root, source.split]).strip() for i, source in enumerate(meta.sources, 1)},
    }
    print("\n".join(f"{name:>10}  {_printable(value)}" for name, value in rows.items()))


COMMANDS = {"index": _index, "add": _add, "query": _query, "remove": _remove, "info": _info}
