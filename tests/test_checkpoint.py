"""reid/checkpoint.py: what is saved comes back bit by bit, whole or not at all, and only where it belongs."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from reid import checkpoint
from reid.checkpoint import Progress
from reid.objective import Objective
from reid.optim import build_optimizer
from tests.drawn import Bomb

DESCRIBES = {"model": {"encoder": "tiny", "last_stride": 1}, "classes": 3, "data": "abc"}


class Tiny(nn.Sequential):
    """Parameters, buffers and a number without dimensions, as the real model has."""

    def __init__(self, dim: int = 4) -> None:
        super().__init__(nn.Linear(6, dim), nn.BatchNorm1d(dim), nn.Linear(dim, 3, bias=False))
        self.exponent = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        feature = self[1](self[0](x)) ** 2 * self.exponent
        return feature, self[2](feature)


class Run:
    """A training run in small."""

    def __init__(self, seed: int, dim: int = 4) -> None:
        torch.manual_seed(seed)
        self.model = Tiny(dim)
        self.objective = Objective(3, dim, generator=torch.Generator().manual_seed(seed))
        self.optimizer = build_optimizer(self.model, 0.01, 1e-3)

    def step(self, number: int) -> None:
        x = torch.randn(6, 6, generator=torch.Generator().manual_seed(number))
        labels = torch.tensor([0, 0, 1, 1, 2, 2])
        feature, logits = self.model(x)
        total, _ = self.objective(feature, logits, labels)
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        self.objective.update_centers(feature, labels)

    def save(self, folder: Path, epoch: int, step: int = 0, keep: int = 2) -> Path:
        progress = Progress(epoch, step, {"image/mAP": 0.25})
        return checkpoint.save(folder, self.model, self.objective, self.optimizer, progress, DESCRIBES, keep)

    def load(self, path: Path) -> Progress:
        return checkpoint.load(path, self.model, DESCRIBES, self.objective, self.optimizer)

    def tensors(self) -> dict[str, torch.Tensor]:
        optimizer = {
            f"optimizer.{index}.{name}": value
            for index, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        return {**self.model.state_dict(), **self.objective.state_dict(), **optimizer}


@pytest.fixture
def run() -> Run:
    run = Run(0)
    for number in range(3):
        run.step(number)
    return run


def assert_equal(one: Run, other: Run) -> None:
    assert one.tensors().keys() == other.tensors().keys()
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]) and tensor.dtype == other.tensors()[name].dtype, name


def test_round_trip_and_the_same_future(tmp_path, run):
    path = run.save(tmp_path / "checkpoints", 1, 7)
    assert path == tmp_path / "checkpoints" / "epoch-0001-step-000007"
    other = Run(9)
    other.optimizer.param_groups[0]["lr"] = 5.0
    assert other.load(path) == Progress(1, 7, {"image/mAP": 0.25})
    assert_equal(run, other)
    assert other.optimizer.state_dict()["param_groups"] == run.optimizer.state_dict()["param_groups"]
    assert any(name.endswith("centers") for name in run.tensors())
    assert any(name.endswith("exp_avg_sq") for name in run.tensors())
    for number in range(3, 6):
        run.step(number)
        other.step(number)
    assert_equal(run, other)


def test_the_model_alone(tmp_path, run):
    path, other = run.save(tmp_path, 1), Run(9)
    before = {name: tensor.clone() for name, tensor in other.objective.state_dict().items()}
    checkpoint.load(path, other.model, DESCRIBES)
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], tensor)
    for name, tensor in other.objective.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_newest_are_kept(tmp_path, run):
    for epoch in (1, 2, 9, 10):
        run.save(tmp_path, epoch, keep=3)
    run.save(tmp_path, 10, 5, keep=3)
    names = ["epoch-0010-step-000005", "epoch-0010-step-000000", "epoch-0009-step-000000"]
    assert [path.name for path in checkpoint.find(tmp_path)] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_no_folder_no_checkpoints(tmp_path):
    assert checkpoint.find(tmp_path / "nowhere") == []


def test_a_kill_while_writing_leaves_the_earlier_one(tmp_path, run, monkeypatch):
    first = run.save(tmp_path, 1)
    saved = Run(9)
    saved.load(first)
    run.step(3)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run.save(tmp_path, 2)
    monkeypatch.undo()
    assert checkpoint.find(tmp_path) == [first]
    again = Run(8)
    again.load(first)
    assert_equal(again, saved)
    second = run.save(tmp_path, 2)  # what was left over does not stand in the way
    assert checkpoint.find(tmp_path) == [second, first]
    assert not list(tmp_path.glob(".*"))


def test_the_same_step_is_replaced(tmp_path, run):
    run.save(tmp_path, 1)
    run.step(3)
    path = run.save(tmp_path, 1)
    other = Run(9)
    other.load(path)
    assert_equal(run, other)


@pytest.mark.parametrize(("key", "value"), [("classes", 4), ("data", "xyz"), ("model", {"encoder": "tiny"})])
def test_a_checkpoint_of_another_run(tmp_path, run, key, value):
    path = run.save(tmp_path, 1)
    other = Run(9)
    before = {name: tensor.clone() for name, tensor in other.tensors().items()}
    with pytest.raises(ValueError, match=rf"{path} belongs to another run: its {key} is .*; give the knobs") as error:
        checkpoint.load(path, other.model, {**DESCRIBES, key: value}, other.objective, other.optimizer)
    assert repr(DESCRIBES[key]) in str(error.value) and repr(value) in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.tensors().items())


def test_another_format(tmp_path, run):
    path = run.save(tmp_path, 1)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(ValueError, match=rf"{path} has checkpoint format 99; this version reads format 2"):
        run.load(path)


@pytest.mark.parametrize("file", ["state.json", "model.safetensors"])
def test_a_file_is_missing(tmp_path, run, file):
    path = run.save(tmp_path, 1)
    (path / file).unlink()
    with pytest.raises(ValueError, match=rf"{path} is not a checkpoint: it has no {file}"):
        run.load(path)


def test_weights_of_another_model(tmp_path, run):
    path = run.save(tmp_path, 1)
    with pytest.raises(ValueError, match=r"another model: 0\.weight is \(4, 6\), expected \(5, 6\)"):
        checkpoint.load_weights(path, Tiny(5))
    with pytest.raises(ValueError, match=r"another model: 3\.weight is absent, expected \(2, 2\)"):
        checkpoint.load_weights(path, nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity(), nn.Linear(2, 2)))


def test_nothing_in_a_checkpoint_can_run_code(tmp_path, run):
    """The optimizer's state is read with torch's restricted unpickler, the rest is JSON and safetensors."""
    path = run.save(tmp_path, 1)
    assert {file.name for file in path.iterdir()} == {
        "model.safetensors",
        "objective.safetensors",
        "optimizer.pt",
        "state.json",
    }
    torch.save({"state": Bomb(tmp_path / "ran"), "param_groups": []}, path / "optimizer.pt")
    with pytest.raises(Exception, match=r"[Ww]eights|optimizer"):
        run.load(path)
    assert not (tmp_path / "ran").exists()
