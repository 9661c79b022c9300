"""Every kind of file that the programs read, as sound files and a reader: what tests/support/fuzz.py damages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

import reid.config
from reid.config import load, make_parser, parsing, to_dict
from reid.data.manifest import MANIFEST_NAME
from reid.runs import checkpoint
from reid.sweeps.spec import read_history
from tests.support.drawn import draw_dataset
from tests.support.fuzz import Target
from tests.support.fuzz_files import (
    build_shards,
    collect,
    compare_reports,
    decode_all,
    evaluate_features,
    list_album,
    make_album,
    make_configuration,
    make_features,
    make_index,
    make_log,
    make_pictures,
    make_reports,
    make_sweep,
    make_sweep_folder,
    make_table,
    read_sweep_file,
    search,
)
from tests.support.fuzz_models import (
    embed,
    load_weights,
    make_run_folder,
    make_weights,
    read_batches,
    read_test_set,
    resume_of,
)
from tests.support.narrow import use_narrow_resnet10


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
    run = make_run_folder(folder / "run", drawn)
    newest = [str(path.relative_to(run)) for path in sorted(checkpoint.find(run / "checkpoints")[0].iterdir())]
    train, test = ([shard.name for split in splits for shard in drawn.manifest.split(split).shards]
                   for splits in (["train"], ["query", "gallery"]))  # fmt: skip
    npz, npy = make_features(folder)
    index = make_index(folder / "index", run, drawn.root)
    reports = make_reports(folder / "reports")
    pictures = make_pictures(folder / "pictures")
    found = [
        Target("shards, training", drawn.root, train, read_batches),
        Target("shards, evaluation", drawn.root, test, read_test_set),
        Target("manifest", drawn.root, [MANIFEST_NAME], lambda root: (read_batches(root), read_test_set(root)), "json"),
        Target("checkpoint, evaluation", run, newest, embed),
        Target("checkpoint, resume", run, newest, resume_of(drawn.manifest)),
        Target("checkpoint state", run, [name for name in newest if name.endswith("state.json")], embed, "json"),
        Target("features, npz", npz, ["query.npz", "gallery.npz"], evaluate_features),
        Target("features, npy", npy, _names(npy), evaluate_features, has_checksum=False),
        Target("report", reports, _names(reports), compare_reports),
        Target("report, about", reports, ["a/about.json"], compare_reports, "json"),
        Target("index", index, _names(index), search),
        Target("index, names", index, ["index.json"], search, "json"),
        Target("index, entries", index, ["entries.jsonl"], search, "jsonl"),
        Target("configuration", make_configuration(folder / "configuration"), ["x.yaml", "base.yaml"],
               lambda path: to_dict(load(path / "x.yaml")), "yaml", has_checksum=False),
        Target("sweep", make_sweep(folder / "sweep"), ["sweep.yaml"], read_sweep_file, "yaml", has_checksum=False),
        Target("sweep's folder", make_sweep_folder(folder / "sweeps"), ["state/0", "run-0000/metrics.jsonl"], collect,
               has_checksum=False),
        Target("sweep's plan", folder / "sweeps", ["plan.json"], collect, "json", has_checksum=False),
        Target("log", make_log(folder / "log"), ["metrics.jsonl"], lambda path: read_history(path, "train/loss"),
               "jsonl", has_checksum=False),
        Target("pictures", pictures, _names(pictures), decode_all, has_checksum=False),
        Target("weights", make_weights(folder / "weights"), ["a.pth", "b.safetensors"], load_weights,
               has_checksum=False),
        Target("album", make_album(folder / "album"), ["about.csv"], list_album, has_checksum=False),
        Target("table", make_table(folder / "table"), ["table.csv"], build_shards, has_checksum=False),
        Target("table's pictures", folder / "table", ["0.jpg", "1.jpg"], build_shards, has_checksum=False),
    ]  # fmt: skip
    return {target.name: target for target in found}


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
