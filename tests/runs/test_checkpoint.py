"""reid/runs/checkpoint.py: what is saved comes back bit by bit, whole or not at all, and only where it belongs."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reid.config import LossConfig, OptimConfig
from reid.losses.objective import Objective
from reid.model.saved import check, find_undamaged
from reid.runs import checkpoint
from reid.runs.checkpoint import Parts, TrainState
from reid.training.optim import build_optimizer
from tests.support.drawn import Bomb
from tests.support.models import make_model
from tests.support.narrow import use_narrow_resnet10

DESCRIBES = {
    "model": {"encoder": "tiny", "last_stride": 1}, "classes": 3, "data": "abc", "plan": {"seed": 0, "batch.images": 4},
}  # fmt: skip


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
        self.objective = Objective(LossConfig(), 3, dim, torch.Generator().manual_seed(seed))
        self.optimizer = build_optimizer(self.model, OptimConfig(lr=0.01, weight_decay=1e-3))

    def step(self, number: int) -> None:
        x = torch.randn(6, 6, generator=torch.Generator().manual_seed(number))
        labels = torch.tensor([0, 0, 1, 1, 2, 2])
        feature, logits = self.model(x)
        losses = self.objective(feature, feature, logits, labels)
        self.optimizer.zero_grad()
        losses.total.backward()
        self.optimizer.step()
        self.objective.update_centers(losses)

    def parts(self, describes: dict[str, Any] = DESCRIBES) -> Parts:
        return Parts(self.model, describes, self.objective, self.optimizer)

    def save(self, folder: Path, epoch: int, step: int = 0, keep: int = 2) -> Path:
        return checkpoint.save(folder, self.parts(), TrainState(epoch, step, {"image/mAP": 0.25}), keep)

    def load(self, path: Path) -> TrainState:
        return checkpoint.load(path, self.parts())

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
    assert other.load(path) == TrainState(1, 7, {"image/mAP": 0.25})
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
    checkpoint.load(path, Parts(other.model, DESCRIBES))
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


@pytest.mark.parametrize(
    ("key", "value", "words", "knobs"),
    [
        ("classes", 4, "is 3, here it is 4", "data.root, data.val_identities"),
        ("data", "xyz", "is 'abc', here it is 'xyz'", "data.root"),
        ("model", {"encoder": "tiny"}, "has last_stride = 1, here it is None", "model.last_stride"),
        ("model", {"encoder": "tiny", "last_stride": 2}, "has last_stride = 1, here it is 2", "model.last_stride"),
        ("plan", {"seed": 1, "batch.images": 4}, "has seed = 0, here it is 1", "seed"),
        ("plan", {"seed": 0, "batch.images": 3}, "has batch.images = 4, here it is 3", "batch.images"),
    ],
)
def test_a_checkpoint_of_another_run(tmp_path, run, key, value, words, knobs):
    path = run.save(tmp_path, 1)
    other = Run(9)
    before = {name: tensor.clone() for name, tensor in other.tensors().items()}
    with pytest.raises(ValueError, match=rf"{path} belongs to another run: its {key} .*; give the knobs") as error:
        checkpoint.load(path, other.parts({**DESCRIBES, key: value}))
    assert words in str(error.value) and f"({knobs})" in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.tensors().items())


def test_another_format(tmp_path, run):
    path = run.save(tmp_path, 1)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(ValueError, match=rf"{path} has checkpoint format 99; this version reads format 2"):
        run.load(path)


# state.json

DAMAGE = [
    {"epoch": 3}, {"epoch": None}, {"epoch": -1}, {"epoch": True}, {"step": 1}, {"step": "0"}, {"best": None},
    {"best": {"image/mAP": "high"}}, {"best_name": "../x"}, {"due": None}, {"dropped": None}, {"dropped": [None]},
    {"scaler": 3}, {"describes": None}, {"describes": {"classes": None}}, {"describes": {"classes": 3, "model": 1}},
    {"files": {}}, {"files": None}, {"files": {"model.safetensors": "0"}}, {"format": None}, {"sha256": "0"},
]  # fmt: skip


def rewrite(path: Path, changes: dict[str, Any], format: int = 3) -> None:
    """Change entries of state.json; of format 2 as earlier versions wrote it, without its own hash."""
    state = json.loads((path / "state.json").read_text())
    if format == 2:
        state = {name: value for name, value in state.items() if name != "sha256"} | {"format": 2}
    (path / "state.json").write_text(json.dumps(state | changes))


@pytest.mark.parametrize("format", [2, 3])
@pytest.mark.parametrize("changes", DAMAGE, ids=str)
def test_a_changed_state_is_damage(tmp_path, run, changes, format):
    older, newest = run.save(tmp_path, 1), run.save(tmp_path, 2)
    rewrite(newest, changes, format)
    found, (said,) = find_undamaged(tmp_path)
    assert found == older and said.startswith(f"{newest}: damaged checkpoint: state.json ") and "\n" not in said


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"3", b'{"format": 2}', b"\xff", b"[" * 100_000])
def test_a_state_that_is_something_else(tmp_path, run, content):
    path = run.save(tmp_path, 1)
    (path / "state.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path}: damaged checkpoint: "):
        checkpoint.read_state(path)


def test_every_changed_bit_of_a_state_is_found_or_harmless(tmp_path, run):
    path = run.save(tmp_path, 1)
    file, wanted, harmless = path / "state.json", checkpoint.read_state(path), 0
    written = file.read_bytes()
    for place in range(0, 8 * len(written), 31):
        changed = bytearray(written)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        with contextlib.suppress(ValueError):
            assert checkpoint.read_state(path) == wanted
            harmless += 1
    assert harmless < 0.02 * len(written)  # white space


def test_a_checkpoint_of_the_format_before_is_read(tmp_path, run):
    path = run.save(tmp_path, 1)
    rewrite(path, {}, format=2)
    (state := json.loads((path / "state.json").read_text())).pop("due")
    (path / "state.json").write_text(json.dumps(state))
    check(path)
    other = Run(9)
    assert other.load(path) == TrainState(1, 0, {"image/mAP": 0.25})
    assert_equal(run, other)
    checkpoint.amend(tmp_path, TrainState(1, 0), keep=1)
    assert "sha256" in checkpoint.read_state(path)


def test_a_checkpoint_may_be_copied_under_a_name_that_is_no_position(tmp_path, run):
    path = run.save(tmp_path, 1)
    path.rename(tmp_path / "market-best")
    check(tmp_path / "market-best")
    (tmp_path / "market-best").rename(tmp_path / "epoch-0002-step-000000")
    with pytest.raises(ValueError, match=r"damaged checkpoint: state\.json is of epoch 1, step 0"):
        check(tmp_path / "epoch-0002-step-000000")


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


def test_position_embeddings_of_another_grid_are_refused_though_their_number_is_equal(tmp_path, run):
    run.model.grid = (16, 8)
    path, other = run.save(tmp_path, 1), Run(9)
    other.model.grid = (16, 8)
    other.load(path)
    other.model.grid = (8, 16)
    with pytest.raises(
        ValueError, match=r"for \[16, 8\] patches .*, here they are for \[8, 16\]; give the data\.height"
    ):
        checkpoint.load_weights(path, other.model)


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


def grouped(model: nn.Module, **knobs) -> torch.optim.Optimizer:
    return build_optimizer(model, OptimConfig(**{"lr": 0.01, "weight_decay": 1e-3, **knobs}))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"head_lr_factor": 10.0, "weight_decay": 0.5}),
        ({}, {"bias_lr_factor": 2.0}),
        ({"layer_decay": 0.5}, {"layer_decay": 0.8, "bias_lr_factor": 2.0}),
        ({"decay_norm": False}, {}),
        ({"bias_lr_factor": 2.0, "decay_norm": False}, {"head_lr_factor": 3.0}),
    ],
)
def test_moments_follow_their_parameters_into_other_groups_and_new_knobs_hold(tmp_path, monkeypatch, before, after):
    use_narrow_resnet10(monkeypatch)
    one, other = Run(0), Run(9)
    one.model = other.model = make_model(3, "resnet10")
    one.optimizer, other.optimizer = grouped(one.model, **before), grouped(other.model, **after)
    for parameter in one.model.parameters():
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    one.optimizer.step()
    wanted = {parameter: state["exp_avg"].clone() for parameter, state in one.optimizer.state.items()}
    other.load(one.save(tmp_path, 1))
    assert wanted.keys() == other.optimizer.state.keys()
    assert all(torch.equal(state["exp_avg"], wanted[p]) for p, state in other.optimizer.state.items())
    fresh = grouped(other.model, **after).state_dict()["param_groups"]
    assert other.optimizer.state_dict()["param_groups"] == fresh


def test_moments_are_laid_out_as_the_parameters_are(tmp_path):
    """As after speed.channels_last was switched: fused kernels do not look at the moments' strides."""
    one, other = Run(0), Run(9)
    one.model, other.model = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    one.optimizer, other.optimizer = grouped(one.model), grouped(other.model)
    one.model(torch.ones(1, 3, 4, 4)).sum().backward()
    one.optimizer.step()
    other.load(one.save(tmp_path, 1))
    found, wanted = other.optimizer.state[other.model.weight]["exp_avg"], one.optimizer.state[one.model.weight]
    assert found.stride() == other.model.weight.stride() != one.model.weight.stride()
    assert torch.equal(found, wanted["exp_avg"])


def test_a_damaged_newer_checkpoint_does_not_push_out_the_one_just_written(tmp_path, run):
    for epoch in (1, 2, 3):
        run.save(tmp_path, epoch, keep=3)
    (tmp_path / "epoch-0003-step-000000" / "model.safetensors").write_bytes(b"damaged")
    written = run.save(tmp_path, 2, 4, keep=1)  # by a run that went on from the second
    assert checkpoint.find(tmp_path) == [written]


def test_an_evaluation_amends_the_checkpoint_and_writes_nothing_else_anew(tmp_path, run, monkeypatch):
    run.save(tmp_path, 1)
    path = run.save(tmp_path, 2, keep=2)
    written = {file.name: stamp_of(file) for file in path.iterdir()}
    better = TrainState(2, 0, {"image/mAP": 0.5}, path.name)
    assert checkpoint.amend(tmp_path, better, keep=1) == path
    check(path)
    assert run.load(path) == better
    assert checkpoint.find(tmp_path) == [path]
    same = {file.name for file in path.iterdir() if stamp_of(file) == written.get(file.name)}
    assert same == written.keys() - {"state.json"}
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.amend(tmp_path, TrainState(2, 0), keep=1)
    assert checkpoint.read_state(path)["best"] == {"image/mAP": 0.5} and not list(path.glob(".*"))


def stamp_of(file: Path) -> tuple[int, int]:
    """What tells a file from another one of the same name, however coarse the file system's clock is."""
    status = file.stat()
    return status.st_ino, status.st_mtime_ns


def full(*args: object, ignore_errors: bool = False) -> None:
    if ignore_errors:
        return
    raise OSError(28, "No space left on device")


def test_what_was_set_aside_is_put_back(tmp_path, run):
    path = run.save(tmp_path, 1)
    path.rename(tmp_path / f".{path.name}.replaced")  # a kill before the new one had this name
    checkpoint.restore(tmp_path)
    assert find_undamaged(tmp_path) == (path, [])
    checkpoint.restore(tmp_path / "nowhere")


def test_other_hidden_files_do_not_break_saving(tmp_path, run):
    (tmp_path / ".DS_Store").write_text("of a file manager")
    (tmp_path / ".notes").mkdir()
    (tmp_path / ".epoch-0001-step-000000.writing").mkdir()
    run.save(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".DS_Store", ".notes"]


def test_an_old_checkpoint_that_cannot_be_removed_is_said_so(tmp_path, run, monkeypatch):
    old = run.save(tmp_path, 1)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", full)
    with pytest.raises(checkpoint.NotRemoved) as error:
        run.save(tmp_path, 2, keep=1)
    assert error.value.filename == str(old)
    check(tmp_path / "epoch-0002-step-000000")
