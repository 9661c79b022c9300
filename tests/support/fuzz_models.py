"""Shards, checkpoints and weights to be fuzzed: sound ones, and their readers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from reid import Embedder
from reid.config import Config
from reid.data.eval_loader import EvalLoader
from reid.data.manifest import Manifest, load_manifest
from reid.export.publishing import write_folder
from reid.runs import checkpoint
from reid.runs.checkpoint import Parts, TrainState
from reid.runs.folder import RunFolder
from reid.runs.store import find_resume_point
from reid.training.setup import checkpoint_facts
from tests.support.drawn import Drawn
from tests.support.fuzz import PHOTO, digest
from tests.support.loading import PIXELS, make_loader, tensors_of
from tests.support.models import make_encoder, make_model
from tests.support.runs import make_run


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


def make_run_folder(folder: Path, drawn: Drawn) -> Path:
    """A run of one checkpoint, for which no older one can stand in, with moments of an optimizer."""
    make_run(folder, drawn)
    parts = _make_parts(drawn.manifest)
    assert parts.objective is not None and parts.optimizer is not None
    parts.objective(torch.ones(1, 4)).sum().backward()
    parts.optimizer.step()
    shutil.rmtree(folder / "checkpoints")
    state = TrainState(2, 0, {"image/mAP": 0.5}, "epoch-0002-step-000000")
    checkpoint.save(folder / "checkpoints", parts, state, keep=1)
    return folder


def _make_parts(manifest: Manifest) -> Parts:
    config, classes = Config(), len(manifest.split("train").pids)
    config.model.encoder, config.model.weights = "resnet10", "none"
    torch.manual_seed(0)
    model, rest = make_model(classes), torch.nn.Linear(4, 4)
    return Parts(
        model, checkpoint_facts(config, [manifest.fingerprint], classes), rest, torch.optim.Adam(rest.parameters())
    )


def make_published(folder: Path, run: Path) -> Path:
    """The model of a run as Hugging Face's hub has it."""
    folder.mkdir()
    write_folder(Embedder.load(run, device="cpu"), folder, "", "")
    return folder


def embed(run: Path) -> str:
    return digest(Embedder.load(run, device="cpu").embed([PHOTO]))


def resume_of(manifest: Manifest) -> Callable[[Path], object]:
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


def make_weights(folder: Path) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    state = make_encoder("resnet10")[0].state_dict()
    torch.save({"state_dict": state, "epoch": 3}, folder / "a.pth")
    save_file(state, folder / "b.safetensors")
    return folder


def load_weights(folder: Path) -> str:
    encoders = [make_encoder("resnet10", str(folder / name))[0] for name in ("a.pth", "b.safetensors")]
    return digest(*(value for encoder in encoders for value in encoder.state_dict().values()))
