"""Every kind of file that the programs read, as sound files and a reader: what tests/support/fuzz.py damages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import pytest

import reid.config
from reid.config import load, make_parser, parsing, to_dict
from reid.data.manifest import MANIFEST_NAME
from reid.runs import checkpoint
from reid.sweeps.spec import read_history
from tests.support import fuzz_files as files
from tests.support import fuzz_models as models
from tests.support.drawn import draw_dataset
from tests.support.fuzz import Target
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
    run = models.make_run_folder(folder / "run", drawn)
    newest = [str(path.relative_to(run)) for path in sorted(checkpoint.find(run / "checkpoints")[0].iterdir())]
    train, test = ([shard.name for split in splits for shard in drawn.manifest.split(split).shards]
                   for splits in (["train"], ["query", "gallery"]))  # fmt: skip
    npz, npy = files.make_features(folder)
    index = files.make_index(folder / "index", run, drawn.root)
    reports = files.make_reports(folder / "reports")
    published = models.make_published(folder / "published", run)
    pictures = files.make_pictures(folder / "pictures")
    unchecked = partial(Target, has_checksum=False)
    found = [
        Target("shards, training", drawn.root, train, models.read_batches),
        Target("shards, evaluation", drawn.root, test, models.read_test_set),
        Target("manifest", drawn.root, [MANIFEST_NAME],
               lambda root: (models.read_batches(root), models.read_test_set(root)), "json"),
        Target("checkpoint, evaluation", run, newest, models.embed),
        Target("checkpoint, resume", run, newest, models.resume_of(drawn.manifest)),
        Target("checkpoint state", run, [name for name in newest if name.endswith("state.json")], models.embed, "json"),
        Target("features, npz", npz, ["query.npz", "gallery.npz"], files.evaluate_features),
        unchecked("features, npy", npy, _names(npy), files.evaluate_features),
        Target("report", reports, _names(reports), files.compare_reports),
        Target("report, about", reports, ["a/about.json"], files.compare_reports, "json"),
        Target("index", index, _names(index), files.search),
        Target("index, names", index, ["index.json"], files.search, "json"),
        Target("index, entries", index, ["entries.jsonl"], files.search, "jsonl"),
        unchecked("configuration", files.make_configuration(folder / "configuration"), ["x.yaml", "base.yaml"],
                  lambda path: to_dict(load(path / "x.yaml")), "yaml"),
        unchecked("sweep", files.make_sweep(folder / "sweep"), ["sweep.yaml"], files.read_sweep_file, "yaml"),
        unchecked("sweep's folder", files.make_sweep_folder(folder / "sweeps"),
                  ["state/0", "run-0000/metrics.jsonl"], files.collect),
        unchecked("sweep's plan", folder / "sweeps", ["plan.json"], files.collect, "json"),
        unchecked("log", files.make_log(folder / "log"), ["metrics.jsonl"],
                  lambda path: read_history(path, "train/loss"), "jsonl"),
        unchecked("pictures", pictures, _names(pictures), files.decode_all),
        unchecked("weights", models.make_weights(folder / "weights"), ["a.pth", "b.safetensors"], models.load_weights),
        unchecked("published model", published, ["about.json"], models.embed, "json"),
        Target("published weights", published, ["model.safetensors"], models.embed),
        unchecked("album", files.make_album(folder / "album"), ["about.csv"], files.list_album),
        unchecked("table", files.make_table(folder / "table"), ["table.csv"], files.build_shards),
        unchecked("tracks", files.make_footage(folder / "footage"), ["mot/gate/gt/gt.txt"], files.read_sequence),
        unchecked("COCO file", folder / "footage", ["coco.json"], files.read_coco, "json"),
        unchecked("table's pictures", folder / "table", ["0.jpg", "1.jpg"], files.build_shards),
    ]  # fmt: skip
    return {target.name: target for target in found}


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
