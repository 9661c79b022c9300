"""Features, reports, indexes, tables, pictures and YAML to be fuzzed: sound ones, and their readers."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from reid import metrics
from reid.config import Config, to_dict
from reid.data.images import Pixels
from reid.data.manifest import load_manifest
from reid.evaluation.about import ABOUT, describe, write_json
from reid.evaluation.comparison import compare
from reid.evaluation.dataset_report import PER_QUERY
from reid.evaluation.external_features import read_features, write_features
from reid.metrics import retrieval
from reid.search.__main__ import main as run_search
from reid.search.index import Index
from reid.search.sources import list_folder
from reid.sweeps.__main__ import check_sweep
from reid.sweeps.folder import SweepFolder, claim_folder
from reid.sweeps.spec import Run, read_sweep
from shards.__main__ import main as run_shards
from shards.readers import coco, mot
from tests.support.drawn import HEIGHT, WIDTH
from tests.support.features import random_split
from tests.support.footage import as_coco, write_sequence
from tests.support.fuzz import PHOTO, digest
from tests.support.programs import ROOT
from tests.support.status import status_of


def make_features(folder: Path) -> tuple[Path, Path]:
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


def make_reports(folder: Path) -> Path:
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


def make_index(folder: Path, run: Path, shards: Path) -> Path:
    with contextlib.redirect_stdout(io.StringIO()):
        words = ["index", "--checkpoint", run, "--images", shards, "--out", folder, "--device=cpu"]
        run_search([str(word) for word in words])
    return folder


def search(folder: Path) -> object:
    index = Index(folder)
    asked = np.random.default_rng(1).standard_normal((2, 64), dtype=np.float32)
    return [index.search(asked, 5, gallery, without="1") for gallery in ("images", "centroids")], [*index.entries()]


def make_configuration(folder: Path) -> Path:
    folder.mkdir()
    document = to_dict(Config())
    del document["seed"]
    (folder / "x.yaml").write_text(yaml.safe_dump({"base": "base.yaml", **document}))
    (folder / "base.yaml").write_text("# the recipe\nseed: 3\nloss: &loss\n  w1: 1e-1\n  margin: 2.0\n")
    return folder


def make_sweep(folder: Path) -> Path:
    folder.mkdir()
    document = {
        "method": "grid",
        "metric": {"name": "train/loss", "goal": "minimize"},
        "parameters": {"loss.w1": {"values": [0.1, 0.3]}, "loss.w2": {"values": [None, 0.5]}, "seed": {"value": 1}},
        "command": [sys.executable, "train.py", f"--config={ROOT}/configs/quickstart.yaml", "${args}"],
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(document))
    return folder


def read_sweep_file(folder: Path) -> object:
    sweep = read_sweep(folder / "sweep.yaml")
    check_sweep(sweep, [])
    return sweep.document, sweep.metric, sweep.flags


def make_sweep_folder(folder: Path) -> Path:
    """As a sweep leaves it after one of its runs."""
    plan = claim_folder(folder, read_sweep(make_sweep(folder.with_name("its-sweep")) / "sweep.yaml"), [])
    for value in (0.1, 0.3):
        plan.add({"loss.w1": value, "loss.w2": None, "seed": 1})
    plan.set_state(0, "finished")
    make_log(plan.run_folder(0))
    return folder


def collect(folder: Path) -> list[Run]:
    found = SweepFolder(folder)
    found.collect()
    return found.runs()


def make_log(folder: Path) -> Path:
    folder.mkdir()
    lines = [json.dumps({"step": step, "train/loss": 1 / (step + 1), "train/lr": 1e-3}) for step in range(9)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def make_pictures(folder: Path) -> Path:
    folder.mkdir()
    for suffix in ("jpg", "png", "webp", "bmp", "tiff", "gif"):
        Image.fromarray(PHOTO).save(folder / f"photo.{suffix}")
    Image.fromarray(PHOTO).convert("L").save(folder / "grey.jpg", progressive=True)
    return folder


def decode_all(folder: Path) -> str:
    pixels = Pixels(HEIGHT, WIDTH)
    return digest(*(pixels.decode(path.read_bytes(), str(path)) for path in sorted(folder.iterdir())))


def make_album(folder: Path) -> Path:
    folder.mkdir()
    for number in range(3):
        Image.fromarray(PHOTO).save(folder / f"{number}.jpg")
    lines = ["path,identity,camera,time", "0.jpg,anna,door,2024-01-01", '1.jpg,"ben, junior",,', "2.jpg,,hall,"]
    (folder / "about.csv").write_text("\n".join(lines) + "\n")
    return folder


def list_album(folder: Path) -> list[tuple[str, ...]]:
    entries = [image.entry for image in list_folder(str(folder), str(folder / "about.csv"))]
    return [(entry.path, entry.identity, entry.camera, entry.time) for entry in entries]


def make_table(folder: Path) -> Path:
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
        status = status_of(run_shards, "build", "csv", "--root", folder, "--out", out, "--max-broken=1")
    if status:
        raise ValueError(said.getvalue())
    return load_manifest(out).fingerprint


def make_footage(folder: Path) -> Path:
    """A sequence of MOTChallenge, and the same as a COCO file."""
    lines = [f"{frame},{track},{9 * track},{frame},40,{60 + frame},1,1,0.5" for frame in (1, 2, 3) for track in (1, 2)]
    write_sequence(folder / "mot", "gate", lines)
    as_coco(folder / "mot", folder / "coco.json")
    return folder


def read_sequence(folder: Path) -> str:
    return digest([(r.name, r.box, r.time) for r in mot.read(folder / "mot").records])


def read_coco(folder: Path) -> str:
    return digest([(r.name, r.box) for r in coco.read(folder / "mot", folder / "coco.json").records])
