"""What `import reid` offers: training and evaluation from Python, and batches for other people's loops."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

import reid
from reid import AugmentConfig, Config
from reid.runs.tracking import Tracker
from reid.training.preemption import stop_signals
from reid.training.trainer import Trainer
from tests.support.drawn import HEIGHT, WIDTH, Drawn, draw_dataset
from tests.support.programs import run_program
from tests.support.undrawn import leave_out_pictures

ROOT = Path(__file__).parents[1]
SIZE: dict[str, Any] = {"height": HEIGHT, "width": WIDTH, "workers": 0}
UNCHANGED = AugmentConfig(flip=0, pad=0, erase=0)
PLAIN: dict[str, Any] = {**SIZE, "augment": UNCHANGED, "mean": (0, 0, 0), "std": (1, 1, 1)}


def test_import_reid_loads_no_library_before_a_name_is_used() -> None:
    code = "import reid, sys; print(sorted({'torch', 'numpy', 'jsonargparse'} & set(sys.modules)), *dir(reid))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert said.startswith("[] ") and set(reid.__all__) <= set(said.split())
    assert all(getattr(reid, name) for name in reid.__all__)
    with pytest.raises(AttributeError, match="trian"):
        reid.trian  # noqa: B018


# Training and evaluation


@pytest.fixture(autouse=True)
def _fresh_process() -> None:
    """Forget what other tests of this process have started."""
    AcceleratorState._reset_state(reset_partial_state=True)


def test_training_and_evaluation_follow_each_other_in_one_process(
    drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of different precision, which accelerate refuses in a process; a second training continues the first."""
    flags = [
        "--config=reid:quickstart", f"--data.root={drawn.root}", f"--runs={tmp_path}", "--name=mine",
        f"--data.height={HEIGHT}", f"--data.width={WIDTH}", "--data.workers=0", "--batch.identities=4",
        "--batch.streams=auto", "--batch.steps_per_epoch=1", "--optim.epochs=1", "--optim.warmup_epochs=0",
        "--optim.milestones=[]", "--track.wandb=off", "--precision=bf16",
    ]  # fmt: skip
    config = reid.read_flags(flags)
    handlers = [signal.getsignal(number) for number in stop_signals()]
    trained = reid.train(config)
    assert config == reid.read_flags(flags) and [signal.getsignal(number) for number in stop_signals()] == handlers
    assert trained.folder == tmp_path / "mine"
    assert trained.checkpoint == trained.folder / "checkpoints" / "epoch-0001-step-000000"
    assert not trained.stopped and trained.metrics["image/mAP"] > 0
    assert repr(trained).startswith(f"TrainResult({tmp_path / 'mine'}: epoch-0001") and "image/mAP" in repr(trained)

    leave_out_pictures(monkeypatch)
    found = reid.evaluate(trained.folder, baselines=["histogram"], protocols=["image"], wandb="off", workers=0)
    folder = found.folders["drawn"]
    assert folder == trained.folder / "eval" / "drawn"
    assert found.metrics == {"drawn": json.loads((folder / "metrics.json").read_text())}
    assert found.baselines == {"drawn": json.loads((folder / "baselines.json").read_text())}
    assert found.metrics["drawn"]["image"]["mAP"] == pytest.approx(trained.metrics["image/mAP"])
    assert repr(found).startswith("EvaluateResult(drawn: image mAP ") and len(repr(found)) < 100
    assert repr(reid.Embedder.load(trained.folder)).startswith(f"Embedder({trained.checkpoint}: 512 numbers")

    with pytest.raises(ValueError, match="nowhere: no such folder"):  # a text is one folder, not seven
        reid.evaluate(trained.folder, data="nowhere")

    config.precision, config.optim.epochs = "no", 2
    with pytest.raises(ValueError, match="--resume=auto"):
        reid.train(config)
    config.resume = "auto"
    again = reid.train(config)
    best = json.loads((again.folder / "checkpoints" / "epoch-0002-step-000000" / "state.json").read_text())["best_name"]
    assert again.checkpoint == again.folder / "checkpoints" / best


def make_config(drawn: Drawn, folder: Path, **knobs: Any) -> Config:
    """A training of a small model on the drawn images. knobs: of the run."""
    config = Config(runs=str(folder), **knobs)
    config.data.root, config.data.height, config.data.width, config.data.workers = str(drawn.root), HEIGHT, WIDTH, 0
    config.batch.identities, config.model.encoder, config.model.weights = 4, "resnet10", "none"
    config.track.wandb = "off"
    return config


def test_a_dry_run_leaves_no_checkpoint(drawn: Drawn, tmp_path: Path) -> None:
    trained = reid.train(make_config(drawn, tmp_path, dry_run=True))
    assert (trained.checkpoint, trained.metrics, list(tmp_path.iterdir())) == (None, {}, [])
    assert "no checkpoint" in repr(trained)


def test_a_training_that_fails_leaves_nothing_in_the_process(
    drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its signal handlers, which would swallow Ctrl-C, nor its run of W&B, which the next would continue."""

    def fail(*_: object) -> None:
        raise ValueError("damaged")

    finished: list[bool] = []
    monkeypatch.setattr(Trainer, "train_step", fail)
    monkeypatch.setattr(Tracker, "finish", lambda self, resumes=False, failed=False: finished.append(failed))
    handlers = [signal.getsignal(number) for number in stop_signals()]
    with pytest.raises(ValueError, match="damaged"):
        reid.train(make_config(drawn, tmp_path))
    assert [signal.getsignal(number) for number in stop_signals()] == handlers and finished == [True]
    assert not AcceleratorState._shared_state


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"protocol": ["image"]}, "protocols"),
        ({"compare": ["a", "b"]}, "reid.evaluation.comparison.compare"),
        ({"protocols": ["imag"]}, "protocols = imag"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"features": ["a.npz", "b.npz"]}, "give one of"),
    ],
)
def test_a_wrong_option_of_an_evaluation_is_named(options: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        reid.evaluate("runs/none", **options)


# Batches


def find_source(image: Tensor, sources: dict[Path, Tensor]) -> Path:
    """Return the drawn file that an image was read from."""
    return min(sources, key=lambda path: float((sources[path] - image).abs().sum()))


def test_images_have_their_pids_and_cameras(drawn: Drawn) -> None:
    files = sorted((drawn.raw / "bounding_box_train").iterdir())
    sources = {path: pil_to_tensor(Image.open(path)) / 255 for path in files}
    people = sorted({int(path.name[:4]) for path in files})
    loader = reid.open_loader(drawn.root, "cpu", identities=4, images=3, **PLAIN)
    assert loader.num_classes == len(people) and f"{len(loader)} steps" in repr(loader)
    images, pids, camids = (torch.cat(columns) for columns in zip(*loader, strict=True))
    for image, pid, camid in zip(images, pids.tolist(), camids.tolist(), strict=True):
        name = find_source(image, sources).name
        assert (people[pid], camid) == (int(name[:4]), int(name.split("_c")[1][0]))


def test_an_iteration_is_an_epoch(drawn: Drawn) -> None:
    loader = reid.open_loader(drawn.root, "cpu", seed=3, identities=4, images=2, **SIZE)
    epochs = [[pids.tolist() for _, pids, _ in loader] for _ in range(2)]
    assert [len(epoch) for epoch in epochs] == [len(loader)] * 2 and epochs[0] != epochs[1]
    assert all(len(set(pids)) == 4 for epoch in epochs for pids in epoch)
    for _ in range(2):  # set back; then after a loop that left an epoch before its end
        loader.epoch = 1
        assert [pids.tolist() for _, pids, _ in loader] == epochs[1]
        next(iter(loader))
    loader.epoch = 0
    counted = [[next(epoch)[1].tolist() for _ in range(len(loader))] for epoch in map(iter, [loader, loader])]
    assert counted == epochs  # of a loop that counts the steps, and never asks for more
    other = reid.open_loader(str(drawn.root), "cpu", seed=4, identities=4, images=2, **SIZE)
    assert [pids.tolist() for _, pids, _ in other] != epochs[0]


def test_cameras_of_several_datasets_stay_apart(drawn: Drawn, tmp_path: Path) -> None:
    second = draw_dataset(tmp_path, train_images=(4, 4, 4, 4), num_test=1, num_shards=4, seed=1)
    loader = reid.open_loader([drawn.root, second.root], "cpu", identities=4, images=2, **SIZE)
    seen: dict[int, set[int]] = {}
    for _, pids, camids in loader:
        for pid, camid in zip(pids.tolist(), camids.tolist(), strict=True):
            seen.setdefault(camid, set()).add(pid)
    assert len(seen) == 4 and loader.num_classes == 20
    cameras = [{camid for camid, people in seen.items() if pid in people} for pid in range(20)]
    assert {frozenset(own) for own in cameras if len(own) == 2} == {
        frozenset(sorted(seen)[:2]),
        frozenset(sorted(seen)[2:]),
    }


@pytest.mark.parametrize(
    ("knobs", "wanted"),
    [
        ({"identites": 4}, "'identites'; choose from .*identities"),
        ({"identities": "four"}, "batch.identities = four"),
        ({"height": 0}, "data.height = 0"),
        ({"mean": (0.5, 0.5)}, "data.mean"),
        ({"identities": 17}, "only 16 identities"),
        ({"ranks": 2}, "'ranks'"),
        ({"device": "gpu"}, "device = 'gpu'"),
        ({"root": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_a_wrong_knob_of_a_loader_is_named(drawn: Drawn, knobs: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        reid.open_loader(**{"root": drawn.root, "device": "cpu", **SIZE, **knobs})


def test_the_loop_of_the_example_trains_on_two_processes(drawn: Drawn) -> None:
    status, said = run_program("examples/own_loop.py", str(drawn.root), "1", ranks=2)
    assert status == 0, said
    assert said.count("rank 0 of 2") == 1
    (line,) = (line for line in said.splitlines() if line.startswith("epoch 1: loss "))
    assert 1 < float(line.split()[-1]) < 10
