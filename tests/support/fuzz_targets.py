"""Every kind of file that the programs read, as small sound files and a reader: what tests/support/fuzz.py damages."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import reid.config
from reid import Embedder, metrics
from reid.config import Config, load, make_parser, parsing, to_dict
from reid.data.eval_loader import EvalLoader
from reid.data.images import Pixels
from reid.data.manifest import MANIFEST_NAME, Manifest, load_manifest
from reid.evaluation.comparison import compare
from reid.evaluation.dataset_report import ABOUT, PER_QUERY, describe, write_json
from reid.evaluation.external_features import read_features, write_features
from reid.metrics import retrieval
from reid.runs import checkpoint
from reid.runs.checkpoint import Parts, TrainState
from reid.runs.folder import RunFolder
from reid.runs.store import find_resume_point
from reid.search.index import Entry, Index, Meta, Source
from reid.search.sources import list_folder
from reid.search.writer import create
from reid.sweeps.__main__ import check_sweep
from reid.sweeps.spec import read_history, read_sweep
from reid.training.setup import checkpoint_facts
from shards.__main__ import main as run_shards
from tests.support.drawn import HEIGHT, WIDTH, Drawn, draw_dataset
from tests.support.features import random_split
from tests.support.fuzz import Target
from tests.support.loading import PIXELS, make_loader, tensors_of
from tests.support.models import make_encoder, make_model
from tests.support.narrow import use_narrow_resnet10
from tests.support.programs import ROOT
from tests.support.runs import make_run

PHOTO = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)


@contextmanager
def quick_readers() -> Iterator[None]:
    """Leave out what costs time and reads no damaged file: parsers, the run's configuration, wide encoders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsing, "make_parser", cache(make_parser))
        patch.setattr(reid.config, "load", cache(load))
        use_narrow_resnet10(patch)
        yield


def make_targets(folder: Path) -> dict[str, Target]:
    """Write sound files of all kinds into an empty folder, and return the targets by name."""
    drawn = draw_dataset(folder / "drawn", num_test=4, num_shards=4)
    run = _make_run(folder / "run", drawn)
    newest = [str(path.relative_to(run)) for path in sorted(checkpoint.find(run / "checkpoints")[0].iterdir())]
    train, test = ([shard.name for split in splits for shard in drawn.manifest.split(split).shards]
                   for splits in (["train"], ["query", "gallery"]))  # fmt: skip
    npz, npy = _make_features(folder)
    index = _make_index(folder / "index")
    reports = _make_reports(folder / "reports")
    pictures = _make_pictures(folder / "pictures")
    found = [
        Target("shards, training", drawn.root, train, read_batches),
        Target("shards, evaluation", drawn.root, test, read_test_set),
        Target("manifest", drawn.root, [MANIFEST_NAME], lambda root: (read_batches(root), read_test_set(root)), "json"),
        Target("checkpoint, evaluation", run, newest, embed),
        Target("checkpoint, resume", run, newest, _resume_of(drawn.manifest)),
        Target("checkpoint state", run, [name for name in newest if name.endswith("state.json")], embed, "json"),
        Target("features, npz", npz, ["query.npz", "gallery.npz"], evaluate_features),
        Target("features, npy", npy, _names(npy), evaluate_features, has_checksum=False),
        Target("report", reports, _names(reports), compare_reports),
        Target("report, about", reports, ["a/about.json"], compare_reports, "json"),
        Target("index", index, _names(index), search),
        Target("index, names", index, ["index.json"], search, "json"),
        Target("index, entries", index, ["entries.jsonl"], search, "jsonl"),
        Target("configuration", _make_configuration(folder / "configuration"), ["x.yaml", "base.yaml"],
               lambda path: to_dict(load(path / "x.yaml")), "yaml", has_checksum=False),
        Target("sweep", _make_sweep(folder / "sweep"), ["sweep.yaml"], _check_sweep, "yaml", has_checksum=False),
        Target("log", _make_log(folder / "log"), ["metrics.jsonl"], lambda path: read_history(path, "train/loss"),
               "jsonl", has_checksum=False),
        Target("pictures", pictures, _names(pictures), decode_all, has_checksum=False),
        Target("weights", _make_weights(folder / "weights"), ["a.pth", "b.safetensors"], load_weights,
               has_checksum=False),
        Target("album", _make_album(folder / "album"), ["about.csv"], list_album, has_checksum=False),
        Target("table", _make_table(folder / "table"), ["table.csv"], build_shards, has_checksum=False),
        Target("table's pictures", folder / "table", ["0.jpg", "1.jpg"], build_shards, has_checksum=False),
    ]  # fmt: skip
    return {target.name: target for target in found}


def digest(*parts: object) -> str:
    """A hash of tensors and arrays with their shapes, and of the text of anything else."""
    total = hashlib.sha256()
    for part in parts:
        array = part.detach().numpy() if isinstance(part, Tensor) else part
        if isinstance(array, np.ndarray):
            total.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        else:
            total.update(repr(part).encode())
    return total.hexdigest()


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def read_batches(root: Path) -> str:
    """Five training batches, which read each shard more than once."""
    loader = make_loader(root, load_manifest(root))
    return digest(*(part for *_, batch in loader.batches(1) for part in tensors_of(batch).values()))


def read_test_set(root: Path) -> str:
    manifest = load_manifest(root)
    parts: list[object] = [manifest.distractor_pid]
    for name in ("query", "gallery"):
        split = manifest.split(name)
        for batch in EvalLoader(root, split, range(len(split.shards)), PIXELS, 16).batches():
            parts += [batch.images, batch.index, batch.pids, batch.camids]
    return digest(*parts)


def _make_run(folder: Path, drawn: Drawn) -> Path:
    """A run of two equal checkpoints with moments of an optimizer."""
    make_run(folder, drawn)
    parts = _make_parts(drawn.manifest)
    assert parts.objective is not None and parts.optimizer is not None
    parts.objective(torch.ones(1, 4)).sum().backward()
    parts.optimizer.step()
    for epoch in (1, 2):
        state = TrainState(epoch, 0, {"image/mAP": 0.5}, "epoch-0001-step-000000")
        checkpoint.save(folder / "checkpoints", parts, state, keep=2)
    return folder


def _make_parts(manifest: Manifest) -> Parts:
    config, classes = Config(), len(manifest.split("train").pids)
    config.model.encoder, config.model.weights = "resnet10", "none"
    torch.manual_seed(0)
    model, rest = make_model(classes), torch.nn.Linear(4, 4)
    return Parts(model, checkpoint_facts(config, manifest, classes), rest, torch.optim.Adam(rest.parameters()))


def embed(run: Path) -> str:
    return digest(Embedder.load(run, device="cpu").embed([PHOTO]))


def _resume_of(manifest: Manifest) -> Callable[[Path], object]:
    def resume(run: Path) -> object:
        found, damaged = find_resume_point(RunFolder(run), "auto", read_only=True)
        if damaged:  # a warning, and the checkpoint before
            raise ValueError(damaged[0])
        assert found is not None
        parts = _make_parts(manifest)
        assert parts.objective is not None and parts.optimizer is not None
        state = checkpoint.load(found, parts)
        moments = [value for moment in parts.optimizer.state.values() for value in moment.values()]
        return state, digest(*parts.model.state_dict().values(), *parts.objective.state_dict().values(), *moments)

    return resume


def _make_features(folder: Path) -> tuple[Path, Path]:
    """The same features as two .npz files, and as two folders of .npy files."""
    npz, npy = folder / "npz", folder / "npy"
    for seed, name in enumerate(("query", "gallery")):
        (npy / name).mkdir(parents=True)
        npz.mkdir(exist_ok=True)
        split = random_split(24, 8, 6, 3, seed)
        write_features(npz / f"{name}.npz", split)
        with np.load(npz / f"{name}.npz") as arrays:
            for key, array in arrays.items():
                np.save(npy / name / f"{key}.npy", array)
    return npz, npy


def evaluate_features(folder: Path) -> str:
    suffix = ".npz" if (folder / "query.npz").is_file() else ""
    query, gallery = (read_features(folder / f"{name}{suffix}").features for name in ("query", "gallery"))
    ap: object = None
    with contextlib.suppress(ValueError):  # no match: of sound files of other people
        ap = metrics.evaluate(query, gallery).ap
    return digest(ap, *(part for split in (query, gallery) for part in (split.embeddings, split.pids, split.camids)))


def _make_reports(folder: Path) -> Path:
    for seed, name in enumerate("ab"):
        (folder / name).mkdir(parents=True)
        split = random_split(24, 8, 6, 3, 0)
        split.embeddings.add_(torch.randn(split.embeddings.shape, generator=torch.Generator().manual_seed(seed)))
        retrieval.save_results(folder / name / PER_QUERY, {"image": retrieval.evaluate(split, split)})
        write_json(folder / name / ABOUT, asdict(describe("d", "somewhere", "", split, split)))
    return folder


def compare_reports(folder: Path) -> list[list[object]]:
    """The metrics of a comparison, without the name of its dataset."""
    compared = compare([f"{folder}/a", f"{folder}/b"])
    rows = [row for protocols in compared.values() for protocol in protocols.values() for row in protocol]
    return [[row.mAP, row.mAP_interval, row.mINP, row.rank1, row.against] for row in rows]


def _make_index(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    source = Source("/photos")
    entries = [Entry(f"{i}.jpg", f"p{i % 5}" if i % 4 else "", f"c{i % 3}", source=source) for i in range(24)]
    with create(folder, Meta("f" * 64, 8, (HEIGHT, WIDTH), "runs/x")) as appender:
        appender.add(rng.standard_normal((24, 8), dtype=np.float32), entries)
    return folder


def search(folder: Path) -> object:
    index = Index(folder)
    asked = np.random.default_rng(1).standard_normal((2, 8), dtype=np.float32)
    return [index.search(asked, 5, gallery, without="c1") for gallery in ("images", "centroids")], [*index.entries()]


def _make_configuration(folder: Path) -> Path:
    folder.mkdir()
    document = to_dict(Config())
    del document["seed"]
    (folder / "x.yaml").write_text(yaml.safe_dump({"base": "base.yaml", **document}))
    (folder / "base.yaml").write_text("# the recipe\nseed: 3\nloss: &loss\n  w1: 1e-1\n  margin: 2.0\n")
    return folder


def _make_sweep(folder: Path) -> Path:
    folder.mkdir()
    document = {
        "method": "grid",
        "metric": {"name": "eval/best_mAP", "goal": "maximize"},
        "parameters": {"loss.w1": {"values": [0.1, 0.3]}, "loss.w2": {"values": [None, 0.5]}, "seed": {"value": 1}},
        "command": [sys.executable, "train.py", f"--config={ROOT}/configs/quickstart.yaml", "${args}"],
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(document))
    return folder


def _check_sweep(folder: Path) -> object:
    sweep = read_sweep(folder / "sweep.yaml")
    check_sweep(sweep, [])
    return sweep.document, sweep.metric, sweep.flags


def _make_log(folder: Path) -> Path:
    folder.mkdir()
    lines = [json.dumps({"step": step, "train/loss": 1 / (step + 1), "train/lr": 1e-3}) for step in range(9)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def _make_pictures(folder: Path) -> Path:
    folder.mkdir()
    for suffix in ("jpg", "png", "webp", "bmp", "tiff", "gif"):
        Image.fromarray(PHOTO).save(folder / f"photo.{suffix}")
    Image.fromarray(PHOTO).convert("L").save(folder / "grey.jpg", progressive=True)
    return folder


def decode_all(folder: Path) -> str:
    pixels = Pixels(HEIGHT, WIDTH)
    return digest(*(pixels.decode(path.read_bytes(), str(path)) for path in sorted(folder.iterdir())))


def _make_weights(folder: Path) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    state = make_encoder("resnet10")[0].state_dict()
    torch.save({"state_dict": state, "epoch": 3}, folder / "a.pth")
    save_file(state, folder / "b.safetensors")
    return folder


def load_weights(folder: Path) -> str:
    encoders = [make_encoder("resnet10", str(folder / name))[0] for name in ("a.pth", "b.safetensors")]
    return digest(*(value for encoder in encoders for value in encoder.state_dict().values()))


def _make_album(folder: Path) -> Path:
    folder.mkdir()
    for number in range(3):
        Image.fromarray(PHOTO).save(folder / f"{number}.jpg")
    lines = ["path,identity,camera,time", "0.jpg,anna,door,2024-01-01", '1.jpg,"ben, junior",,', "2.jpg,,hall,"]
    (folder / "about.csv").write_text("\n".join(lines) + "\n")
    return folder


def list_album(folder: Path) -> list[tuple[str, ...]]:
    entries = [image.entry for image in list_folder(str(folder), str(folder / "about.csv"))]
    return [(entry.path, entry.identity, entry.camera, entry.time) for entry in entries]


def _make_table(folder: Path) -> Path:
    folder.mkdir()
    lines = ["path,identity,camera,split"]
    for number in range(6):
        Image.fromarray(np.roll(PHOTO, number)).save(folder / f"{number}.jpg")
        lines.append(f"{number}.jpg,person {number // 2},{number % 2},train")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder


def build_shards(folder: Path) -> str:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        out = folder.with_name(f"{folder.name}-shards")
        status = run_shards(["build", "csv", "--root", str(folder), "--out", str(out), "--max-broken=1"])
    if status:
        raise ValueError(said.getvalue())
    return load_manifest(out).fingerprint
